"""The tests behind a verdict: their distributions against SciPy, and their false alarms where the null is true."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from onnxcam.diagnose.shift.verdict import (
    either_tail,
    judge_augmentation,
    judge_retraining,
    largest_tail,
    ranks_tail,
    student_tail,
)
from onnxcam.errors import SettingError


def trainings(rng: np.random.Generator, count: int, new: float = 0.0) -> np.ndarray:
    """Mean distances of OLD, NEW and `count` other trainings: an effect of each, and one of each pair."""
    effects = rng.normal(0, 0.1, count + 2)
    effects[1] += new
    pairs = np.triu(rng.normal(0, 0.03, (count + 2, count + 2)), 1)
    return np.asarray(np.exp(effects[:, None] + effects + pairs + pairs.T) * (1 - np.eye(count + 2)) / 20)


def test_the_tail_of_student_is_that_of_scipy() -> None:
    for freedom in range(1, 30):
        for t in (-9.0, -1.3, 0.0, 0.2, 2.0, 7.5):
            assert student_tail(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-9, abs=1e-14)
    assert (student_tail(np.inf, 4), student_tail(-np.inf, 4)) == (0, 1)


@pytest.mark.slow
def test_the_tail_of_ranks_is_that_of_the_sum_of_dice() -> None:
    rng = np.random.default_rng(1)
    for pictures, count in ((1, 4), (3, 3), (20, 8), (3000, 8)):
        sums = rng.integers(0, count + 1, (20_000, pictures)).sum(axis=1)
        for total in np.quantile(sums, [0.05, 0.5, 0.95]).astype(int).tolist():
            assert ranks_tail(total, pictures, count) == pytest.approx((sums >= total).mean(), abs=0.015)
    assert ranks_tail(4, 1, 4) == pytest.approx(1 / 5) and ranks_tail(0, 7, 4) == 1
    assert ranks_tail(12, 3, 4) == pytest.approx(1 / 125)


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 8, 24])
def test_a_retraining_is_a_false_alarm_in_five_percent(count: int) -> None:
    rng = np.random.default_rng(count)
    alarms = np.mean([judge_retraining(trainings(rng, count)).moved for _ in range(3000)])
    assert 0.035 < alarms < 0.06
    assert np.mean([judge_retraining(trainings(rng, count, new=0.6)).moved for _ in range(200)]) > 0.95


def test_a_retraining_needs_five_trainings() -> None:
    with pytest.raises(SettingError, match=r"has 4 other trainings of OLD; .* at least 5"):
        judge_retraining(trainings(np.random.default_rng(0), 4))
    for copies in (np.zeros((7, 7)), 0.1 * (1 - np.eye(7))):  # nothing says what chance does
        copies[1], copies[:, 1] = 0.3, 0.3
        with pytest.raises(SettingError, match="not copies of one file"):
            judge_retraining(copies)


@pytest.mark.slow
def test_small_changes_are_a_false_alarm_in_five_percent() -> None:
    rng = np.random.default_rng(2)
    alarms = []
    for _ in range(2000):
        scale = rng.gamma(2, 1, 40)  # pictures differ
        distances = rng.gamma(2, 1, (9, 40)) * scale
        verdict, each = judge_augmentation(distances[0], distances[1:])
        alarms.append(verdict.moved)
    assert 0.038 < np.mean(alarms) < 0.06
    assert each.min() >= 1 / 9 and each.max() <= 1
    moved, _ = judge_augmentation(distances[0] * 2, distances[1:])
    assert moved.moved and "same training" in moved.sentence


def test_a_shift_of_some_pictures_is_found_beside_others_that_hardly_move() -> None:
    """As of a nearly equal model with one broken class: on all other pictures it moves less than any change."""
    rng = np.random.default_rng(4)
    augmented = rng.gamma(2, 0.01, (8, 100))
    for part, moved in ((0, False), (5, False), (25, True), (40, True), (50, True)):
        new = np.where(np.arange(100) < part, 0.5, 1e-6)
        verdict, _ = judge_augmentation(new, augmented)
        assert (verdict.moved, verdict.farther) == (moved, part), part
        assert f"farther than all 8 of them on {part} of 100 pictures, 11 by chance" in verdict.sentence
    assert ranks_tail(8 * 40, 100, 8) > 0.99  # which the sum of ranks alone would not see


@pytest.mark.slow
@pytest.mark.parametrize(("pictures", "count"), [(6, 8), (20, 8), (100, 8), (40, 19), (1, 19)])
def test_either_of_two_statistics_is_a_false_alarm_in_five_percent(pictures: int, count: int) -> None:
    rng = np.random.default_rng(pictures)
    ranks = rng.integers(0, count + 1, (6000, pictures))
    pairs = list(zip(ranks.sum(axis=1).tolist(), (ranks == count).sum(axis=1).tolist(), strict=True))
    tails = {pair: either_tail(*pair, pictures, count) for pair in set(pairs)}
    smaller = {p: min(ranks_tail(p[0], pictures, count), largest_tail(p[1], pictures, count)) for p in tails}
    observed = np.array([smaller[pair] for pair in pairs])
    for pair in pairs[:5]:  # against the frequency of what it is the probability of
        share = (observed <= smaller[pair] * (1 + 1e-9)).mean()
        assert tails[pair] == pytest.approx(share, abs=0.025) and tails[pair] <= 2 * smaller[pair]
    assert np.mean([tails[pair] <= 0.05 * (1 + 1e-9) for pair in pairs]) <= 0.056
    assert largest_tail(0, pictures, count) == 1
    assert largest_tail(1, pictures, count) == pytest.approx(stats.binom.sf(0, pictures, 1 / (count + 1)))


def test_equal_maps_never_moved_and_few_pictures_are_refused() -> None:
    verdict, each = judge_augmentation(np.zeros(9), np.zeros((4, 9)))
    assert verdict.p == 1 and each.tolist() == [1.0] * 9
    with pytest.raises(SettingError, match="augment:8 on 1 picture can never give"):
        judge_augmentation(np.zeros(1), np.zeros((8, 1)))
    assert judge_augmentation(np.ones(1), np.zeros((19, 1)))[0].moved
