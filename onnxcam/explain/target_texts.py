"""What is explained, from texts (a command line, a form) or JSON values: a class, a box, a region, a vector, a value.

One vocabulary for all: `target`, `contrast` and `probability` of classes; `box` and `part` of a detector; `region` of a
segmentation, along with `target`; `like` of an embedding; `output` of one of several values. `contrast` is what any of
them is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxcam.errors import InputError, TargetError
from onnxcam.explain.texts import Spelling, truth
from onnxcam.targets import scalars
from onnxcam.targets.classes import by_text, find_label
from onnxcam.targets.objectives import Contrast, Probability
from onnxcam.targets.scalars import SCORE, Box, Region, Several, Similarity, Value

RUNNER_UP = "runner-up"
BOX, PART, REGION, LIKE, OUTPUT = "box", "part", "region", "like", "output"
# the keys that `target_of` reads; of those that name something other than a class at most one can be given
KEYS = ("target", "contrast", "probability", BOX, PART, REGION, LIKE, OUTPUT)
_OTHERS = (BOX, REGION, LIKE, OUTPUT)
_MOST = 1_000  # boxes of a picture


def check(values: Mapping[str, Any], labels: Sequence[str] | None, spell: Spelling) -> bool:
    """Refuse values that no model can be asked, before one is opened; return whether probabilities are explained.

    Raises:
        TargetError, InputError: as their names say.
    """
    probability = truth(values.get("probability", False), spell("probability"))
    named = [name for name in _OTHERS if name in values]
    if PART in values and BOX not in named:
        named = [BOX, *named]
    if len(named) > 1:
        raise InputError(f"{' and '.join(map(spell, named))} exclude each other: each names what is explained")
    kind = named[0] if named else None
    if kind is not None and probability:
        raise InputError(f"{spell('probability')} is of a class, and {spell(kind)} names something else: leave it out")
    if kind not in (None, REGION) and "target" in values:
        hint = ": a box of a class is " + spell(BOX, "label:cat") if kind == BOX else ""
        raise InputError(f"{spell('target')} and {spell(kind)} exclude each other{hint}")
    if "top" in values:
        first = next((name for name in KEYS if name in values and (name != "probability" or probability)), None)
        if first is not None:
            raise top_excludes(first, spell)
    if "contrast" in values and probability:
        raise InputError(
            f"{spell('contrast')} and {spell('probability')} exclude each other: a contrast is one of two scores"
        )
    if kind is not None:
        if "target" in values and isinstance(values["target"], str):
            _check_class("target", values["target"], labels, spell)
        _scalar(kind, values, lambda value: value)
        return probability
    classes = {key: _check_class(key, values[key], labels, spell) for key in ("target", "contrast")
               if isinstance(values.get(key), str)}  # fmt: skip
    if len(classes) == 2 and classes["target"] == classes["contrast"]:
        raise TargetError(
            f"{spell('contrast', values['contrast'])} is the target itself, and a contrast of a class with itself "
            "says nothing; name another class to compare it with"
        )
    return probability


def top_excludes(name: str, spell: Spelling) -> TargetError:
    """The refusal of `top` along with a target."""
    top = spell("top")
    return TargetError(f"both {spell(name)} and {top} were given; {top} explains the best classes, boxes or regions")


def target_of(values: Mapping[str, Any], probability: bool, labels: Sequence[str] | None) -> Any:
    """The target that the values mean together, after `check`."""

    def of_text(value: Any) -> Any:
        """A class as a user types it: a label, or an index where no label is those digits."""
        return by_text(value, labels) if isinstance(value, str) else value

    kind = next((name for name in (*_OTHERS, PART) if name in values), None)
    if kind is not None:
        return _scalar(BOX if kind == PART else kind, values, of_text)
    contrast = values.get("contrast")
    other = None if _is_runner_up(contrast) else of_text(contrast)

    def of_class(item: Any) -> Any:
        if isinstance(item, Mapping) and any(name in item for name in (*_OTHERS, "minus")):
            return scalars.from_json(item)
        index = of_text(item)
        if contrast is not None:
            return Contrast(index, other)
        return Probability(index) if probability else index

    target = values.get("target")
    return [of_class(item) for item in target] if isinstance(target, (list, tuple)) else of_class(target)


def _scalar(kind: str, values: Mapping[str, Any], of_text: Any) -> Any:
    """The box, region, similarity or value that is named, minus the one that it is contrasted with.

    Raises:
        TargetError: it cannot be read.
    """
    contrast = values.get("contrast")
    if kind == BOX:
        part = values.get(PART, SCORE)
        boxes = values.get(BOX)
        items = boxes if isinstance(boxes, (list, tuple)) else [boxes]
        if not 1 <= len(items) <= _MOST:
            raise TargetError(f"got {len(items)} boxes; expected 1 to {_MOST}")
        named: list[Any] = [_box(item, part) for item in items]
        if contrast is not None:
            named = [one - _box(contrast, part) for one in named]
        return Several(named) if isinstance(boxes, (list, tuple)) and len(named) > 1 else named[0]
    if kind == REGION:
        value = values[REGION]
        region = scalars.region_of_text(value) if isinstance(value, str) else value
        first = Region(of_text(values.get("target")), region)
        return first if contrast is None else first - Region(of_text(contrast), region)
    if kind == LIKE:
        return _similar(values[LIKE]) if contrast is None else _similar(values[LIKE]) - _similar(contrast)
    return _value(values[OUTPUT]) if contrast is None else _value(values[OUTPUT]) - _value(contrast)


def _box(item: Any, part: str) -> Box:
    if item is None:
        return Box(part=part)
    if isinstance(item, str):
        return scalars.box_of_text(item, part)
    fields = dict(item) if isinstance(item, Mapping) else {"index": item}
    if "part" not in fields:
        fields["part"] = part
    box: Box = scalars.from_json({"box": fields})
    return box


def _similar(value: Any) -> Similarity:
    if isinstance(value, str):
        raise TargetError(f"got {value!r} to compare with; expected the numbers of an embedding")
    return Similarity(value)


def _value(value: Any) -> Value:
    if isinstance(value, str):
        return scalars.value_of_text(value)
    named: Value = scalars.from_json(value if isinstance(value, Mapping) else {"output": value})
    return named


def _check_class(key: str, value: str, labels: Sequence[str] | None, spell: Spelling) -> int | str:
    name = by_text(value, labels)
    if not str(name).strip():
        raise TargetError(f"{spell(key, name)} is blank; expected an index or a label")
    if labels and isinstance(name, str) and not (key == "contrast" and _is_runner_up(name)):
        find_label(name, labels)
    return name


def _is_runner_up(contrast: Any) -> bool:
    return isinstance(contrast, str) and contrast.strip().casefold() == RUNNER_UP
