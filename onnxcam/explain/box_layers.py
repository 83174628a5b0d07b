"""The layer of each box: the one of a feature pyramid from which its scores are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from onnxcam.network.manifest import Manifest
from onnxcam.targets.objectives import Objective

if TYPE_CHECKING:
    from onnxcam.explain.examination import Examination


class Level(NamedTuple):
    """A layer of a pyramid.

    Attributes:
        name: of the layer.
        candidates: the candidates computed from it, as ranges [start, stop); None where they depend on the picture.
    """

    name: str
    candidates: list[tuple[int, int]] | None


def levels(manifest: Manifest) -> list[Level]:
    """The layers of a detector's pyramid, in graph order; none where there is no pyramid."""
    entries = [entry for entry in manifest["layers"] if entry.get("level")]
    return [
        Level(entry["name"], None if entry.get("candidates") is None else [(a, b) for a, b in entry["candidates"]])
        for entry in entries
    ]


def choose(
    manifest: Manifest, default: tuple[str, ...], examination: Examination, objective: Objective
) -> tuple[str, ...]:
    """The layer at which one objective is explained.

    Arguments:
        default: the layer of what is no box, or of no level.
    """
    subject = getattr(objective, "subject", None)
    every = levels(manifest)
    if len(every) < 2 or subject is None or subject.candidate is None:
        return default
    for level in every:
        if level.candidates is not None and any(a <= subject.candidate < b for a, b in level.candidates):
            return (level.name,)
    if any(level.candidates is not None for level in every):
        return default
    return (_by_gradient([level.name for level in every], examination, objective) or default[0],)


def _by_gradient(names: Sequence[str], examination: Examination, objective: Objective) -> str | None:
    """The last layer at which the objective has a gradient: a level may be computed from those before it."""
    for name in reversed(names):
        if examination.view(name, objective).gradients.any():
            return name
    return None
