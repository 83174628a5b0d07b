"""Heatmaps as grey levels and as colours."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import InputError, listing, nearest
from onnxcam.image.opencv import import_cv2

Pixels = NDArray[np.uint8]

# each the name of a cv2.COLORMAP_* constant; gray is the map itself
COLORMAPS = ("viridis", "jet", "inferno", "turbo", "magma", "plasma", "cividis", "hot", "bone", "gray")
# the one that reads best on photographs with and without colour vision: benchmarks/colormaps.md
DEFAULT = "viridis"
# of overlays by default: the most, which is reached where the map is `KNEE` and falls to 0 where it is 0
OPACITY, KNEE = 0.6, 0.5


def grayscale(heatmap: NDArray[Any]) -> Pixels:
    """Convert a heatmap with values 0 to 1, [H, W], to uint8 [H, W], rounded; values outside are clipped, NaN is 0.

    Raises:
        InputError: not two-dimensional, or empty.
    """
    values = np.asarray(heatmap, np.float32)
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"the heatmap has shape {list(values.shape)}, expected [H, W]: pass one map at a time")
    low, high = values.min(), values.max()
    if not (low >= 0.0 and high <= 1.0):
        # fmax returns the number where the other operand is NaN
        values = np.fmin(np.fmax(values, np.float32(0.0)), np.float32(1.0))
    # in one pass, six times faster than numpy's four
    return np.asarray(import_cv2().convertScaleAbs(values, alpha=255.0), np.uint8)


def colorize(heatmap: NDArray[Any], colormap: str = DEFAULT) -> Pixels:
    """Colour a heatmap with values 0 to 1, [H, W]: uint8 [H, W, 3] RGB.

    Raises:
        InputError: no such colour map, or the heatmap is not two-dimensional.
    """
    return paint(grayscale(heatmap), colormap)


def paint(gray: Pixels, colormap: str = DEFAULT) -> Pixels:
    """Colour grey levels, uint8 [H, W]: uint8 [H, W, 3] RGB."""
    return look_up(gray, palette(colormap))


def look_up(gray: Pixels, table: Pixels) -> Pixels:
    """Show grey levels, uint8 [H, W], in the colours of a table, uint8 [256, 3]: twenty times faster than indexing."""
    return np.asarray(import_cv2().applyColorMap(gray, table[:, None]), np.uint8)


@cache
def palette(colormap: str) -> Pixels:
    """The colour of each of the 256 grey levels, uint8 [256, 3] RGB.

    Raises:
        InputError: no such colour map.
    """
    if colormap not in COLORMAPS:
        close = nearest(str(colormap), COLORMAPS, 1)[0]
        raise InputError(f"there is no colormap {colormap!r}; did you mean {close!r}? Expected {listing(COLORMAPS)}")
    levels = np.arange(256, dtype=np.uint8)[:, None]
    if colormap == "gray":
        return np.repeat(levels, 3, axis=1)
    cv2 = import_cv2()
    table = np.asarray(cv2.applyColorMap(levels, getattr(cv2, f"COLORMAP_{colormap.upper()}")), np.uint8)
    return np.ascontiguousarray(table[:, 0, ::-1])


def blend(pixels: Pixels, colors: Pixels, alpha: float, out: Pixels | None = None) -> Pixels:
    """Compute `(1 - alpha) * pixels + alpha * colors`, both uint8 of one shape."""
    return np.asarray(import_cv2().addWeighted(pixels, 1.0 - alpha, colors, alpha, 0.0, dst=out), np.uint8)


def lay(
    pixels: Pixels, gray: Pixels, alpha: float | None = None, colormap: str = DEFAULT, out: Pixels | None = None
) -> Pixels:
    """Lay the colours of grey levels, uint8 [H, W], over a picture, uint8 [H, W, 3] RGB.

    Args:
        pixels: the picture.
        gray: the map's values, 255 for 1.
        alpha: opacity of the colours; None: `OPACITY * min(1, v / KNEE)` of the map's value v, so that the picture
            stays as it is where the map is 0.
        colormap: one of COLORMAPS.
        out: is written to, uint8 [H, W, 3], whose rows may be parts of longer ones; None: a new array.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    if alpha is not None:
        return blend(pixels, paint(gray, colormap), alpha, out)
    cv2 = import_cv2()
    # each new array costs more than the arithmetic
    mixed = cv2.cvtColor(remaining(gray), cv2.COLOR_GRAY2RGB, dst=out)
    cv2.multiply(pixels, mixed, dst=mixed, scale=1 / 255)
    return np.asarray(cv2.add(mixed, cv2.applyColorMap(gray, _weighted(colormap)), dst=mixed), np.uint8)


def remaining(gray: Pixels) -> Pixels:
    """What the colours of grey levels, uint8 [H, W], leave of the picture below: 255 for all of it."""
    cv2 = import_cv2()
    # 255 - OPACITY v / KNEE where that is more: half the time of a table. Further down its size does not matter
    rest = cv2.convertScaleAbs(gray, alpha=-OPACITY / KNEE, beta=255.0)
    # not cv2.max: of a picture of one pixel it returns four values (findings/opencv_max_of_one_pixel.sh)
    return np.asarray(np.maximum(rest, np.uint8(round(255 * (1 - OPACITY))), out=np.asarray(rest)), np.uint8)


@cache
def _weighted(colormap: str) -> Pixels:
    """Per grey level its colour times its opacity, uint8 [256, 1, 3]."""
    opacity = OPACITY * np.minimum(np.arange(256) / 255 / KNEE, 1.0)
    return np.rint(palette(colormap) * opacity[:, None]).astype(np.uint8)[:, None]
