"""Curves of which some points are left out: unbiased means, and a bound that holds whatever the curves are like."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from onnxcam.evaluation.sampling import CONFIDENCE, FEWEST, Design, Sample, Sampling, bound, sampled

POINTS, SHARE = 33, 1 / 32
PICTURES, TABLES = 40, 120
Curves = Callable[[np.random.Generator, int], np.ndarray]


def steep(rng: np.random.Generator, count: int) -> np.ndarray:
    """Probabilities that rise somewhere, as insertion's do."""
    middle, width = rng.uniform(0, 1, (count, 1)), rng.uniform(0.005, 0.2, (count, 1))
    return np.asarray(1 / (1 + np.exp(-(np.linspace(0, 1, POINTS) - middle) / width)))


def rough(rng: np.random.Generator, count: int) -> np.ndarray:
    """Any values."""
    return rng.uniform(0, 1, (count, POINTS))


def walks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Values that go up and down by steps."""
    return np.asarray(np.abs((rng.normal(0, 0.15, (count, POINTS)).cumsum(axis=1) + rng.uniform(0, 2)) % 2 - 1))


def spikes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Nothing but one point of one curve in three, between anchors: what drawing misses most easily."""
    curves = np.zeros((count, POINTS))
    for row in range(0, count, 3):
        curves[row, 4 * rng.integers(8) + rng.integers(1, 4)] = 1
    return curves


def teeth(rng: np.random.Generator, count: int) -> np.ndarray:
    """1 at the anchors and 0 between them, or the other way round."""
    curves = np.zeros((count, POINTS))
    curves[:, ::4] = 1
    return np.asarray(np.abs(curves - rng.integers(0, 2, (count, 1))))


FAMILIES = (steep, rough, walks, spikes, teeth)


def table(curves: np.ndarray, design: Design, seed: int) -> tuple[float, list[Sample]]:
    """The error of the mean of curves, and the samples of two parts of them."""
    rngs = [np.random.default_rng([seed, row]) for row in range(len(curves))]
    parts = []
    for rows in (slice(0, 25), slice(25, None)):
        parts.append(sampled(design, rngs[rows], partial(np.take_along_axis, curves[rows], axis=1)))
    estimates = np.concatenate([part[0] for part in parts])
    return float(area(estimates).mean() - area(curves).mean()), [part[1] for part in parts]


def area(curves: np.ndarray) -> np.ndarray:
    return np.asarray((curves[:, 1:] + curves[:, :-1]).mean(axis=1) / 2)


def deviation(samples: list[Sample]) -> float:
    """The root mean square error of the mean of all curves, estimated; rather too large than too small."""
    count = sum(len(sample.differences) for sample in samples)
    squares = sum(float(((sample.shares * sample.differences) ** 2).sum()) for sample in samples)
    return float(np.sqrt(squares)) / max(count, 1)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.__name__))
def test_bound_holds_and_means_are_unbiased(family: Curves) -> None:
    design = Sampling(PICTURES, 0.05).design(POINTS, SHARE)
    assert design is not None and len(design.groups) == 3
    errors, bounds, deviations = np.empty((3, TABLES))
    for number in range(TABLES):
        curves = family(np.random.default_rng([7, number]), PICTURES)
        errors[number], samples = table(curves, design, number)
        bounds[number], deviations[number] = bound(samples), deviation(samples)
    assert (np.abs(errors) <= bounds).mean() >= CONFIDENCE
    assert abs(errors.mean()) <= 4 * errors.std() / np.sqrt(TABLES) + 1e-12
    assert deviations.mean() >= 0.9 * errors.std()
    assert (bounds.max() < 0.3 and errors.std() > 0) or family is teeth
    # the check itself: a bound as small as the errors does not hold so often
    if family is not teeth:
        assert (np.abs(errors) <= 0.5 * errors.std()).mean() < CONFIDENCE


def test_bound_of_smooth_curves_is_what_was_asked() -> None:
    for pictures in (32, 100, 1000):
        design = Sampling(pictures, 0.02).design(POINTS, SHARE)
        assert design is not None
        errors = []
        for number in range(3):
            error, samples = table(steep(np.random.default_rng(number), pictures), design, number)
            assert abs(error) <= bound(samples) < 0.02
            errors.append(abs(error))
        assert np.mean(errors) < 0.005


def test_mean_over_all_draws_is_the_mean_of_the_curve() -> None:
    rng = np.random.default_rng(0)
    design = Design(9, np.array([0, 4, 8]), (np.array([1, 2, 3]), np.array([5, 6, 7])), 1 / 9)
    curve = rng.uniform(size=(1, 9))
    means, squares = [], []
    for draws in itertools.product(*design.groups):
        places = np.array([draws])
        estimate, sample = design.estimate(curve[:, design.anchors], places, curve[:, draws])
        means.append(estimate.mean())
        squares.append(((sample.shares * sample.differences) ** 2).sum())
        np.testing.assert_array_equal(estimate[:, design.anchors], curve[:, design.anchors])
    assert np.mean(means) == pytest.approx(curve.mean(), abs=1e-12) and np.std(means) > 1e-3
    assert np.mean(squares) >= np.var(means)


@pytest.mark.parametrize(("points", "share"), [(33, 1 / 32), (9, 1 / 9), (65, 1 / 64), (17, 1 / 16)])
@pytest.mark.parametrize("pictures", [FEWEST, 100, 350, 5000])
def test_points_are_anchors_or_in_one_group(points: int, share: float, pictures: int) -> None:
    design = Sampling(pictures).design(points, share)
    if design is None:
        assert pictures < 100
        return
    every = np.concatenate([design.anchors, *design.groups])
    np.testing.assert_array_equal(np.sort(every), np.arange(points))
    assert {0, points - 1} <= set(design.anchors.tolist()) and all(len(group) > 1 for group in design.groups)
    draws = design.draw(np.random.default_rng(1))
    assert all(draw in group for draw, group in zip(draws.tolist(), design.groups, strict=True))
    assert design.computed == len(design.anchors) + len(design.groups) < points


def test_where_every_point_is_computed() -> None:
    assert Sampling(FEWEST - 1).design(33, 1 / 32) is None
    assert Sampling(1000, 0.0).design(33, 1 / 32) is None
    assert Sampling(1000).design(2, 1.0) is None
    assert bound([]) == 0.0 and deviation([]) == 0.0
