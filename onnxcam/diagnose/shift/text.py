"""A comparison as text for a terminal."""

from __future__ import annotations

from collections import Counter

import numpy as np

from onnxcam.diagnose.shift.result import CLASS, LOST, NEW, SAME, Change, ClassShift, Prediction, Shift
from onnxcam.targets.tasks import DETECT, SEGMENT

_LISTED = 10  # pictures, classes and regions of each kind


def lines(shift: Shift) -> list[str]:
    """Return the comparison as text: the answer in the first line, then what moved most."""
    total, flipped = len(shift.pictures), shift.changes(flipped=True)
    text = [f"{total} picture{'s' * (total != 1)}: {changed(shift)}, {moved(shift)}"]
    if shift.verdict is not None:
        text.append(f"verdict: {shift.verdict.sentence}")
    elif shift.undecided:
        text.append(f"undecided: {shift.undecided}")
    else:
        text.append(
            "no verdict on the attention: maps move with the seed of a training alone; --null says how much is usual"
        )
    if shift.accuracy is not None:
        scope = "" if shift.truths == total else f" (of {shift.truths} of {total} pictures, whose class is known)"
        text.append(f"accuracy: {shift.accuracy[0]:.1%} -> {shift.accuracy[1]:.1%}{scope}")
    text += [
        f"{_share(one.old)} -> {_share(one.new)} in {one.name or 'the regions'} ({one.pictures} of {total} pictures)"
        for one in shift.regions
    ]
    stayed = [one for one in shift.changes(flipped=False) if one.distance]
    for title, some in zip(titles(shift), (stayed, flipped), strict=False):
        if some:
            text += [f"{title}:", *(f"  {_change(shift, one)}" for one in some[:_LISTED])]
            text += [f"  and {len(some) - _LISTED} more"] if len(some) > _LISTED else []
    text += ["by class:"] if shift.classes else []
    text += [f"  {one.label}: {_of_class(shift, one)}" for one in shift.classes[:_LISTED]]
    without = sum(any(picture.empty) for picture in shift.pictures)
    if without:
        text.append(f"note: {without} pictures have a map without energy in OLD or NEW; it counts as even")
    text += [] if shift.blame is None else [f"blame by depth: {shift.blame.sentence}"]
    text += [f"note: {note}" for note in shift.notes]
    return text


def changed(shift: Shift) -> str:
    """How many predictions flipped, as part of a sentence; of numbers by how much they changed."""
    if shift.task == DETECT:
        counts = Counter(one.change for one in shift.objects)
        parts = [f"{counts[SAME]} are the same", f"{counts[LOST]} lost", f"{counts[NEW]} new"]
        parts.append(f"{counts[CLASS]} of another class")
        return f"of {len(shift.objects)} boxes {', '.join(parts)} ({shift.flipped_share:.1%} flipped)"
    if not shift.predicts_classes:
        gaps = [abs(one.new.probability - one.old.probability) for one in shift.pictures]
        return f"{shift.pictures[0].old.label} changed by {float(np.mean(gaps)):.3g} on average"
    return f"{len(shift.flipped)} {titles(shift)[2]} flipped ({shift.flipped_share:.1%})"


def moved(shift: Shift) -> str:
    """How far the attention moved, as part of a sentence."""
    if not shift.mapped:
        return "no map could be compared"
    of_what = " on the same boxes" if shift.task == DETECT else ""
    return f"the attention{of_what} moved by {shift.distance:.1%} of the picture's side"


def titles(shift: Shift) -> tuple[str, str, str]:
    """Titles of what stayed and of what flipped, and what it is called in the plural."""
    if shift.task == DETECT:
        return "box stayed, attention moved", "boxes that are lost, new or of another class", "boxes"
    if shift.task == SEGMENT:
        return "largest class stayed, attention moved", "largest class flipped", "largest classes"
    if not shift.predicts_classes:
        return "attention moved", "changed", "numbers"
    return "prediction stayed, attention moved", "prediction flipped", "predictions"


def number(shift: Shift, prediction: Prediction, digits: int = 0) -> str:
    """The probability, score or share of a prediction as a percentage; of embeddings and values the number itself."""
    if shift.predicts_classes:
        return f"{prediction.probability:.{digits}%}"
    return f"{prediction.probability:.4g}"


def _of_class(shift: Shift, one: ClassShift) -> str:
    """What became of one class."""
    parts = []
    if one.pictures:
        boxes = " boxes" if shift.task == DETECT else ""
        parts.append("no map compared" if one.distance is None else f"moved by {one.distance:.1%}")
        parts.append(f"{one.flipped} of {one.pictures}{boxes} flipped")
    if one.areas is not None:
        parts.append(f"area {one.areas[0]:.1%} -> {one.areas[1]:.1%}")
    if one.accuracy is not None:
        parts.append(f"accuracy {one.accuracy[0]:.1%} -> {one.accuracy[1]:.1%}")
    return ", ".join(parts)


def _change(shift: Shift, one: Change) -> str:
    old, new = (
        None if prediction is None else f"{prediction.label} ({number(shift, prediction)})"
        for prediction in (one.old, one.new)
    )
    if old is None or new is None:
        change = f"{'new' if old is None else 'lost'}: {old or new}"
    else:
        change = f"{old} -> {new}" if one.flipped or not shift.predicts_classes else old
    distance = "     -" if one.distance is None else f"{one.distance:6.1%}"
    return f"{distance}  {one.picture.name}  {change}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
