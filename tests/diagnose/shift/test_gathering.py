"""Attention that gathers at the same places: tiles and strengths by hand, and what a verdict makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import RegularGridInterpolator

from onnxcam import Explainer
from onnxcam.diagnose.shift import compare
from onnxcam.diagnose.shift.distance import shares
from onnxcam.diagnose.shift.gathering import TILES, Gathering, tiles
from onnxcam.diagnose.shift.null import Seeds
from onnxcam.diagnose.shift.text import lines
from onnxcam.diagnose.shift.verdict import judge_retraining
from tests.cli.conftest import RAW
from tests.diagnose.shift.test_verdict import trainings
from tests.support.batches import picture
from tests.support.models import tiny_cnn


def by_hand(energy: np.ndarray, place: int) -> float:
    """The strength of one of `[models, pictures, tiles]`: NEW is the second and no other of anyone."""
    others = [k for k in range(len(energy)) if k not in (1, place)]
    gains = energy[place] - energy[others].mean(axis=0)
    mean, deviation = gains.mean(axis=0), gains.std(axis=0)
    ratio = mean / (deviation + np.sqrt((deviation**2).mean()))
    return float(np.sqrt((ratio[mean > 0] ** 2).sum()))


@pytest.mark.parametrize("size", [(1, 1), (4, 3), (7, 7), (14, 30)])
def test_a_cell_counts_in_the_tiles_around_it(size: tuple[int, int]) -> None:
    """Its weights are those by which bilinear interpolation between the tiles' middles would read them there."""
    maps = shares(np.random.default_rng(1).exponential(size=(3, *size)))
    middles = (np.arange(-1, TILES + 1) + 0.5) / TILES  # with a ring outside, whose tiles are left out
    grid = np.stack(np.meshgrid(*((np.arange(side) + 0.5) / side for side in size), indexing="ij"), axis=-1)
    for tile in range(TILES * TILES):
        corner = np.zeros((TILES + 2, TILES + 2))
        corner[tile // TILES + 1, tile % TILES + 1] = 1
        weights = RegularGridInterpolator((middles, middles), corner)(grid)
        assert tiles(maps)[:, tile] == pytest.approx((maps * weights).sum(axis=(1, 2)), abs=1e-12)
    blank = tiles(np.zeros((1, *size)))
    assert blank == pytest.approx(tiles(np.full((1, *size), 1 / np.prod(size))))


def test_strengths_are_those_of_gains_over_the_others_picture_by_picture() -> None:
    rng = np.random.default_rng(2)
    energy = rng.dirichlet(np.ones(TILES * TILES), (9, 50))
    energy[1, :, 7] += 0.05
    gathering = Gathering(9)
    for start in range(0, 50, 8):
        gathering.add(energy[:, start : start + 8])
    chosen = [0, 1, 3, 4, 5, 6, 8]  # two of the trainings are copies
    expected = [by_hand(energy[chosen], place) for place in range(7)]
    assert gathering.strengths(chosen) == pytest.approx(expected, rel=1e-9)
    assert expected[1] > 1.5 * max(expected[:1] + expected[2:])


def test_energy_that_moves_elsewhere_on_every_picture_does_not_gather() -> None:
    rng = np.random.default_rng(3)
    energy = rng.dirichlet(np.ones(TILES * TILES), (7, 100))
    scattered, gathered = energy.copy(), energy.copy()
    scattered[1, np.arange(100), rng.integers(0, TILES * TILES, 100)] += 0.3
    gathered[1, :, 4] += 0.3
    strengths = []
    for one in (energy, scattered, gathered):
        gathering = Gathering(7)
        gathering.add(one / one.sum(axis=-1, keepdims=True))
        strengths.append(gathering.strengths(range(7)))
    assert strengths[2][1] > 3 * strengths[0][1] and strengths[1][1] < 1.5 * strengths[0].max()
    for place in (0, *range(2, 7)):  # NEW is no other of theirs
        assert strengths[2][place] == pytest.approx(strengths[0][place])


def test_without_two_pictures_that_differ_the_distance_alone_decides() -> None:
    rng = np.random.default_rng(4)
    energy = rng.dirichlet(np.ones(TILES * TILES), (7, 1))
    distances = trainings(rng, 5)
    for pictures in (1, 3):
        gathering = Gathering(7)
        gathering.add(np.repeat(energy, pictures, axis=1))
        strengths = gathering.strengths(range(7))
        assert np.isnan(strengths).all()
        assert judge_retraining(distances, strengths) == judge_retraining(distances)


def test_a_verdict_joins_both_statistics_as_stated() -> None:
    rng = np.random.default_rng(5)
    for count in (5, 10):
        for new in (0.0, 0.3):
            distances, strengths = trainings(rng, count, new=new), np.exp(rng.normal(0, 0.2, count + 2) + new)
            rest = [0, *range(2, count + 2)]
            mean = np.log(distances[rest][:, rest].sum(axis=1) / count)
            apart, strong = np.log(distances[1, rest].mean()), np.log(strengths)
            scale = np.sqrt(1 + 1 / (count + 1))
            t = (apart - mean.mean()) / mean.std(ddof=1) / scale * (1 - 1 / count)
            other = (strong[1] - strong[rest].mean()) / strong[rest].std(ddof=1) / scale
            both = max(stats.pearsonr(mean, strong[rest])[0], 0.5)
            if max(t, other) > 0:
                t, other = max(t, 0), max(other, 0)
            verdict = judge_retraining(distances, strengths)
            assert verdict.p == pytest.approx(stats.t.sf((t / 2 + other) / np.sqrt(1.25 + both), count), rel=1e-9)
            assert verdict.gathered == pytest.approx((strengths[1], strengths[rest].mean()))


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 10, 24])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
def test_both_together_are_a_false_alarm_in_at_most_about_five_percent(count: int, correlation: float) -> None:
    """Effects of trainings on the two that are normal and correlated."""
    rng = np.random.default_rng(count)
    alarms = []
    for _ in range(3000):
        effects = rng.normal(0, 0.1, count + 2)
        pairs = np.triu(rng.normal(0, 0.03, (count + 2, count + 2)), 1)
        distances = np.exp(effects[:, None] + effects + pairs + pairs.T) * (1 - np.eye(count + 2)) / 20
        own = correlation * effects + (1 - correlation**2) ** 0.5 * rng.normal(0, 0.1, count + 2)
        alarms.append(judge_retraining(distances, np.exp(own)).moved)
    assert 0.02 < np.mean(alarms) < 0.062


