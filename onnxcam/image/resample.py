"""Resizing pictures exactly as Pillow does (antialiased), or as OpenCV does (not antialiased).

torchvision, timm and Hugging Face resize PIL images; a model's accuracy was measured on those pixels. Pillow resamples
in two passes, first along the width, with fixed-point weights of 22 fractional bits, and rounds to 8 bits after each.
The same integers are summed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcam.image.opencv import import_cv2

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

# PRECISION_BITS in Pillow's Resample.c: 32 bits less 8 for the pixel and 2 for overshoot.
_BITS = 22
_HALF = 1 << (_BITS - 1)


def _box(x: Floats) -> Floats:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _triangle(x: Floats) -> Floats:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: Floats) -> Floats:
    """Keys' kernel with a = -0.5 (Catmull-Rom)."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)


_KERNELS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "area": (_box, 0.5),
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "area", "lanczos")


def resize(pixels: Pixels, size: tuple[int, int], interpolation: str = "bilinear", antialias: bool = True) -> Pixels:
    """Resize a picture.

    Args:
        pixels: uint8 [H, W, C].
        size: the new height and width.
        interpolation: one of INTERPOLATIONS; "area" is Pillow's BOX when antialiased, OpenCV's INTER_AREA otherwise.
        antialias: True: Pillow's resampling, whose kernel grows with the reduction. False: `cv2.resize`. "nearest"
            takes the pixel under the new pixel's centre either way.

    Returns:
        uint8 [h, w, C].
    """
    if pixels.shape[:2] == size:
        return pixels
    if interpolation == "nearest":
        rows, columns = (_nearest(old, new) for old, new in zip(pixels.shape[:2], size, strict=True))
        return pixels[rows[:, None], columns]
    if antialias:
        return _resize_antialiased(pixels, size, interpolation)
    cv2 = import_cv2()
    flags = {
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }
    resized = cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=flags[interpolation])
    return np.asarray(resized, np.uint8).reshape(*size, pixels.shape[2])


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    step = old / new
    # Pillow adds the step pixel by pixel, and cumsum rounds in the same order.
    positions = np.cumsum(np.concatenate([[step * 0.5], np.full(new - 1, step)]))
    return np.minimum(positions.astype(np.intp), old - 1)


def _resize_antialiased(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    height, width, channels = pixels.shape
    if width != size[1]:
        columns = _turn(pixels).reshape(width, height * channels)
        pixels = _turn(_resample(columns, size[1], interpolation).reshape(size[1], height, channels))
    if height != size[0]:
        rows = np.ascontiguousarray(pixels).reshape(height, size[1] * channels)
        pixels = _resample(rows, size[0], interpolation).reshape(size[0], size[1], channels)
    return pixels


def _turn(pixels: Pixels) -> Pixels:
    """[H, W, C] to contiguous [W, H, C]."""
    height, width, channels = pixels.shape
    turned: Any = import_cv2().transpose(np.ascontiguousarray(pixels))
    return np.asarray(turned, np.uint8).reshape(width, height, channels)


def weights(old: int, new: int, interpolation: str) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Pillow's `precompute_coeffs`: for each of `new` pixels the first old pixel, [new], and weights, [new, taps].

    Weights are multiples of 2**-22, as integers, and 0 beyond the last old pixel that counts.
    """
    kernel, support = _KERNELS[interpolation]
    scale = old / new
    stretch = max(scale, 1.0)
    support *= stretch
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    stop = np.minimum((centre + support + 0.5).astype(np.intp), old)
    taps = np.arange(math.ceil(support) * 2 + 1)
    value = kernel((taps + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch))
    value[taps >= (stop - first)[:, None]] = 0.0
    total = value.sum(axis=1, keepdims=True)
    value = np.divide(value, total, out=value, where=total != 0.0)
    return first, (value * (1 << _BITS) + np.copysign(0.5, value)).astype(np.int32)


def _resample(rows: Pixels, new: int, interpolation: str) -> Pixels:
    """uint8 [old, m] to uint8 [new, m] along the first axis."""
    old = rows.shape[0]
    first, value = weights(old, new, interpolation)
    result = np.empty((new, rows.shape[1]), np.uint8)
    for index, start in enumerate(first):
        taps = value[index, : old - start]
        # Not a matrix product: BLAS threads that wait for a busy core made this a hundred times slower.
        total = np.einsum("t,tm->m", taps, rows[start : start + len(taps)], dtype=np.int32, casting="unsafe")
        total += _HALF
        total >>= _BITS
        np.clip(total, 0, 255, out=total)
        result[index] = total
    return result
