"""Perturbation: what a covered part of a picture changes at each depth of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam.errors import InputError, PictureError, listing
from onnxcam.image import Geometry, Picture
from onnxcam.image.opencv import import_cv2
from onnxcam.inside import boxes, outcome
from onnxcam.inside.activations import Activations, activations
from onnxcam.inside.depths import requested
from onnxcam.inside.outcome import Prediction
from onnxcam.network.names import INPUT

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

Box = boxes.Box
Progress = Callable[[int, int], None]
Prepared = tuple[Picture, np.ndarray, Geometry]

FILLS = ("0", "mean", "blur")
_CLEAR = 0.1  # of the largest change of a layer: more than that is a clear one
_BLUR = 0.08  # standard deviation of the blur, of the input's longer side


@dataclass(frozen=True, eq=False)
class Perturbation:
    """What covering a box changed.

    Attributes:
        cover: the box, x0, y0, x1, y1 in the picture's pixels, the last two exclusive.
        covered: the pixels of the model's input that were covered, as a box.
        fill: what they were filled with: `0`, `mean` or `blur`.
        before, after: `(index, label, probability)`, best first; of a regression the values, in the model's order;
            nothing of an embedding.
        probabilities: of all classes before and after, float32 `[2, K]`: of a regression the values, of an embedding
            the vectors.
        differences: by layer, float32 `[h, w]`: the mean over channels of the absolute change.
        spread: by layer the share of cells that changed at all.
        clear_spread: by layer the share of cells that changed by more than a tenth of the layer's largest change.
    """

    cover: Box
    covered: Box
    fill: str
    before: list[Prediction]
    after: list[Prediction]
    probabilities: np.ndarray
    differences: dict[str, np.ndarray]
    spread: dict[str, float]
    clear_spread: dict[str, float]
    tensor: np.ndarray = field(repr=False)
    kind: str = outcome.CLASSES

    @property
    def drop(self) -> float:
        """How much less probable the class that was predicted before is; negative where it is more.

        Of a regression the largest absolute change of a value; of an embedding 1 - `similarity`.
        """
        before, after = self.probabilities.astype(np.float64)
        if self.similarity is not None:
            return 1.0 - self.similarity
        if self.kind == outcome.VALUES:
            return float(np.abs(before - after).max())
        index = self.before[0][0]
        return float(before[index] - after[index])

    @property
    def similarity(self) -> float | None:
        """Of an embedding the cosine between the vectors before and after; None of another model."""
        if self.kind != outcome.VECTOR:
            return None
        before, after = self.probabilities.astype(np.float64)
        size = float(np.linalg.norm(before) * np.linalg.norm(after))
        return float(before @ after) / size if size else 0.0

    def describe(self) -> dict[str, Any]:
        """The numbers, as JSON."""
        return {
            "cover": list(self.cover),
            "covered": list(self.covered),
            "fill": self.fill,
            "before": [_entry(one) for one in self.before],
            "after": [_entry(one) for one in self.after],
            "kind": self.kind,
            "drop": self.drop,
            "similarity": self.similarity,
            "layers": [
                {
                    "layer": layer,
                    "grid": list(difference.shape),
                    "mean": float(difference.mean()),
                    "max": float(difference.max()),
                    "spread": self.spread[layer],
                    "clear_spread": self.clear_spread[layer],
                }
                for layer, difference in self.differences.items()
            ],
        }


def _entry(prediction: Prediction) -> dict[str, Any]:
    index, label, probability = prediction
    return {"index": index, "label": label, "probability": probability}


def perturb(
    explainer: Explainer,
    picture: Any,
    cover: Sequence[int],
    *,
    fill: str = "0",
    layers: Sequence[str] | str | None = None,
) -> Perturbation:
    """Cover a part of a picture, and compare the network's values with those of the whole picture.

    Arguments:
        picture: as of `Explainer.explain`.
        cover: x0, y0, x1, y1 in the picture's pixels, the last two exclusive.
        fill: `0` in the prepared tensor, `mean` (of each channel of it), or `blur` (a Gaussian blur of it).
        layers: names of layers, of values or of nodes; None for an early, a middle and a deep one.

    Raises:
        InputError: an unknown fill, or a cover that is empty, outside the picture, or cropped away.
        LayerError: no such layer, or one that is neither a map nor tokens on a grid.
        PreprocessError, PictureError: as of `Explainer.explain`.
        ModelError: the scores or a layer are not finite.
    """
    check_fill(fill)
    names = requested(explainer, layers)
    for name in names:
        explainer.sessions.cut(name)  # a wrong name is told before the picture is read
    (result,) = perturb_all(explainer, explainer.prepare(picture), [cover], fill=fill, layers=names)
    return result


def check_fill(fill: str) -> None:
    """Refuse a fill that does not exist.

    Raises:
        InputError: an unknown fill.
    """
    if fill not in FILLS:
        raise InputError(f"fill is {fill!r}; expected one of {listing(FILLS)}")


def perturb_all(
    explainer: Explainer,
    prepared: Prepared,
    covers: Sequence[Sequence[int]],
    *,
    fill: str,
    layers: Sequence[str],
    progress: Progress | None = None,
) -> Iterator[Perturbation]:
    """`perturb` of a prepared picture with several covers, one after the other; errors come before the first."""
    picture, tensor, geometry = prepared
    places = [_place(cover, picture, geometry) for cover in covers]
    layout = explainer.sessions.cut(INPUT).layout
    filling = _filling(layout.to_canonical(tensor), fill)
    return _perturbations(explainer, tensor, filling, places, fill, layers, progress)


def _perturbations(
    explainer: Explainer,
    tensor: np.ndarray,
    filling: np.ndarray,
    places: Sequence[tuple[Box, Box]],
    fill: str,
    layers: Sequence[str],
    progress: Progress | None,
) -> Iterator[Perturbation]:
    layout = explainer.sessions.cut(INPUT).layout
    whole = activations(explainer, tensor, layers)
    for number, (cover, covered) in enumerate(places):
        left, top, right, bottom = covered
        canonical = layout.to_canonical(tensor).copy()
        part = (slice(None), slice(None), slice(top, bottom), slice(left, right))
        canonical[part] = filling[part]
        changed = np.ascontiguousarray(layout.from_canonical(canonical).astype(tensor.dtype))
        yield _compare(explainer, whole, activations(explainer, changed, layers), cover, covered, fill, changed)
        if progress is not None:
            progress(number + 1, len(places))


def _compare(
    explainer: Explainer,
    whole: Activations,
    partial: Activations,
    cover: Box,
    covered: Box,
    fill: str,
    tensor: np.ndarray,
) -> Perturbation:
    readout = explainer.terms.readout
    scores = np.concatenate([whole.scores, partial.scores]).astype(np.float32)
    outcome.require_finite(scores, "the scores")
    probabilities = readout.probabilities(scores)
    before, after = (outcome.predictions(explainer, row[None]) for row in scores)
    differences, spread, clear = {}, {}, {}
    for layer, value in whole.values.items():
        outcome.require_finite(value, f"values of layer {layer!r}")
        outcome.require_finite(partial.values[layer], f"values of layer {layer!r}")
        change = np.abs(value[0].astype(np.float64) - partial.values[layer][0])
        difference = np.asarray(change.mean(axis=0), np.float32)
        differences[layer] = difference
        spread[layer] = float((change > 0).any(axis=0).mean())
        peak = float(difference.max())
        clear[layer] = float((difference > _CLEAR * peak).mean()) if peak > 0 else 0.0
    kind = outcome.kind_of(readout)
    return Perturbation(cover, covered, fill, before, after, probabilities, differences, spread, clear, tensor, kind)


def _place(cover: Sequence[int], picture: Picture, geometry: Geometry) -> tuple[Box, Box]:
    """A cover as a box of the picture, and as the box of the model's input that shows it.

    Raises:
        InputError: it is empty, outside the picture, or cut off.
    """
    numbers = [int(number) for number in cover]
    height, width = picture.size
    if len(numbers) != 4:
        raise InputError(f"cover is {tuple(cover)}; expected four numbers: x0, y0, x1, y1")
    box = (numbers[0], numbers[1], numbers[2], numbers[3])
    left, top, right, bottom = box
    if left >= right or top >= bottom:
        raise InputError(f"cover {box} is empty; expected x0 < x1 and y0 < y1")
    if left < 0 or top < 0 or right > width or bottom > height:
        raise InputError(f"cover {box} reaches outside the picture, which is {width} x {height} (width x height)")
    covered = boxes.to_input(box, geometry)
    if covered is None:
        raise InputError(f"cover {box} lies where the preprocessing crops the picture: the model does not see it")
    return box, covered


def _filling(tensor: np.ndarray, fill: str) -> np.ndarray:
    """What covers a picture `[1, C, H, W]`, of its shape."""
    values = tensor.astype(np.float64)
    if fill == "0":
        return np.zeros_like(values)
    if fill == "mean":
        filled = np.broadcast_to(values.mean(axis=(2, 3), keepdims=True), values.shape)
    else:
        cv2, sigma = import_cv2(), max(_BLUR * max(values.shape[2:]), 0.5)
        filled = np.stack([[cv2.GaussianBlur(channel, (0, 0), sigma) for channel in row] for row in values])
    return np.rint(filled) if tensor.dtype.kind in "iu" else np.asarray(filled)


def positions(size: tuple[int, int], box: Box, picture: Picture, geometry: Geometry) -> list[Box]:
    """Places of a box of the same size on what the model sees of the picture, in rows, evenly spread.

    Arguments:
        size: rows and columns of places.

    Raises:
        PictureError: the model sees nothing of the picture.
    """
    height, width = geometry.input_size
    left, top, right, bottom = boxes.to_picture((0, 0, width, height), geometry)
    if right <= left or bottom <= top:
        raise PictureError("the model sees nothing of this picture")
    wide, tall = min(box[2] - box[0], right - left), min(box[3] - box[1], bottom - top)
    places = []
    for y in _spread(top, bottom - tall, size[0]):
        places += [(x, y, x + wide, y + tall) for x in _spread(left, right - wide, size[1])]
    return places


def _spread(first: int, last: int, count: int) -> list[int]:
    """Some whole numbers from the first to the last, evenly spread."""
    count = max(min(count, ceil(last - first) + 1), 1)
    return [first + round(k * (last - first) / max(count - 1, 1)) for k in range(count)]
