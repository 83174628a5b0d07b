"""Resizing pictures exactly as Pillow does (antialiased), or as OpenCV does (not antialiased).

torchvision, timm and Hugging Face resize PIL images, and a model's accuracy was measured on those pixels. Pillow
resamples in two passes, first along the width, with fixed-point weights of 22 fractional bits, and rounds to 8 bits
after each. This module sums the same integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcam.image.opencv import import_cv2

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

# PRECISION_BITS in Pillow's Resample.c: 32 bits less 8 for the pixel and 2 for overshoot
_BITS = 22
_HALF = 1 << (_BITS - 1)
_CHUNK = 1 << 19  # bytes summed at a time: few calls, and the buffers stay in a core's cache


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


def resize(
    pixels: Pixels,
    size: tuple[int, int],
    interpolation: str = "bilinear",
    antialias: bool = True,
    window: tuple[slice, slice] | None = None,
) -> Pixels:
    """Resize a picture.

    Args:
        pixels: uint8 [H, W, C].
        size: the new height and width.
        interpolation: one of INTERPOLATIONS; "area" is Pillow's BOX when antialiased, OpenCV's INTER_AREA otherwise.
        antialias: True: Pillow's resampling, whose kernel grows with the reduction. False: `cv2.resize`. "nearest"
            takes the pixel under the new pixel's centre either way.
        window: rows and columns of the result to compute, not empty; None for all.

    Returns:
        uint8 [h, w, C], or its window.
    """
    window = window or (slice(0, size[0]), slice(0, size[1]))
    if pixels.shape[:2] == size:
        return pixels[window]
    if interpolation == "nearest":
        rows, columns = (_nearest(old, new) for old, new in zip(pixels.shape[:2], size, strict=True))
        return pixels[rows[window[0], None], columns[window[1]]]
    if antialias:
        return _resize_antialiased(pixels, size, interpolation, window)
    cv2 = import_cv2()
    flags = {
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }
    resized = cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=flags[interpolation])
    return np.asarray(resized, np.uint8).reshape(*size, pixels.shape[2])[window]


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    step = old / new
    # Pillow adds the step pixel by pixel, and cumsum rounds in the same order
    positions = np.cumsum(np.concatenate([[step * 0.5], np.full(new - 1, step)]))
    return np.minimum(positions.astype(np.intp), old - 1)


def _resize_antialiased(
    pixels: Pixels, size: tuple[int, int], interpolation: str, window: tuple[slice, slice]
) -> Pixels:
    height, width, channels = pixels.shape
    first, value = weights(height, size[0], interpolation)
    first, value = first[window[0]], value[window[0]]
    # the rows that the second pass reads
    rows = window[0] if height == size[0] else slice(int(first[0]), min(int(first[-1]) + value.shape[1], height))
    pixels = pixels[rows]
    if width == size[1]:
        pixels = pixels[:, window[1]]
    else:
        across, shares = weights(width, size[1], interpolation)
        across, shares = across[window[1]], shares[window[1]]
        left, right = int(across[0]), min(int(across[-1]) + shares.shape[1], width)
        columns = _turn(pixels[:, left:right]).reshape(right - left, -1)
        columns = _resample(columns, across - left, shares)
        pixels = _turn(columns.reshape(len(columns), -1, channels))
    if height != size[0]:
        flat = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
        pixels = _resample(flat, first - rows.start, value).reshape(len(first), -1, channels)
    return pixels


def _turn(pixels: Pixels) -> Pixels:
    """[H, W, C] to contiguous [W, H, C]."""
    height, width, channels = pixels.shape
    turned: Any = import_cv2().transpose(pixels)
    return np.asarray(turned, np.uint8).reshape(width, height, channels)


def resize_values(
    values: NDArray[np.float32],
    size: tuple[int, int],
    interpolation: str = "bilinear",
    antialias: bool = True,
    window: tuple[slice, slice] | None = None,
) -> NDArray[np.float32]:
    """Resize values without rounding, as Pillow does its mode F (antialiased), or as OpenCV does floats.

    Args:
        values: float32 [H, W, C], any number of channels.
        size, interpolation, antialias, window: as of `resize`.
    """
    window = window or (slice(0, size[0]), slice(0, size[1]))
    if values.shape[:2] == size:
        return values[window]
    if interpolation == "nearest":
        rows, columns = (_nearest(old, new) for old, new in zip(values.shape[:2], size, strict=True))
        return values[rows[window[0], None], columns[window[1]]]
    if not antialias:
        cv2 = import_cv2()
        flag = {
            "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA,
            "lanczos": cv2.INTER_LANCZOS4,
        }[interpolation]  # fmt: skip
        planes = [cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=flag) for plane in _planes(values)]
        return np.stack(planes, axis=2).astype(np.float32, copy=False)[window]
    across = _resample_floats(values.swapaxes(0, 1), size[1], interpolation, window[1]).swapaxes(0, 1)
    return np.ascontiguousarray(_resample_floats(across, size[0], interpolation, window[0]))


def _planes(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [values[..., channel] for channel in range(values.shape[2])]


def _resample_floats(rows: NDArray[np.float32], size: int, interpolation: str, window: slice) -> NDArray[np.float32]:
    """Resample [old, m, C] to [new, m, C] along the first axis; the window of it."""
    if len(rows) == size:
        return rows[window]
    first, value = _weights(len(rows), size, interpolation)
    resized = np.empty((size, *rows.shape[1:]), np.float32)[window]
    for place, (start, shares) in enumerate(zip(first[window], value[window], strict=True)):
        stop = min(int(start) + len(shares), len(rows))
        resized[place] = np.tensordot(shares[: stop - start], rows[start:stop].astype(np.float64), axes=1)
    return resized


@lru_cache(maxsize=64)
def weights(old: int, new: int, interpolation: str) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Pillow's `precompute_coeffs`: for each of `new` pixels the first old pixel, [new], and weights, [new, taps].

    Weights are multiples of 2**-22, as integers, and 0 beyond the last old pixel of the kernel's support.
    """
    first, value = _weights(old, new, interpolation)
    fixed = (value * (1 << _BITS) + np.copysign(0.5, value)).astype(np.int32)
    # trailing weights of 0 are cut
    fixed = fixed[:, : max(int(np.max(np.nonzero(fixed.any(axis=0))[0], initial=0)) + 1, 1)]
    first.flags.writeable = fixed.flags.writeable = False  # shared by all callers
    return first, fixed


