"""What methods and metrics have in common is run once, and gives the numbers that each would have had alone."""

from __future__ import annotations

import csv
import io
import itertools
from typing import Any

import numpy as np
import pytest

from onnxcam.errors import InputError
from onnxcam.evaluation import judge, report
from onnxcam.evaluation.evaluation import Evaluation
from onnxcam.evaluation.judge import evaluate
from onnxcam.evaluation.sampling import CONFIDENCE
from onnxcam.evaluation.trial import Trial, _order
from onnxcam.explain.explainer import Explainer
from tests.cli.conftest import LABELS, RAW, noise
from tests.evaluation.trials import trial
from tests.support import models

METHODS = ["gradcam", "hirescam", "layercam"]
METRICS = ["average_drop", "insertion", "deletion", "road", "sensitivity", "infidelity"]
QUICK: dict[str, Any] = {"repeats": 2, "patches": 4}


def pictures(count: int) -> list[np.ndarray]:
    return [noise(np.random.default_rng(seed)) for seed in range(count)]


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    """One row per run: numbers do not depend on which pictures are run together."""
    return Explainer(models.tiny_cnn(), preprocess=RAW, labels=LABELS, rows=1)


def judged(explainer: Explainer, count: int, methods: list[str] = METHODS, **options: Any) -> Evaluation:
    return evaluate(explainer, pictures(count), methods=methods, metrics=METRICS, **QUICK, **options)


