"""Coloured heatmaps laid over the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import InputError
from onnxcam.image.colormap import DEFAULT, grayscale, lay
from onnxcam.image.outlines import Outline, outline
from onnxcam.image.picture import Picture, as_pixels
from onnxcam.image.visible import Marks, Rectangle, within

Pixels = NDArray[np.uint8]


def overlay(
    picture: Picture | Pixels,
    heatmap: NDArray[Any],
    alpha: float | None = None,
    colormap: str = DEFAULT,
    visible: Sequence[Rectangle] | None = None,
    outlines: Sequence[Outline] = (),
) -> Pixels:
    """Lay the coloured heatmap over the picture: `(1 - alpha) * picture + alpha * colours`.

    Args:
        picture: a Picture, or uint8 [H, W, 3] RGB.
        heatmap: values 0 to 1, [H, W], of the picture's size.
        alpha: opacity of the colours, 0 shows the picture alone, 1 the heatmap alone. None: 0.6 min(1, 2 v) where the
            heatmap has the value v, so that the picture stays as it is where the heatmap is 0.
        colormap: one of COLORMAPS.
        visible: the parts of the picture that the heatmap covers, None for all of it; the rest is dimmed, hatched and
            framed, whatever the heatmap says there.
        outlines: boxes and regions drawn on top, see `onnxcam.image.outline`.

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
    check_alpha(alpha)
    mixed = draw(pixels, grayscale(heatmap), alpha, colormap, Marks.of(heatmap.shape, visible))
    return outline(mixed, outlines) if outlines else mixed


def draw(
    pixels: Pixels,
    gray: Pixels,
    alpha: float | None,
    colormap: str,
    marks: Marks,
    first: int = 0,
) -> Pixels:
    """Lay grey levels, uint8 [h, W], over rows `first` and following of a picture, with the marks on it.

    Args:
        pixels: these rows, uint8 [h, W, 3] RGB.
        alpha, colormap: as in `overlay`.
        marks: of the whole picture.
    """
    if not marks:
        return lay(pixels, gray, alpha, colormap)
    drawn = np.empty_like(pixels)  # hidden parts are drawn by the marks alone: often a third of the picture
    for part in within(marks.visible, first, len(pixels)):
        place = slice(part.y0 - first, part.y1 - first), slice(part.x0, part.x1)
        lay(pixels[place], gray[place], alpha, colormap, out=drawn[place])
    return marks.draw(drawn, pixels, first)


def check_alpha(alpha: float | None) -> None:
    """Refuse an opacity outside 0 to 1.

    Raises:
        InputError: alpha is a number outside 0 to 1.
    """
    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha is {alpha!r}, expected 0 (picture alone) to 1 (heatmap alone), or None")
