"""Pictures drawn of an explanation: overlays, panels, galleries, with the boxes and regions that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxcam import image
from onnxcam.explain.outlines import name, of_map
from onnxcam.explain.saving import Drawing, unit

if TYPE_CHECKING:
    from onnxcam.explain.explanation import Explanation


def overlay(explanation: Explanation, style: Drawing) -> np.ndarray:
    """The heatmap over the picture, see `Explanation.overlay`."""
    heatmap = unit(explanation.heatmap)
    return image.overlay(
        explanation.picture, heatmap, style.alpha, style.colormap, explanation.visible, of_map(explanation)
    )


def panel(explanation: Explanation, style: Drawing, levels: np.ndarray | None = None) -> np.ndarray:
    """Picture, heatmap and overlay side by side, see `Explanation.panel`."""
    return image.panel(
        explanation.picture,
        unit(explanation.heatmap),
        label=explanation.title,
        probability=None if explanation.numeric else explanation.probability,
        method=explanation.method,
        alpha=style.alpha,
        colormap=style.colormap,
        visible=explanation.visible,
        notes=explanation.notes,
        blank=(explanation.maps[0].blank or "").partition(":")[0],
        outlines=of_map(explanation),
        levels=levels,
    )


def gallery(
    explanation: Explanation, named: Sequence[tuple[str, Explanation]], style: Drawing, notes: Sequence[str] = ()
) -> np.ndarray:
    """The picture and the overlays of several explanations of it."""
    reasons: dict[str, list[str]] = {}
    for caption, other in named:
        if other.maps[0].blank is not None:
            reasons.setdefault(other.maps[0].blank, []).append(caption)
    listed = [f"{', '.join(captions)}: {reason}" for reason, captions in reasons.items()]
    return image.gallery(
        explanation.picture,
        [(caption, unit(other.heatmap)) for caption, other in named],
        label=explanation.title,
        probability=None if explanation.numeric else explanation.probability,
        alpha=style.alpha,
        colormap=style.colormap,
        visible=[other.visible for _, other in named],
        notes=[*listed, *notes],
        outlines=[of_map(other) for _, other in named],
    )


def several(explanation: Explanation, style: Drawing, label: str) -> np.ndarray:
    """The picture and the overlay of each of its maps: of each box, or of each class of a segmentation."""
    maps = explanation.maps
    return image.gallery(
        explanation.picture,
        [(name(one), unit(one.heatmap)) for one in maps],
        label=label,
        alpha=style.alpha,
        colormap=style.colormap,
        visible=[explanation.visible] * len(maps),
        notes=[f"{name(one)}: {one.blank}" for one in maps if one.blank is not None],
        outlines=[of_map(explanation, one) for one in maps],
    )