def test_shared_runs_give_the_same_numbers_to_the_bit(explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
    together = judged(explainer, 2)
    assert together.passes["shared"] > 0

    def unshared(self: Trial, keys: Any, rows: np.ndarray, make: Any) -> np.ndarray:
        return self.probabilities(len(keys), lambda start, stop: (make(np.arange(start, stop)), rows[start:stop]))

    monkeypatch.setattr(Trial, "shared", unshared)
    monkeypatch.setattr(judge, "_WAITING", 0)
    alone = judged(explainer, 2)
    assert alone.passes["shared"] == 0
    for method in METHODS:
        for metric in METRICS:
            np.testing.assert_array_equal(together.values[method][metric], alone.values[method][metric], metric)
    runs = [sum(one.passes[name] for name in ("pictures", "changed", "explained")) for one in (together, alone)]
    # the squares and small changes of one method instead of three, both ends of curves, and equal masks
    assert runs[0] == runs[1] - together.passes["shared"] and runs[0] < 0.8 * runs[1]


def test_equal_masks_are_run_once(explainer: Explainer) -> None:
    """After global pooling and a linear layer HiResCAM has Grad-CAM's map, but for rounding."""
    options: dict[str, Any] = {"metrics": ["insertion", "deletion"], "steps": 16}
    one = evaluate(explainer, pictures(4), methods=["gradcam"], **options)
    two = evaluate(explainer, pictures(4), methods=["gradcam", "hirescam"], **options)
    other = evaluate(explainer, pictures(4), methods=["gradcam", "randomcam"], **options)
    # 17 points of two curves of 4 pictures, which have the unchanged picture in common
    assert one.passes["changed"] == 4 * (2 * 17 - 1) and one.passes["shared"] == 4
    assert one.passes["changed"] <= two.passes["changed"] < 1.2 * one.passes["changed"]
    # the picture, the blurred one and the empty one
    assert other.passes["changed"] == 2 * one.passes["changed"] - 4 * 3


@pytest.mark.slow
def test_estimates_are_within_their_bounds() -> None:
    """Of 32 pictures some points are left out; each mean is compared with that of all points."""
    methods, explainer = ["gradcam"], Explainer(models.tiny_cnn(), preprocess=RAW, labels=LABELS)
    options: dict[str, Any] = {"metrics": ["insertion", "deletion", "road", "average_drop"], "methods": methods}
    full = evaluate(explainer, pictures(32), tolerance=0.0, **options)
    quick = evaluate(explainer, pictures(32), tolerance=0.1, **options)
    assert full.estimated == {} and set(quick.estimated) == {"insertion", "deletion", "road"}
    for method in methods:
        for metric in quick.estimated:
            error = abs(quick.mean(method, metric) - full.mean(method, metric))
            assert 0 < error <= quick.bound(method, metric) < 0.1, (method, metric)
            assert full.bound(method, metric) == 0
        assert quick.mean(method, "average_drop") == pytest.approx(full.mean(method, "average_drop"), abs=1e-6)
        assert quick.bound(method, "average_drop") == 0
    assert sum(quick.passes.values()) < 0.6 * sum(full.passes.values())
    # the mean curve has the mean area
    curve = quick.curves["gradcam"]["deletion"]
    assert (curve[1:] + curve[:-1]).mean() / 2 == pytest.approx(quick.mean("gradcam", "deletion"), abs=1e-9)
    record = quick.to_dict()
    entry = record["metrics"]["insertion"]
    assert (entry["points"], entry["confidence"]) == (33, CONFIDENCE) and entry["computed"] < 16
    assert record["methods"]["gradcam"]["road"]["bound"] == quick.bound("gradcam", "road")
    assert record["forward_passes"] == quick.passes and "points" not in record["metrics"]["average_drop"]
    rows = list(csv.DictReader(io.StringIO(quick.to_csv())))
    bounds = {row["method"]: row for row in rows if row["picture"] == "bound"}
    assert float(bounds["gradcam"]["road"]) == pytest.approx(quick.bound("gradcam", "road"), rel=1e-5)
    assert float(bounds["gradcam"]["average_drop"]) == 0
    assert "bound" not in full.to_csv()
    text = report.lines(quick)
    assert len(text) == len(methods) + 3 and text[2].count("±") == 3 and "95% certainty" in text[-1]
    assert "±" not in "".join(report.lines(full)[:-1]) and "forward passes" in text[0]
    assert "all points: ±" in report.render(quick) and "all points" not in report.render(full)


def test_few_pictures_are_judged_by_every_point(explainer: Explainer) -> None:
    one = evaluate(explainer, pictures(3), methods=["gradcam"], metrics=["deletion"], tolerance=1.0)
    assert one.estimated == {} and one.curves["gradcam"]["deletion"].shape == (33,)
    with pytest.raises(InputError, match=r"tolerance=-0.1; expected a number from 0"):
        evaluate(explainer, pictures(1), tolerance=-0.1)


def test_bound_is_of_the_pictures_that_are_complete(explainer: Explainer) -> None:
    options: dict[str, Any] = {"methods": ["gradcam"], "metrics": ["deletion"], "tolerance": 0.1}
    tables: list[tuple[int, float, float]] = []

    def note(so_far: Evaluation) -> None:
        tables.append((len(so_far.places), so_far.mean("gradcam", "deletion"), so_far.bound("gradcam", "deletion")))

    whole = evaluate(explainer, pictures(40), partial=note, **options)
    assert [count for count, *_ in tables] == [8, 16, 24, 32, 40]
    assert all(later < earlier for (*_, earlier), (*_, later) in itertools.pairwise(tables))
    whole.drop_after(16)
    assert (whole.mean("gradcam", "deletion"), whole.bound("gradcam", "deletion")) == tables[1][1:]


@pytest.mark.parametrize("moment", ["between methods", "as pictures are drawn"])
def test_interrupted_pictures_are_left_out_everywhere(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The curves of one method of the last pictures are there, or one of them is drawn already."""
    options: dict[str, Any] = {"methods": ["gradcam", "hirescam"], "metrics": ["deletion"], "examples": 12, "steps": 4}
    expected = evaluate(explainer, pictures(8), **options)
    last: list[tuple[Evaluation, int]] = []
    original, calls = getattr(judge, "_trial" if moment == "between methods" else "drawn"), itertools.count(1)
    last_call = 4 if moment == "between methods" else 2 * 8 + 3

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == last_call:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(judge, original.__name__, interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(explainer, pictures(16), partial=lambda so_far: last.append((so_far, len(so_far.places))), **options)
    ((evaluation, complete),) = last
    assert complete == 8 and len(evaluation.places) == 16
    evaluation.drop_after(complete)
    for method in options["methods"]:
        np.testing.assert_array_equal(evaluation.curves[method]["deletion"], expected.curves[method]["deletion"])
        assert evaluation.mean(method, "deletion") == expected.mean(method, "deletion")
    assert [example.place for example in evaluation.examples] == list(range(8))
    assert report.render(evaluation) == report.render(expected)


@pytest.mark.parametrize("kind", ["smooth", "ties", "zeros", "signed", "float64"])
def test_order_of_pixels_is_that_of_two_sort_keys(kind: str) -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(20, 31)).cumsum(axis=0).astype(np.float32)
    heatmap = {
        "smooth": values,
        "ties": np.rint(values),
        "zeros": np.maximum(values, 0),
        "signed": np.where(values > 0, np.float32(-0.0), np.float32(0.0)),
        "float64": values.astype(np.float64),
    }[kind]
    ties = np.random.default_rng(3).permutation(heatmap.size)
    expected = np.lexsort((ties, -heatmap.ravel()))
    np.testing.assert_array_equal(_order(heatmap, np.random.default_rng(3)), expected)


def test_a_changed_picture_of_another_class_is_run_again() -> None:
    maps = np.linspace(0, 1, 24 * 24).reshape(24, 24)
    first = trial(maps, 2)
    second = trial(maps, 2, classes=np.zeros(2, np.int64), runs=first.runs)
    np.testing.assert_allclose(first.masked + second.masked, 1, atol=1e-6)
    assert first.runs.count == 4 and first.runs.repeated == 0


@pytest.mark.parametrize(("room", "waiting"), [(256 << 20, 12), (150_000, 8), (0, 0)])
def test_maps_wait_for_the_cascade_where_they_fit(
    explainer: Explainer, monkeypatch: pytest.MonkeyPatch, room: int, waiting: int
) -> None:
    sources: list[Any] = pictures(12)
    sources.insert(3, b"no picture")
    options: dict[str, Any] = {"methods": ["gradcam"], "metrics": ["randomization"], "stages": 2}
    expected = [
        evaluate(explainer, [source], methods=["gradcam"], metrics=["randomization"], stages=2).mean(
            "gradcam", "randomization"
        )
        for source in (sources[0], sources[-1])
    ]
    monkeypatch.setattr(judge, "_WAITING", room)
    names = [str(number) for number in range(13)]
    evaluation = evaluate(explainer, sources, names=names, **options)
    values = evaluation.values["gradcam"]["randomization"]
    assert evaluation.names == [name for name in names if name != "3"] and np.isfinite(values).sum() == 12
    np.testing.assert_allclose(values[[0, 12]], expected, atol=1e-3)
    assert evaluation.passes["pictures"] == 12 + 2 * (12 + 12 - waiting)
