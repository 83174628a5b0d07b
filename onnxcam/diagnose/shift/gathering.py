"""Whether a training's attention gathers at the same places of all pictures: beside the distance, what a verdict sees.

A shortcut, such as a mark, draws attention to one place on every picture. Two trainings also differ, but where one of
them has more energy than the others changes from picture to picture. So the energy that a training gains over the
others is taken tile by tile, and its mean over the pictures is divided by its standard deviation over them.

Chosen by measured power among many (benchmarks/compare.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from onnxcam.diagnose.shift.distance import even

TILES = 6  # along each side; they overlap by half
_LEAST = 1e-9  # standard deviation of a share of the energy: below it is rounding
_NONE = 1e-3  # what counts as no gain at all


def tiles(distributions: np.ndarray) -> np.ndarray:
    """Return the energy of maps in overlapping tiles of the picture, float64 `[N, TILES * TILES]`.

    The weight of a cell in a tile falls from 1 at the tile's middle to 0 at the middles of its neighbours.

    Arguments:
        distributions: as of `distance.shares`, `[N, h, w]`.
    """
    height, width = distributions.shape[1:]
    rows, columns = _weights(height), _weights(width)
    return np.asarray((rows @ even(distributions) @ columns.T).reshape(len(distributions), -1))


@lru_cache(32)
def _weights(cells: int) -> np.ndarray:
    """The weight of each cell along a side in each tile, `[TILES, cells]`."""
    middles, places = (np.arange(TILES) + 0.5) / TILES, (np.arange(cells) + 0.5) / cells
    weights = np.maximum(0.0, 1 - TILES * np.abs(places - middles[:, None]))
    weights.flags.writeable = False
    return np.asarray(weights)


class Gathering:
    """Energy in tiles of the maps of some models, as moments over the pictures: memory does not grow with them."""

    def __init__(self, models: int) -> None:
        self._pictures = 0
        self._sums = np.zeros((models, TILES * TILES))
        self._products = np.zeros((TILES * TILES, models, models))

    def add(self, energy: np.ndarray) -> None:
        """Count some pictures in, `[models, N, TILES * TILES]`."""
        self._pictures += energy.shape[1]
        self._sums += energy.sum(axis=1)
        by_tile = energy.transpose(2, 0, 1)
        self._products += by_tile @ by_tile.transpose(0, 2, 1)

    def strengths(self, models: Sequence[int]) -> np.ndarray:
        """Return how strongly the attention of each gathers, float64; not a number where that cannot be told.

        With g the energy that a model gains in a tile over the mean of the others, m and s its mean and standard
        deviation over the pictures, and s' the root of the mean of s^2 over the tiles, it is the root of the sum of
        (m / (s + s'))^2 over tiles with m > 0. NEW is no other of anyone.

        Arguments:
            models: OLD, NEW, and other trainings, as indices of those counted in.
        """
        return np.array([self._strength(models, place) for place in range(len(models))])

    def _strength(self, models: Sequence[int], place: int) -> float:
        others = [model for other, model in enumerate(models) if other not in (1, place)]
        if self._pictures < 2 or not others:
            return float("nan")
        gain = np.zeros(len(self._sums))
        gain[models[place]] = 1.0
        gain[others] -= 1 / len(others)
        mean = gain @ self._sums / self._pictures
        variance = np.maximum(gain @ self._products @ gain / self._pictures - mean**2, 0.0)
        usual = float(np.sqrt(variance.mean()))
        if usual <= _LEAST:
            return float("nan")
        ratio = np.maximum(mean, 0.0) / (np.sqrt(variance) + usual)
        return max(float(np.sqrt(np.square(ratio).sum())), _NONE)
