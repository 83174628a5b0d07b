"""The distance of two maps: against SciPy's Wasserstein distance along each direction, and in its own units."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from onnxcam.diagnose.shift.distance import distances, empty, shares

RNG = np.random.default_rng(0)


def spot(row: int, column: int, size: tuple[int, int] = (20, 20)) -> np.ndarray:
    heatmap = np.zeros((1, *size))
    heatmap[0, row, column] = 3.0
    return shares(heatmap)


@pytest.mark.parametrize("size", [(7, 7), (14, 9), (1, 5)])
def test_it_is_scipys_along_four_directions(size: tuple[int, int]) -> None:
    maps = RNG.exponential(size=(6, *size)) ** 3
    a, b = shares(maps[:3]), shares(maps[3:])
    y, x = np.meshgrid(*((np.arange(side) + 0.5) / side for side in size), indexing="ij")
    expected = []
    for one, other in zip(a, b, strict=True):
        slices = [x, y, (x + y) / 2**0.5, (x - y) / 2**0.5]
        parts = [wasserstein_distance(s.ravel(), s.ravel(), one.ravel(), other.ravel()) for s in slices]
        expected.append(np.mean(parts) / ((1 + 2**0.5) / 4))
    assert distances(a, b) == pytest.approx(expected, abs=1e-12)
    assert distances(a[:1], b)[0] == pytest.approx(expected[0], abs=1e-12)


def test_energy_that_moves_by_a_part_of_the_side_is_that_far_away() -> None:
    assert distances(spot(3, 4), spot(3, 14))[0] == pytest.approx(0.5)
    assert distances(spot(3, 4), spot(13, 4))[0] == pytest.approx(0.5)
    assert distances(spot(0, 0), spot(10, 10))[0] == pytest.approx(0.5 * 2**0.5)
    assert distances(spot(0, 4, (40, 8)), spot(8, 4, (40, 8)))[0] == pytest.approx(0.2)


def test_scale_does_not_count_and_what_is_no_energy_is_none() -> None:
    maps = RNG.exponential(size=(4, 7, 7)).astype(np.float32)
    assert distances(shares(maps), shares(maps * np.float32(1e30))) == pytest.approx(np.zeros(4), abs=1e-6)
    assert np.isfinite(shares(np.full((1, 7, 7), np.finfo(np.float32).max))).all()
    odd = maps.copy()
    odd[0, 0, 0], odd[0, 1, 1], odd[1, 2, 2] = np.nan, np.inf, -5
    clean = maps.copy()
    clean[0, 0, 0], clean[0, 1, 1], clean[1, 2, 2] = 0, 0, 0
    assert np.array_equal(shares(odd), shares(clean))
    assert shares(maps).sum(axis=(1, 2)) == pytest.approx(np.ones(4))


def test_a_map_without_energy_counts_as_even() -> None:
    blank, constant = shares(np.zeros((1, 7, 7))), shares(np.full((1, 7, 7), 2.0))
    assert empty(blank).tolist() == [True] and empty(constant).tolist() == [False]
    assert distances(blank, blank)[0] == 0 == distances(blank, constant)[0]
    assert distances(blank, spot(0, 0, (7, 7)))[0] == distances(constant, spot(0, 0, (7, 7)))[0] > 0.3
