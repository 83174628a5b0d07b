"""The distance of two maps of the same picture: total variation of their energy."""

from __future__ import annotations

import numpy as np

STATISTIC = "total variation"


def shares(maps: np.ndarray) -> np.ndarray:
    """Return maps `[N, h, w]` as distributions of energy, float64 `[N, h * w]`, each of sum 1.

    Values below zero or not finite count as zero. A map without energy stays zero everywhere.
    """
    flat = np.asarray(maps, np.float64).reshape(len(maps), -1)
    flat = np.where(np.isfinite(flat), np.maximum(flat, 0.0), 0.0)
    # the largest value first: sums of values near the largest number of float64 would overflow
    flat = flat / np.maximum(flat.max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    total = flat.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(flat, total, out=np.zeros_like(flat), where=total > 0))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return 1/2 sum |a - b| of each pair of distributions, float64 `[N]`: the part of the energy that lies elsewhere.

    0 for equal maps, 1 for maps that share no cell. Two maps without energy are equal; one without energy is 1 from
    every map that has some.

    Arguments:
        a, b: as of `shares`, `[N, cells]`.
    """
    apart = 0.5 * np.abs(a - b).sum(axis=1)
    empty = (a.sum(axis=1) == 0) != (b.sum(axis=1) == 0)
    return np.asarray(np.where(empty, 1.0, np.clip(apart, 0.0, 1.0)))
