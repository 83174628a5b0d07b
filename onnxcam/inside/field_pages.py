"""Receptive fields drawn on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image
from onnxcam.image import sheet
from onnxcam.inside import boxes
from onnxcam.inside.receptive_fields import Field, of_tensor

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

_COLUMNS = 2


def measure(
    explainer: Explainer, prepared: tuple[image.Picture, np.ndarray, image.Geometry], fields: Sequence[Field]
) -> list[tuple[Field, tuple[int, int], np.ndarray]]:
    """The effective field of each layer's middle cell: the field, the cell, and float32 `[H, W]`."""
    _, tensor, _ = prepared
    measured = []
    for field in fields:
        cell = (field.grid[0] // 2, field.grid[1] // 2)
        measured.append((field, cell, of_tensor(explainer, tensor, field.layer, cell)))
    return measured


def share(effect: np.ndarray, mass: float = 0.9) -> float:
    """The smallest share of the pixels that has this part of all effect; 0 where there is none."""
    values = np.sort(effect.ravel().astype(np.float64))[::-1]
    total = values.sum()
    return 0.0 if total <= 0 else float((np.searchsorted(np.cumsum(values), mass * total) + 1) / values.size)


def draw(
    prepared: tuple[image.Picture, np.ndarray, image.Geometry],
    measured: Sequence[tuple[Field, tuple[int, int], np.ndarray]],
    title: str,
) -> sheet.Pixels:
    """Draw a page: per layer the picture, its theoretical field as a box, and the effective one as light.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    picture, _, geometry = prepared
    cells = []
    for field, cell, effect in measured:
        strength = np.sqrt(image.normalize(effect, "max"))  # as Luo et al. show them: what is weak stays visible
        shade = geometry.to_picture(strength)[..., None]
        lit = picture.pixels * (0.25 + 0.75 * shade) + np.array((255, 176, 0)) * (0.55 * shade)
        pixels = np.clip(lit, 0, 255).astype(np.uint8)
        box = field.box(cell)
        if box is not None:
            pixels = boxes.outlined(pixels, boxes.to_picture(box, geometry))
        size = "whole picture" if field.mixing and field.whole else f"{field.size[1]:g} x {field.size[0]:g} pixels"
        cells.append(sheet.Cell(pixels, f"{field.layer}  cell {cell[0]}, {cell[1]}", size))
    notes = [
        "Box: pixels that can reach the cell. Light: how much they do in this picture. Outside the box: exactly 0.",
    ]
    return sheet.page([sheet.heading(title, notes), sheet.grid(cells, _COLUMNS)])


def describe(measured: Sequence[tuple[Field, tuple[int, int], np.ndarray]]) -> list[dict[str, Any]]:
    """As JSON, per layer the field, the cell, its box, and the share of pixels that has 90 % of the effect."""
    return [
        field.describe() | {"cell": list(cell), "box": field.box(cell), "effective_share_90": round(share(effect), 5)}
        for field, cell, effect in measured
    ]
