"""What a batch came to, told picture by picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.explain.examination import fuse
from onnxcam.explain.explanation import Explanation, Map
from onnxcam.targets.objectives import LOGIT, Objective

_SHOWN = 5  # predictions kept with an explanation


class Findings(NamedTuple):
    """Scores and maps of a batch by one method.

    Attributes:
        scores, probabilities: `[N, K]`, `[N, classes]`.
        classes: those explained, `[N, k]`.
        raw: per layer the maps `[N, k, h, w]`, after ReLU, not normalised.
        method, normalize, fusion: how they were made, and how they become one map.
        size: height and width of the model's input.
        labels: class names by index, if any are known.
        warnings: what is doubtful about every picture.
        about: what the model says about itself.
        objective: what of the classes is explained; their logits if None.
    """

    scores: np.ndarray
    probabilities: np.ndarray
    classes: np.ndarray
    raw: list[np.ndarray]
    method: str
    normalize: str
    size: tuple[int, int]
    fusion: str
    labels: list[str] | None
    warnings: list[str]
    about: dict[str, Any]
    objective: Objective | None = None

    def explanation(
        self, row: int, picture: image.Picture, geometry: image.Geometry, places: Sequence[int], layer: Any
    ) -> Explanation:
        """One row's explanation from the maps of the layers at these places; `layer` is what they are called."""
        maps = []
        for k, index in enumerate(self.classes[row]):
            held = [np.ascontiguousarray(self.raw[place][row, k]) for place in places]
            fused = fuse([one[None] for one in held], self.normalize, self.size, self.fusion)[0]
            maps.append(
                Map(
                    int(index),
                    name_of(int(index), self.labels),
                    float(self.probabilities[row, index]),
                    geometry.to_picture(fused),
                    held if isinstance(layer, list) else held[0],
                )
            )
        kind, other = (LOGIT, None) if self.objective is None else self.objective.describe(row)
        return Explanation(
            picture.pixels,
            self._predictions(row),
            maps,
            self.method,
            layer,
            [*self.warnings, *_doubts(maps, self.scores[row])],
            picture.name,
            self.about,
            kind=kind,
            other=None if other is None else (other, name_of(other, self.labels)),
        )

    def _predictions(self, row: int) -> list[tuple[int, str, float]]:
        probabilities = self.probabilities[row]
        best = np.argsort(-probabilities, kind="stable")[:_SHOWN]
        return [(int(i), name_of(int(i), self.labels), float(probabilities[i])) for i in best]


def name_of(index: int, labels: Sequence[str] | None) -> str:
    """The name of a class; its index as text where no labels are known."""
    return labels[index] if labels is not None else str(index)


def _doubts(maps: list[Map], scores: np.ndarray) -> list[str]:
    found = []
    if not np.isfinite(scores).all():
        found.append("the scores are not finite: the map means nothing; check the model and its preprocessing")
    for held in maps:
        raw = held.raw_map if isinstance(held.raw_map, list) else [held.raw_map]
        if not any(layer_map.any() for layer_map in raw):
            found.append(
                f"the map of {held.label!r} is zero everywhere: nothing at this layer speaks for the class; "
                "try another layer or method"
            )
        elif not held.heatmap.any():
            found.append(
                f"the map of {held.label!r} shows nothing: it is the same everywhere, or lies outside the picture; "
                "normalize='max' keeps a map that is the same everywhere"
            )
    return found
