"""The layer of each box: the one of a feature pyramid from which its scores are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from onnxcam.errors import listing
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
    if not every or subject is None or subject.candidate is None:
        return default
    for level in every:
        if _contains(level, subject.candidate):
            return (level.name,)
    if len(every) < 2 or any(level.candidates is not None for level in every):
        return default
    return (_by_gradient([level.name for level in every], examination, objective) or default[0],)


def doubts(manifest: Manifest, layers: Sequence[str], objectives: Sequence[Objective]) -> list[str]:
    """Sentences about boxes that are explained at other layers than the level which their scores are computed from.

    Arguments:
        layers: at which they are explained.
    """
    every = {level.name: level for level in levels(manifest)}
    chosen_levels = [every[name] for name in layers if name in every]
    if not every or any(level.candidates is None for level in every.values()):
        return []
    sentences = []
    for objective in objectives:
        candidate = getattr(getattr(objective, "subject", None), "candidate", None)
        if candidate is None or any(_contains(level, candidate) for level in chosen_levels):
            continue
        right = [name for name, level in every.items() if _contains(level, candidate)]
        if right and not chosen_levels:
            continue  # a layer that is no level: of the backbone, or inside a head
        remedy = (
            f"leave the layer out, or name {right[0]!r}"
            if right
            else "no layer of the file is of its level: leave the layers out when it is exported or opened"
        )
        sentences.append(
            f"layer {listing(list(layers))} is not the level of the feature pyramid that the scores of box {candidate} "
            f"are computed from: at most a part of them passes it, so that its map there says little; {remedy}"
        )
    return list(dict.fromkeys(sentences))


def _contains(level: Level, candidate: int) -> bool:
    return any(start <= candidate < stop for start, stop in level.candidates or ())


def _by_gradient(names: Sequence[str], examination: Examination, objective: Objective) -> str | None:
    """The last layer at which the objective has a gradient: a level may be computed from those before it."""
    for name in reversed(examination.in_graph_order(names)):
        if examination.view(name, objective).gradients.any():
            return name
    return None
