"""The sign of a component, which is arbitrary: the one with which its map correlates with the mean over channels."""

from __future__ import annotations

import numpy as np


def signed(coordinates: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Coordinates `[h·w]` of the places of `[C, h, w]` as a map, float32 `[h, w]`."""
    mean = one.mean(axis=0, dtype=np.float64)
    sign = -1.0 if float((coordinates * (mean - mean.mean()).reshape(-1)).sum()) < 0 else 1.0
    return np.asarray((sign * coordinates).reshape(one.shape[1:]), np.float32)
