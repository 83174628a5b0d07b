"""Coloured heatmaps laid over the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import InputError
from onnxcam.image.colormap import blend, colorize
from onnxcam.image.picture import Picture, as_pixels

Pixels = NDArray[np.uint8]


def overlay(picture: Picture | Pixels, heatmap: NDArray[Any], alpha: float = 0.5, colormap: str = "jet") -> Pixels:
    """Lay the coloured heatmap over the picture: `(1 - alpha) * picture + alpha * colours`.

    Args:
        picture: a Picture, or uint8 [H, W, 3] RGB.
        heatmap: values 0 to 1, [H, W], of the picture's size.
        alpha: 0 shows the picture alone, 1 the heatmap alone.
        colormap: one of COLORMAPS.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        InputError: sizes differ, alpha is outside 0 to 1, or there is no such colour map.
    """
    pixels = as_pixels(picture)
    if heatmap.shape != pixels.shape[:2]:
        raise InputError(
            f"the heatmap has shape {list(heatmap.shape)} but the picture has {list(pixels.shape[:2])}: map it back "
            "onto the picture first (Geometry.to_picture)"
        )
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha is {alpha!r}, expected 0 (picture alone) to 1 (heatmap alone)")
    return blend(pixels, colorize(heatmap, colormap), alpha)
