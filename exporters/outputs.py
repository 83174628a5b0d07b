"""Which of a framework model's output tensors holds the class scores."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcam.errors import ModelError

Shape = tuple[int, ...]


def choose(
    names: Sequence[str], shapes: Sequence[Shape], floating: Sequence[bool], rows: int, asked: str | None
) -> int:
    """The place of the class scores among a model's output tensors.

    Arguments:
        names, shapes, floating: of each tensor what it is called, its shape for `rows` pictures, and whether it holds
            floating-point numbers.
        rows: how many pictures they were computed from.
        asked: the one the user names, None to find it.

    Raises:
        ModelError: none of them looks like class scores, or it cannot be told which one is meant.
    """
    fitting = [place for place, shape in enumerate(shapes) if floating[place] and _is_scores(shape, rows)]
    told = ", ".join(f"{name!r} {list(shape)}" for name, shape in zip(names, shapes, strict=True))
    if asked is not None:
        if asked not in names:
            raise ModelError(f"the model has no output {asked!r}; for {rows} pictures it returns {told}")
        return list(names).index(asked)
    if "logits" in names and list(names).index("logits") in fitting:
        return list(names).index("logits")
    if fitting and (fitting[0] == 0 or len(fitting) == 1):
        return fitting[0]
    if fitting:
        raise ModelError(f"several outputs could be class scores; name one with scores=. The model returns {told}")
    raise ModelError(
        f"the model is not an image classifier: for {rows} pictures it returns {told or 'no tensor'}; expected scores "
        "of shape [N, classes]"
    )


def _is_scores(shape: Shape, rows: int) -> bool:
    return shape[:1] == (rows,) and (len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)))
