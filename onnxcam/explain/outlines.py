"""Outlines of what a map is about: the box of a detector, the region of a segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxcam import image
from onnxcam.targets.scalars import SCORE, SCORE_IOU

if TYPE_CHECKING:
    from onnxcam.explain.explanation import Explanation, Map


def of_map(explanation: Explanation, one: Map | None = None) -> list[image.Outline]:
    """The box or region that a map is about, in pixels of the picture; none of a class, a similarity or a value.

    Arguments:
        one: the first map if None.
    """
    one = explanation.maps[0] if one is None else one
    scalar = one.scalar
    if scalar is None:
        return []
    if scalar.box is not None:
        others = [_second(explanation, scalar.target)]
        return [*(other for other in others if other is not None), image.Outline(scalar.box.box, name(one))]
    text = f"{one.label} {image.percentage(one.probability)}"
    if scalar.mask is not None:
        return [image.Outline(text=text, mask=scalar.mask)]
    region = scalar.target.get("region") if isinstance(scalar.target, dict) else None
    return [image.Outline(tuple(region), text)] if region else []


def _second(explanation: Explanation, target: Any) -> image.Outline | None:
    """The other box of a difference of two, if it is one of those that the detector reports."""
    minus = target.get("minus") if isinstance(target, dict) else None
    box = (minus[1] or {}).get("box") if minus and isinstance(minus[1], dict) else None
    index = box.get("index") if isinstance(box, dict) else None
    other = next((one for one in explanation.boxes if one.index == index), None)
    return None if other is None else image.Outline(other.box, f"minus box {other.index}", foremost=False)


def name(one: Map) -> str:
    """What a map is about, in a line: `box 3: dog 87.0 %`, or the class with its number."""
    number = image.percentage(one.probability)
    if one.box is None:
        return f"{one.label} {number}"
    return f"box {one.box.index}: {one.box.label} {image.percentage(one.box.score)}"


def box_part(one: Map) -> str:
    """The number of a box that a map is about: `box 3`, `box 3, edge x0` or `box 3, score times IoU`."""
    if one.box is None or one.scalar is None:
        return ""
    part = one.scalar.target["box"].get("part", SCORE) if "box" in one.scalar.target else SCORE
    what = {SCORE: "", SCORE_IOU: ", score times IoU"}.get(part, f", edge {part}")
    return f"box {one.box.index}{what}"
