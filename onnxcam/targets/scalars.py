"""Scalars of outputs that are not classes: a box, a region, a similarity, a value.

Beside classes, `Contrast`, `Probability` and `Weights`, `target` takes

    Box(3)                        the score of the candidate at index 3 of a detector's output
    Box(label="cat", part="x0")   the left edge of the best box of a cat
    Box(at=(120, 80))             the score of the box at a point of the picture
    Region("road", (0, 200, 640, 480))  the sum of a class's output over a part of the picture
    Similarity(vector)            the cosine of the embedding and another one, or another picture's
    Value("depth", 2)             one of several outputs; `sign=-1` explains what lowers it

and `a - b` of any two. Points, boxes and masks are in pixels of the picture; of a prepared tensor, in those of the
model's input.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol

import numpy as np

from onnxcam.errors import TargetError, listing
from onnxcam.targets.difference import Difference, Scalar

SCORE, SCORE_IOU = "score", "score*iou"
EDGES = ("x0", "y0", "x1", "y1")
PARTS = (SCORE, *EDGES, SCORE_IOU)
_DEEPEST = 8  # differences of differences


class Placement(Protocol):
    """How a picture lies on the model's input, as `onnxcam.image.Geometry` says it: (height, width) each."""

    @property
    def picture_size(self) -> tuple[int, int]: ...

    @property
    def input_size(self) -> tuple[int, int]: ...

    @property
    def offset(self) -> tuple[int, int]: ...

    @property
    def scale(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Box(Scalar):
    """A number of one box of a detector.

    Arguments:
        index: of the candidate in the model's own output.
        label: the best box of a class, by index or label.
        at: the box at a point (x, y) of the picture, the best one where there are several.
        rank: the box's place among those that are not suppressed, 0 for the best.
        part: `score`; an edge `x0`, `y0`, `x1` or `y1`, in pixels of the model's input; or `score*iou`, the score times
            the overlap with the box as it is on the unchanged picture.

    With none of them, the best box of all; with both `label` and `at`, the best one of that class at that point.

    Raises:
        TargetError: no such part, or a value that cannot be one of these.
    """

    index: int | None = None
    _: KW_ONLY
    label: Any = None
    at: tuple[float, float] | None = None
    rank: int | None = None
    part: str = SCORE

    def __post_init__(self) -> None:
        for name in ("index", "rank"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _place(value, f"Box({name}={value!r})"))
        if self.index is not None and (self.label, self.at, self.rank) != (None, None, None):
            raise TargetError(f"{self!r} names a candidate by its index: leave label, at and rank out")
        if self.at is not None:
            object.__setattr__(self, "at", tuple(_numbers(self.at, 2, "a point x, y of the picture")))
        if self.part not in PARTS:
            raise TargetError(f"part={self.part!r}; expected one of {', '.join(PARTS)}")


@dataclass(frozen=True, eq=False)
class Region(Scalar):
    """The sum of a class's output over a part of the picture, in the output's own grid.

    Arguments:
        label: the class, by index or label; None for the class that is largest there.
        region: x0, y0, x1, y1, or a mask, bool `[H, W]` of the picture's size; None for the cells where the class is
            the highest.

    Raises:
        TargetError: neither a box with an area nor a mask with a pixel in it.
    """

    label: Any = None
    region: Any = None

    def __post_init__(self) -> None:
        if self.region is None:
            return
        array = np.asarray(self.region)
        if array.ndim == 2:
            mask = array.astype(bool)
            if not mask.any():
                raise TargetError(
                    f"the mask of shape {list(mask.shape)} has no pixel in it; give one that marks a part"
                )
            object.__setattr__(self, "region", mask)
            return
        x0, y0, x1, y1 = box = _numbers(self.region, 4, "a region x0, y0, x1, y1, or a mask [H, W]")
        if not (x0 < x1 and y0 < y1):
            raise TargetError(f"the region {_spelled(box)} has no area; expected x0 < x1 and y0 < y1")
        object.__setattr__(self, "region", tuple(box))


@dataclass(frozen=True, eq=False)
class Similarity(Scalar):
    """The cosine of the model's embedding and another one.

    Arguments:
        other: a vector of the embedding's size; or a picture, of which the model computes one.

    Raises:
        TargetError: a vector that is zero or not finite.
    """

    other: Any

    def __post_init__(self) -> None:
        if is_vector(self.other):
            object.__setattr__(self, "other", _unit(np.asarray(self.other, np.float64)))

    @property
    def vector(self) -> np.ndarray | None:
        """The other embedding, float64 `[D]` of length 1; None if it is still a picture."""
        return self.other if is_vector(self.other) else None


@dataclass(frozen=True)
class Value(Scalar):
    """One of the numbers that a model returns.

    Arguments:
        name: of the output; None where there is one only. A name may say the index too: `depth[2]`.
        index: within the output; None where it has one number only.
        sign: 1 for what raises the number, -1 for what lowers it.

    Raises:
        TargetError: a sign that is neither, or an index that is no whole number from 0.
    """

    name: str | None = None
    index: int | None = None
    sign: int = 1

    def __post_init__(self) -> None:
        if self.sign not in (1, -1):
            raise TargetError(f"sign={self.sign!r}; expected 1 or -1")
        if self.index is not None:
            object.__setattr__(self, "index", _place(self.index, f"Value(index={self.index!r})"))


class Several(tuple[Any, ...]):
    """Several targets for each picture, which has a map for each of them: `Several([Box(0), Box(3)])`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Several({list(self)!r})"


SCALARS = (Box, Region, Similarity, Value)


def is_scalar(target: Any) -> bool:
    """Whether a target is a scalar of outputs that are not classes, or made of one."""
    if isinstance(target, Difference):
        return is_scalar(target.first) or is_scalar(target.second)
    return isinstance(target, SCALARS)


def is_vector(value: Any) -> bool:
    """Whether a value is a vector rather than a picture."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, (int, float)) for one in value)


def from_json(entry: Mapping[str, Any]) -> Any:
    """The target that a JSON object describes.

    One of `{"box": 3}`, `{"box": {"label": "cat", "at": [x, y], "rank": 0, "part": "x0"}}`,
    `{"region": [x0, y0, x1, y1], "label": "road"}`, `{"like": [numbers]}`, `{"output": "depth[2]", "sign": -1}`,
    `{"minus": [first, second]}`; a list in place of the box means several.

    Raises:
        TargetError: it describes none.
    """
    return _from_json(entry, _DEEPEST)


def _from_json(entry: Any, depth: int) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    names = [name for name in _FIELDS if name in entry]
    if len(names) != 1:
        raise TargetError(f"{dict(entry)!r} is no target; expected one of {', '.join(_FIELDS)}")
    (name,) = names
    unknown = [key for key in entry if key not in (name, *_FIELDS[name])]
    if unknown:
        raise TargetError(f"a target with {name!r} has no {unknown[0]!r}; it may have {listing(_FIELDS[name])}")
    value, rest = entry[name], {key: entry[key] for key in entry if key != name}
    if name == "minus":
        if not isinstance(value, (list, tuple)) or len(value) != 2 or not depth:
            raise TargetError("'minus' takes a list of two targets, the second of which is subtracted")
        return Difference(*(_from_json(one, depth - 1) for one in value))
    if name == "box":
        if isinstance(value, (list, tuple)):
            return Several(_from_json({"box": one, **rest}, depth) for one in value)
        fields = {**value, **rest} if isinstance(value, Mapping) else {"index": value, **rest}
        unknown = [key for key in fields if key not in _BOX]
        if unknown:
            raise TargetError(f"a box has no {unknown[0]!r}; it is named by {', '.join(_BOX)}")
        return Box(fields.pop("index", None), **fields)
    if name == "region":
        return Region(rest.get("label"), value)
    if name == "like":
        if isinstance(value, str):
            raise TargetError("'like' takes the numbers of an embedding; a name could be any file of this machine")
        return Similarity(value)
    return _value(value, rest.get("index"), rest.get("sign", 1))


_BOX = ("index", "label", "at", "rank", "part")
# keys of a JSON target, and what may stand beside each
_FIELDS: dict[str, tuple[str, ...]] = {
    "box": ("label", "at", "rank", "part"), "region": ("label",), "like": (), "output": ("index", "sign"), "minus": (),
}  # fmt: skip


def box_of_text(text: str, part: str = SCORE) -> Box:
    """The box that a text names: `3`, `rank:0`, `label:cat`, `at:120,80`, or several of these separated by semicolons.

    Raises:
        TargetError: it names none.
    """
    fields: dict[str, Any] = {}
    for piece in text.split(";"):
        key, colon, value = piece.strip().partition(":")
        value = value.strip()
        if not colon and re.fullmatch(r"\d{1,9}", key):
            fields["index"] = int(key)
        elif key == "rank" and re.fullmatch(r"\d{1,9}", value):
            fields["rank"] = int(value)
        elif key == "label" and value:
            fields["label"] = value
        elif key == "at" and len(value.split(",")) == 2:
            fields["at"] = _texts(value, text)
        else:
            raise TargetError(f"got the box {text!r}; expected an index such as 3, rank:0, label:cat or at:120,80")
    return Box(fields.pop("index", None), part=part, **fields)


def region_of_text(text: str) -> tuple[float, ...]:
    """The region X0,Y0,X1,Y1 that a text names.

    Raises:
        TargetError: not four numbers.
    """
    return tuple(_numbers(_texts(text, text), 4, "a region X0,Y0,X1,Y1"))


def value_of_text(text: str) -> Value:
    """The value that a text such as `depth`, `depth[2]` or `-depth[2]` names: a minus explains what lowers it.

    Raises:
        TargetError: it is blank.
    """
    name = text.strip()
    sign = -1 if name.startswith("-") else 1
    name = name[1:].strip() if sign < 0 else name
    if not name:
        raise TargetError(f"got the output {text!r}; expected its name, or NAME[index]")
    return _value(name, None, sign)


def describe(target: Any) -> Any:
    """A scalar ready for JSON, as `from_json` reads it: of a mask its size alone, of an embedding its length."""
    if isinstance(target, Difference):
        return {"minus": [describe(target.first), describe(target.second)]}
    if isinstance(target, Several):
        return [describe(one) for one in target]
    if isinstance(target, Box):
        fields = {name: getattr(target, name) for name in _BOX if getattr(target, name) is not None}
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
        return {"box": fields if target.part != SCORE else {k: v for k, v in fields.items() if k != "part"}}
    if isinstance(target, Region):
        mask = isinstance(target.region, np.ndarray)
        box = None if target.region is None else list(target.region) if not mask else None
        return {"region": box, "label": target.label} | (
            {"mask": {"size": list(target.region.shape), "pixels": int(target.region.sum())}} if mask else {}
        )
    if isinstance(target, Similarity):
        vector = target.vector
        return {"like": {"dimensions": len(vector)} if vector is not None else {"picture": _name(target.other)}}
    if isinstance(target, Value):
        return {"output": target.name, "index": target.index, "sign": target.sign}
    return target


def _value(name: Any, index: Any, sign: Any) -> Value:
    match = re.fullmatch(r"(.*)\[(\d{1,9})\]", name) if isinstance(name, str) else None
    if match is not None and index is None:
        return Value(match[1], int(match[2]), sign)
    if name is not None and not isinstance(name, str):
        raise TargetError(f"got the output {name!r}; expected its name, or NAME[index]")
    return Value(name, index, sign)


def _name(picture: Any) -> str:
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else type(picture).__name__


def _unit(vector: np.ndarray) -> np.ndarray:
    """A vector at length 1."""
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        what = "zero" if length == 0 else "not finite"
        raise TargetError(f"the vector of {len(vector)} numbers is {what}: it has no direction to compare with")
    return np.asarray(vector / length)


def _place(value: Any, what: str) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < 0:
        raise TargetError(f"{what}; expected a whole number from 0")
    return int(value)


def _numbers(values: Any, count: int, what: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise TargetError(f"got {values!r}; expected {what}, {count} finite numbers")
    return numbers


def _texts(text: str, whole: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise TargetError(f"got {whole!r}; expected numbers separated by commas") from None


def _spelled(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