@pytest.mark.slow
def test_either_alone_is_found_whatever_the_other_says() -> None:
    rng = np.random.default_rng(6)
    for count in (5, 10):
        found = []
        for _ in range(200):
            strengths = np.exp(rng.normal(0, 0.2, count + 2))
            far = judge_retraining(
                trainings(rng, count, new=1.2), strengths * np.where(np.arange(count + 2) == 1, 0.1, 1)
            )
            strengths[1] *= np.exp(1.5)
            found.append((far.moved, judge_retraining(trainings(rng, count, new=-0.5), strengths).moved))
        assert np.mean(found, axis=0).min() > 0.9


def test_a_comparison_measures_it_on_the_maps_of_all_its_models() -> None:
    pictures = [picture(40 + 3 * k, 56 - k, seed=k) for k in range(11)]
    models = [Explainer(tiny_cnn(seed=seed), preprocess=RAW, providers=["CPUExecutionProvider"]) for seed in range(7)]
    shift = compare(models[0], models[1], pictures, null=Seeds(models[2:]))
    energy = np.stack([
        np.concatenate([
            tiles(shares(model.explain(source, one.target, method="hirescam").raw_map[None]))
            for source, one in zip(pictures, shift.pictures, strict=True)
        ])
        for model in models
    ])  # fmt: skip
    strengths = [by_hand(energy, place) for place in range(7)]
    assert shift.verdict is not None
    assert shift.verdict.gathered == pytest.approx((strengths[1], np.mean(np.delete(strengths, 1))), rel=1e-4)
    assert f"gathers at places where the others do not by {strengths[1]:.2g}, they by" in "\n".join(lines(shift))
    assert shift.to_dict()["verdict"]["gathered"] == shift.verdict.gathered
    augmented = compare(models[0], models[1], pictures, null="augment:4")
    assert augmented.verdict is not None and augmented.verdict.gathered is None
