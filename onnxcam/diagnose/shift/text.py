"""A comparison as text for a terminal."""

from __future__ import annotations

from onnxcam.diagnose.shift.result import PictureShift, Shift

_LISTED = 10  # pictures, classes and regions of each kind


def lines(shift: Shift) -> list[str]:
    """Return the comparison as text: the answer in the first line, then what moved most."""
    total, flipped = len(shift.pictures), shift.flipped
    text = [
        f"{total} pictures: {len(flipped)} predictions flipped ({shift.flipped_share:.1%}), "
        f"the attention moved by {shift.distance:.1%} of the picture's side"
    ]
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
    stayed = [picture for picture in shift.stayed if picture.distance > 0]
    for title, some in (("prediction stayed, attention moved:", stayed), ("prediction flipped:", flipped)):
        if some:
            text += [title, *(f"  {_picture(picture)}" for picture in some[:_LISTED])]
            text += [f"  and {len(some) - _LISTED} more"] if len(some) > _LISTED else []
    text.append("by class:")
    for one in shift.classes[:_LISTED]:
        accuracy = "" if one.accuracy is None else f", accuracy {one.accuracy[0]:.1%} -> {one.accuracy[1]:.1%}"
        text.append(f"  {one.label}: moved by {one.distance:.1%}, {one.flipped} of {one.pictures} flipped{accuracy}")
    without = sum(any(picture.empty) for picture in shift.pictures)
    if without:
        text.append(f"note: {without} pictures have a map without energy in OLD or NEW; it counts as even")
    text += [] if shift.blame is None else [f"blame by depth: {shift.blame.sentence}"]
    text += [f"note: {note}" for note in shift.notes]
    return text


def _picture(picture: PictureShift) -> str:
    change = f"{picture.old.label} ({picture.old.probability:.0%})"
    if picture.flipped:
        change += f" -> {picture.new.label} ({picture.new.probability:.0%})"
    return f"{picture.distance:6.1%}  {picture.name}  {change}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"
