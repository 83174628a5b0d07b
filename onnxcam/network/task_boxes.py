"""What four numbers of a candidate mean, measured: corners or centre and size, x or y first, pixels or relative."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxcam.errors import ModelError
from onnxcam.network.levels import Origins
from onnxcam.targets.tasks import FORMATS, PIXELS, RELATIVE, Size

_SURE = 0.99  # share of candidates that have to agree
_WITHIN = 0.8  # share of boxes whose centre lies on the input, or near it
_FEWEST = 4  # boxes, of which a form is measured
_NEAR = 0.2  # median distance of a box's centre from its cell, as a share of the input: chance gives about 0.3
_RELATIVE_MOST = 1.5  # numbers of relative boxes are not above it
_PIXELS_LEAST = 0.1  # of pixels, the highest reach at least this share of the input's longer side
_STILL = 0.9  # correlation between two pictures of the centres of a dense head's candidates, which lie on a grid
# what the numbers of a head without its decoding are, and what helps
_DECODED_OUTSIDE = (
    "offsets that are still to be decoded (by a grid and a stride): export the model with its decoding in the file "
    "(YOLOX: tools/export_onnx.py --decode_in_inference), or name decoded boxes inside it with `boxes_output=` (on the "
    "command line: --boxes-output NAME)"
)
NMS, NO_NMS = "nms", "no-nms"
OBJECTNESS, NO_OBJECTNESS = "objectness", "no-objectness"
SIGMOID, SOFTMAX, PLAIN = "sigmoid", "softmax", "probabilities"
FIRST, LAST, NONE = "background-first", "background-last", "no-background"
_WORDS: dict[str, tuple[str, ...]] = {
    "box_format": tuple(FORMATS),
    "unit": (PIXELS, RELATIVE),
    "objectness": (OBJECTNESS, NO_OBJECTNESS),
    "nms": (NMS, NO_NMS),
    "activation": (SIGMOID, SOFTMAX, PLAIN),
    "background": (FIRST, LAST, NONE),
}


@dataclass(frozen=True)
class Declared:
    """What the user says of a detector's boxes: `NAME`, `NAME:word,word`, or `:word,word`.

    Attributes:
        output: the name of the output, or of a value inside; None if only words are given.
        box_format, unit, objectness, nms, activation, background: one of their words each, None if left open.
    """

    output: str | None = None
    box_format: str | None = None
    unit: str | None = None
    objectness: str | None = None
    nms: str | None = None
    activation: str | None = None
    background: str | None = None

    @classmethod
    def parse(cls, text: str | None) -> Declared:
        """Read `--boxes-output`.

        Raises:
            ModelError: two words for the same thing, or a word that is none after others that are.
        """
        if text is None:
            return cls()
        name, colon, end = text.rpartition(":")
        words = [word.strip() for word in end.split(",")]
        fields = {word: field for field, choices in _WORDS.items() for word in choices}
        if not colon or not any(word in fields for word in words):
            return cls(text)  # a name may have a colon in it
        declared = cls(name or None)
        for word in words:
            field = fields.get(word)
            if field is None or getattr(declared, field) is not None:
                raise ModelError(
                    f"boxes_output={text!r}: {word!r} is "
                    f"{'no word' if field is None else 'a second word for one thing'}; expected NAME, or NAME:WORDS "
                    f"with at most one of each of {'; '.join(', '.join(choices) for choices in _WORDS.values())}"
                )
            declared = replace(declared, **{field: word})
        return declared


def settled_by(*words: str) -> str:
    """The end of a refusal: how to say what could not be measured."""
    spelled = f'`boxes_output=":{words[0]}"` (on the command line: --boxes-output :{words[0]})'
    if len(words) == 1:
        return f"say so with {spelled}"
    return f"say which with {spelled}; instead of {words[0]!r} there may stand {' or '.join(map(repr, words[1:]))}"


@dataclass(frozen=True)
class Boxes:
    """A reading of four numbers.

    Attributes:
        box_format, unit: as of `Detect`.
        doubt: what was assumed, None if nothing.
    """

    box_format: str
    unit: str
    doubt: str | None = None


def read(
    tables: list[np.ndarray], size: Size, origins: Origins | None, declared: Declared, *, dense: bool = False
) -> Boxes | str:
    """The meaning of four numbers per candidate, or why they are no boxes.

    Arguments:
        tables: `[M, 4]` of each picture.
        size: height and width of the input.
        origins: the cell of each candidate, `[M]`, where they are known: boxes lie near their cells.
        dense: whether candidates are too many to be of anything but a grid.
    """
    numbers = np.concatenate([np.asarray(table, np.float64) for table in tables])
    finite = np.isfinite(numbers).all(axis=1)
    if declared.box_format is not None and declared.unit is not None:
        return Boxes(declared.box_format, declared.unit)
    if finite.sum() < _FEWEST:
        return f"only {int(finite.sum())} boxes came out of {len(tables)} pictures"
    numbers = numbers[finite]
    if declared.box_format is None and np.abs(numbers).max() == 0:
        return "all numbers are 0"
    reach = float(np.quantile(np.abs(numbers), _SURE))
    unit = declared.unit or (RELATIVE if reach <= _RELATIVE_MOST else PIXELS)
    if declared.unit is None and unit == PIXELS and reach < _PIXELS_LEAST * max(size):
        return (
            f"the first four numbers of a candidate reach {reach:.3g} of {size[0]} × {size[1]} pixels: neither pixels "
            f"nor shares of the input's size, such as {_DECODED_OUTSIDE}"
        )
    height, width = size if unit == PIXELS else (1, 1)
    corners = float(((numbers[:, 2] >= numbers[:, 0]) & (numbers[:, 3] >= numbers[:, 1])).mean())
    sizes = float(((numbers[:, 2] >= 0) & (numbers[:, 3] >= 0)).mean())
    if declared.box_format is not None:
        formats = [declared.box_format]
    elif corners >= _SURE:
        formats = ["xyxy", "yxyx"]
    elif sizes >= _SURE:
        formats = ["cxcywh", "xywh"]
    else:
        return (
            f"numbers 3 and 4 of a candidate are neither a second corner (beyond the first in {corners:.0%} of "
            f"{len(numbers)} boxes) nor a size (not negative in {sizes:.0%})"
            + (f", such as {_DECODED_OUTSIDE}" if dense or _of_cells(origins) else "")
        )
    fits = {name: _fit(numbers @ FORMATS[name], (height, width)) for name in formats}
    formats = [name for name in formats if fits[name] >= _WITHIN]
    if not formats:
        return f"{1 - max(fits.values()):.0%} of {len(numbers)} boxes have their centre outside the input"
    if origins is not None and _of_cells(origins):
        return _by_cells(
            np.stack([t for t in tables if np.isfinite(t).all()] or [tables[0]]), formats, unit, size, origins
        )
    if dense and not _on_a_grid(tables, formats[0]):
        return f"the centres of candidates change with the picture: {_DECODED_OUTSIDE}"
    if formats[0] == "xyxy" and len(formats) > 1:
        return _by_edges(numbers, formats, unit, (height, width))
    return Boxes(formats[0], unit)


def _of_cells(origins: Origins | None) -> bool:
    """Whether the cell of nearly every candidate is known."""
    return origins is not None and bool(origins.level.size) and bool((origins.level >= 0).mean() >= _SURE)


def _fit(corners: np.ndarray, size: tuple[float, float]) -> float:
    """The share of boxes whose centre lies on the input, or within a tenth of it."""
    x, y = (corners[:, 0] + corners[:, 2]) / 2 / size[1], (corners[:, 1] + corners[:, 3]) / 2 / size[0]
    return float(((x > -0.1) & (x < 1.1) & (y > -0.1) & (y < 1.1)).mean())


def _on_a_grid(tables: list[np.ndarray], name: str) -> bool:
    """Whether centres of candidates stay where they are from one picture to the next."""
    boxes = np.stack(tables[:2]).astype(np.float64) @ FORMATS[name]
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    finite = np.isfinite(centres).all(axis=(0, 2))
    first, second = centres[:, finite]
    with np.errstate(invalid="ignore"):
        return all(np.corrcoef(first[:, k], second[:, k])[0, 1] > _STILL for k in (0, 1))


def _by_cells(numbers: np.ndarray, formats: list[str], unit: str, size: Size, origins: Origins) -> Boxes | str:
    """The format in which boxes lie nearest to their cells, and whether they do.

    Arguments:
        numbers: `[pictures, M, 4]`.
    """
    height, width = size if unit == PIXELS else (1, 1)
    centres = origins.centres()
    visible = ~np.isnan(centres[:, 0])
    distances = {}
    for name in formats:
        corners = numbers[:, visible].astype(np.float64) @ FORMATS[name]
        middle = (corners[..., :2] + corners[..., 2:]) / 2 / [width, height]
        distances[name] = float(np.median(np.abs(middle - centres[visible])))
    best = min(distances, key=lambda name: (round(distances[name], 3), formats.index(name)))
    if distances[best] > _NEAR:
        return (
            f"boxes do not lie near the cells that they come from (half of the centres are farther away than "
            f"{distances[best]:.0%} of the input): {_DECODED_OUTSIDE}"
        )
    return Boxes(best, unit)


def _by_edges(numbers: np.ndarray, formats: list[str], unit: str, size: tuple[float, float]) -> Boxes:
    """Which of two corners' numbers is x: the one that reaches beyond the shorter side of the input."""
    height, width = size
    reach = [float(np.quantile(numbers[:, [k, k + 2]], 0.98)) for k in (0, 1)]
    short, long = sorted((height, width))
    beyond = [limit > 1.05 * short for limit in reach]
    if unit == PIXELS and long > 1.1 * short and beyond[0] != beyond[1]:
        return Boxes("xyxy" if beyond[0] == (width > height) else "yxyx", unit)
    doubt = "whether x or y comes first in a box could not be measured; x is taken to (xyxy), else " + settled_by(
        "yxyx"
    )
    return Boxes(formats[0], unit, doubt)
