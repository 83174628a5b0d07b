"""Which of a framework model's output tensors holds the class scores."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcam.errors import ModelError, listing
from onnxcam.network.manifest import Manifest

Shape = tuple[int, ...]


def position(
    names: Sequence[str], shapes: Sequence[Shape], floating: Sequence[bool], rows: int, scores: str | None
) -> int:
    """Return the position of the class scores among a model's output tensors.

    Arguments:
        names, shapes, floating: each tensor's name, its shape for `rows` pictures, and whether its type is
            floating-point.
        rows: number of pictures the shapes belong to.
        scores: name of the tensor to take, None to search for it: `logits` if there is one, else the first tensor, else
            the only one, of shape `[N, classes]` or `[N, classes, 1, 1]`; where there is none, of shape `[N]`, or with
            further axes of size 1.

    Raises:
        ModelError: no tensor of that name, none of that shape, or several of which none is first.
    """
    candidates = [place for place, shape in enumerate(shapes) if floating[place] and _is_scores(shape, rows)]
    tensors = ", ".join(f"{name!r} {list(shape)}" for name, shape in zip(names, shapes, strict=True))
    if scores is not None:
        if scores not in names:
            raise ModelError(f"the model has no output {scores!r}; for {rows} pictures it returns {tensors}")
        return list(names).index(scores)
    if not candidates:  # one number per picture, or further axes of size 1
        candidates = [place for place, shape in enumerate(shapes) if floating[place] and _is_unusual(shape, rows)]
    if "logits" in names and list(names).index("logits") in candidates:
        return list(names).index("logits")
    if candidates and (candidates[0] == 0 or len(candidates) == 1):
        return candidates[0]
    if candidates:
        raise ModelError(f"several outputs could be class scores; name one with scores=. The model returns {tensors}")
    raise ModelError(
        f"the model is not an image classifier: for {rows} pictures it returns {tensors or 'no tensor'}; expected "
        "scores of shape [N, classes]"
    )


def search(
    names: Sequence[str], shapes: Sequence[Shape], floating: Sequence[bool], rows: int, scores: str | None
) -> int | None:
    """Return the position of the class scores, None where what the outputs are has to be measured.

    That is where none has the form of class scores but one has more axes, as boxes and scores per cell have; where the
    one named has not; and where one holds four numbers for each of the others' columns, as boxes beside their scores.

    Raises:
        ModelError: as of `position`.
    """
    numeric = [shape for shape, is_float in zip(shapes, floating, strict=True) if is_float and shape[:1] == (rows,)]
    if scores is not None:
        named = position(names, shapes, floating, rows, scores)
        return named if _is_scores(shapes[named], rows) or _is_unusual(shapes[named], rows) else None
    classes = [shape for shape in numeric if _is_scores(shape, rows)]
    candidates = {shape[3 - axis] for shape in numeric if len(shape) == 3 for axis in (1, 2) if shape[axis] == 4}
    if any(len(shape) == 2 and shape[1] in candidates for shape in classes):
        return None
    unusual = any(_is_unusual(shape, rows) for shape in numeric)
    if not classes and not unusual and any(len(shape) > 2 for shape in numeric):
        return None
    return position(names, shapes, floating, rows, None)


def values(shapes: Sequence[Shape], floating: Sequence[bool], rows: int) -> list[int]:
    """The positions of the outputs that hold one or more quantities per picture."""
    return [
        place
        for place, shape in enumerate(shapes)
        if floating[place] and (_is_scores(shape, rows) or _is_unusual(shape, rows))
    ]


def columns(manifest: Manifest, outputs: Sequence[str], place: int | None, autograd: str) -> list[int]:
    """The positions of the output tensors that the scores consist of, in order.

    Arguments:
        manifest: of the explainable file.
        outputs: names of the model's output tensors.
        place: of the class scores; None of a model of another task.
        autograd: name of what gradients are compared with, for the error.

    Raises:
        ModelError: they are computed inside the model, where it returns something made of them.
    """
    if place is not None and not manifest["scores"].get("task"):
        return [place]
    names = manifest["source"].get("values") or [manifest["scores"]["name"]]
    inside = [name for name in names if name not in outputs]
    if inside:
        raise ModelError(
            f"what is explained, {listing(inside)}, is computed inside the model, which returns {listing(outputs)}, so "
            f"its gradients cannot be compared with {autograd}; let the model return it, or export with verify=False "
            "(on the command line: --no-verify), and try `onnxcam check` on the file"
        )
    return [list(outputs).index(name) for name in names]


def _is_scores(shape: Shape, rows: int) -> bool:
    return shape[:1] == (rows,) and (len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)))


def _is_unusual(shape: Shape, rows: int) -> bool:
    return shape[:1] == (rows,) and sum(size != 1 for size in shape[1:]) <= 1
