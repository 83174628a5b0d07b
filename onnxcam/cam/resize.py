"""Maps of another size, in NumPy."""

from __future__ import annotations

import numpy as np


def resize(maps: np.ndarray, size: tuple[int, int], interpolation: str = "bilinear") -> np.ndarray:
    """Maps `[N, h, w]` as float32 `[N, H, W]`.

    Arguments:
        interpolation: `bilinear` with half-pixel centres, as everywhere here, or `nearest` with pixel i taken from
            floor(i h / H), as PyTorch has it.
    """
    height, width = size
    if interpolation == "nearest":
        rows = np.arange(height) * maps.shape[1] // height
        columns = np.arange(width) * maps.shape[2] // width
        return np.asarray(maps[:, rows[:, None], columns], np.float32)
    down, across = linear(maps.shape[1], height), linear(maps.shape[2], width)
    return np.asarray(down @ np.asarray(maps, np.float32) @ across.T, np.float32)


def linear(old: int, new: int) -> np.ndarray:
    """The matrix `[new, old]` of linear interpolation along an axis, half-pixel centres, edges repeated."""
    places = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(places.astype(np.intp), max(old - 2, 0))
    part = (places - low).astype(np.float32)
    matrix = np.zeros((new, old), np.float32)
    matrix[np.arange(new), low] = 1 - part
    if old > 1:
        matrix[np.arange(new), low + 1] = part
    return matrix
