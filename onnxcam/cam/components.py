"""The sign of a component, which is arbitrary: the one with which its map correlates with the mean over channels."""

from __future__ import annotations

import numpy as np


def signed(coordinates: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Coordinates `[h·w]` of the places of `[C, h, w]` as a map, float32 `[h, w]`."""
    return with_sign(coordinates, one.mean(axis=0, dtype=np.float64))


def with_sign(coordinates: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """`signed`, from the mean over channels, float64 `[h, w]`."""
    sign = -1.0 if float((coordinates * (mean - mean.mean()).reshape(-1)).sum()) < 0 else 1.0
    return np.asarray((sign * coordinates).reshape(mean.shape), np.float32)
