"""A metric prefers a map of the right place to its opposite: one whose direction is turned round fails here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcam.errors import MethodError
from onnxcam.evaluation.metrics import HIGHER, LOWER, Metric, find, metrics, select
from onnxcam.evaluation.registry import metric
from tests.evaluation.trials import INSIDE, SIDE, bright, trial

GOOD = np.where(INSIDE, 1.0, 0.0) * np.linspace(0.9, 1, SIDE)
BAD = 1 - GOOD
METRICS = metrics()
# of published numbers; a new metric has only to prefer the right map
DIRECTIONS = {
    "average_drop": LOWER, "average_increase": HIGHER, "insertion": HIGHER, "deletion": LOWER, "road_morf": LOWER,
    "road_lerf": HIGHER, "road": HIGHER, "coherency": HIGHER, "complexity": LOWER, "adcc": HIGHER,
    "pointing_game": HIGHER, "energy_in_box": HIGHER, "sensitivity": LOWER, "infidelity": LOWER, "randomization": LOWER,
    "randomization_ssim": LOWER,
}  # fmt: skip


def test_directions_stay() -> None:
    assert {name: find(name).better for name in DIRECTIONS} == DIRECTIONS


def test_every_metric_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    assert [name for name in METRICS if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", METRICS)
def test_formula_and_paper(name: str) -> None:
    entry = find(name)
    assert "https://arxiv.org/abs/" in entry.formula
    assert entry.arrow == {"higher": "↑", "lower": "↓"}[entry.better]


@pytest.mark.parametrize("name", [n for n in METRICS if n not in ("sensitivity", "average_increase")])
def test_the_right_map_is_preferred(name: str) -> None:
    entry = find(name)
    rng = np.random.default_rng(0)
    # a map of the model is another one when the model is; one of the picture alone stays
    other = rng.random((2, SIDE, SIDE)).astype(np.float32)
    if entry.redrawn:
        good, bad = entry(trial(GOOD, 2).against(other)), entry(trial(BAD, 2).against(np.stack([BAD] * 2)))
    else:
        good, bad = entry(trial(GOOD, 2)), entry(trial(BAD, 2))
    assert good.shape == bad.shape == (2,) and np.isfinite([good, bad]).all()
    better = {HIGHER: good > bad, LOWER: good < bad}[entry.better]
    assert better.all(), (good, bad)


def test_increase_where_the_rest_speaks_against_the_class() -> None:
    def predict(pictures: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(-(pictures[:, :, INSIDE].mean((1, 2)) - 3 * pictures[:, :, ~INSIDE].mean((1, 2)))))
        return np.stack([1 - p, p], axis=1)

    first = trial(GOOD, 2)
    changes = {"predict": predict, "whole": predict(first.pictures)[:, 1]}
    assert (find("average_increase")(trial(GOOD, 2, **changes)) == 1).all()
    assert (find("average_increase")(trial(BAD, 2, **changes)) == 0).all()


def test_a_map_that_jumps_about_is_sensitive() -> None:
    rng = np.random.default_rng(0)
    calm = trial(bright(trial(GOOD).pictures)[0])
    wild = trial(bright(trial(GOOD).pictures)[0], explain=lambda p: rng.random((len(p), SIDE, SIDE), np.float32))
    assert 0 < find("sensitivity")(calm)[0] < 0.1 < find("sensitivity")(wild)[0]


def test_the_best_of_some_numbers() -> None:
    up, down = find("insertion"), find("deletion")
    values = [0.3, float("nan"), 0.7]
    assert (up.best(values), down.best(values), up.best([float("nan")])) == (0.7, 0.3, None)


def test_which_metrics_are_meant() -> None:
    def named(selected: list[Metric]) -> list[str]:
        return [one.name for one in selected]

    assert named(select(None, boxes=False)) == [
        "average_drop", "average_increase", "insertion", "deletion", "road", "adcc", "randomization",
    ]  # fmt: skip
    assert {"pointing_game", "energy_in_box"} < set(named(select(None, boxes=True)))
    assert named(select(["road", "all"], boxes=True))[0] == "road"
    of_objects = {name for name in METRICS if find(name).objects}
    assert of_objects == {"own_box", "drise"}
    assert set(named(select(["all"], boxes=True))) == set(METRICS) - of_objects
    assert set(named(select(["all"], boxes=True, objects=True))) == {n for n in METRICS if not find(n).redrawn}
    with pytest.raises(MethodError, match="no metric 'insertoin'; there are 'insertion'"):
        select(["insertoin"], boxes=True)
    with pytest.raises(MethodError, match="needs to know where the objects are"):
        select(["pointing_game"], boxes=False)
    with pytest.raises(ValueError, match="already is"):
        metric("road", title="", better="higher")(lambda one: one.whole)
    with pytest.raises(ValueError, match="expected 'higher' or 'lower'"):
        metric("new", title="", better="up")(lambda one: one.whole)
