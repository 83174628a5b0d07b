"""The distance of two maps of the same picture: how far energy has to move, as a sliced Wasserstein distance.

A map counts as a distribution of energy over the picture. Along a direction, the Wasserstein distance of two of them is
the area between their cumulative sums (https://arxiv.org/abs/1503.05464); the mean over four directions is scaled such
that energy which moves by a tenth of the picture's side is 0.1 away.

Of the statistics in use it was chosen by measured power (benchmarks/compare.md): total variation, Pearson's
correlation, Hellinger's and Jensen and Shannon's distance count cells that differ, and do not tell a neighbouring cell
from the other end of the picture. Retrainings of one network differ in most cells; a shortcut moves energy far.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

STATISTIC = "sliced Wasserstein"
# per direction the steps along width and height
_DIRECTIONS = ((1.0, 0.0), (0.0, 1.0), (0.5**0.5, 0.5**0.5), (0.5**0.5, -(0.5**0.5)))
_SCALE = float(np.mean([abs(across) for across, _ in _DIRECTIONS]))  # of a step along the width


def shares(maps: np.ndarray) -> np.ndarray:
    """Return maps `[N, h, w]` as distributions of energy, float64 `[N, h, w]`, each of sum 1.

    Values below zero or not finite count as zero; a comparison refuses maps that are not finite before. A map without
    energy stays zero everywhere.
    """
    values = np.asarray(maps, np.float64)
    values = np.where(np.isfinite(values), np.maximum(values, 0.0), 0.0)
    # divided by the largest value first: sums of values near the largest number of float64 would overflow
    largest = values.max(axis=(1, 2), keepdims=True, initial=0.0)
    values = np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)
    total = values.sum(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(values, total, out=np.zeros_like(values), where=total > 0))


def empty(distributions: np.ndarray) -> np.ndarray:
    """Return which of the distributions `[N, h, w]` have no energy, bool `[N]`."""
    return np.asarray(distributions.max(axis=(1, 2), initial=0.0) == 0)


def even(distributions: np.ndarray) -> np.ndarray:
    """Return the distributions `[N, h, w]`, those without energy spread evenly."""
    blank = empty(distributions)
    if not blank.any():
        return distributions
    return np.asarray(np.where(blank[:, None, None], 1 / distributions[0].size, distributions))


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how far energy moves between each pair of distributions, float64 `[N]`, in parts of the picture's side.

    A map without energy counts as one that is the same everywhere: it points nowhere. Two of them are equal.

    Arguments:
        a, b: as of `shares`, `[N, h, w]`; `a` may also be `[1, h, w]`.
    """
    height, width = a.shape[1:]
    difference = (even(a) - even(b)).reshape(-1, height * width)
    total = np.zeros(len(difference))
    for order, gaps in _slices(height, width):
        total += np.abs(np.cumsum(difference[:, order], axis=1)[:, :-1]) @ gaps
    return np.asarray(total / (len(_DIRECTIONS) * _SCALE))


@lru_cache(32)
def _slices(height: int, width: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Per direction the cells in order, and the gaps between them, in parts of the picture's side."""
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    slices = []
    for across, down in _DIRECTIONS:
        position = (across * x[None, :] + down * y[:, None]).ravel()
        order = np.argsort(position, kind="stable")
        gaps = np.diff(position[order])
        for shared in (order, gaps):
            shared.flags.writeable = False
        slices.append((order, gaps))
    return tuple(slices)