def _weights(old: int, new: int, interpolation: str) -> tuple[NDArray[np.intp], Floats]:
    """The same as floating-point numbers that sum to 1."""
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
    return first, np.divide(value, total, out=value, where=total != 0.0)


def _resample(rows: Pixels, first: NDArray[np.intp], value: NDArray[np.int32]) -> Pixels:
    """Resample uint8 [old, m] to uint8 [new, m] along the first axis, with `weights`."""
    line, taps = rows.shape[1], value.shape[1]
    source = first[:, None] + np.arange(taps)
    resized = np.empty((len(first), line), np.uint8)
    step = min(max(_CHUNK // (taps * line), 1), len(first))
    values, sums = np.empty((step, taps, line), np.uint8), np.empty((step, line), np.int32)
    for start in range(0, len(first), step):
        some = slice(start, start + step)
        part_values, part_sums = values[: len(first[some])], sums[: len(first[some])]
        # pixels beyond the last old one have weight 0, so any pixel may stand in for them
        np.take(rows, source[some], axis=0, out=part_values, mode="clip")
        # not a matrix product: BLAS threads waiting for a busy core made this a hundred times slower
        np.einsum("nt,ntm->nm", value[some], part_values, out=part_sums, dtype=np.int32, casting="unsafe")
        part_sums += _HALF
        part_sums >>= _BITS
        np.maximum(part_sums, 0, out=part_sums)  # np.clip spends as long again in Python
        np.minimum(part_sums, 255, out=resized[some], casting="unsafe")
    return resized
