"""Drift against samples whose distribution is known: false alarms, what is found, and the statistics by hand."""

from __future__ import annotations

import copy
import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from onnxcam.errors import InputError
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import drift, drift_statistics, spool
from onnxcam.monitor.drift import DRIFT, OK, UNKNOWN, Detector
from onnxcam.monitor.table import FIELDS, Rows
from tests.monitor import synthetic

COLUMN = {name: column for column, name in enumerate(FIELDS)}


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("simulations", [300, pytest.param(1000, marks=pytest.mark.soak)])
def test_false_alarms_at_the_declared_rate_and_a_shift_of_half_a_deviation(simulations: int, share: float) -> None:
    """Windows in which nothing changed, each against a baseline of its own; of each fourth one field moved by 0.5 σ."""
    declared, shifted = 0.05, simulations // 4
    alarms = detected = 0
    for number in range(simulations):
        rng = np.random.default_rng([number, 20261125])
        normal = synthetic.baseline(synthetic.rows(rng, 1000, share=share))
        detector = Detector(normal, false_alarms=declared, replicates=400, seed=number)
        alarms += detector.assess(synthetic.rows(rng, 500, share=share)).verdict == DRIFT
        if number < shifted:
            detected += detector.assess(synthetic.rows(rng, 500, share=share, shift=0.5)).verdict == DRIFT
    print(f"kept {share}: false alarms {alarms / simulations:.3f} of {declared}, found {detected / shifted:.3f}")
    assert abs(alarms / simulations - declared) <= 0.02
    assert detected / shifted >= 0.85


@pytest.fixture(scope="module")
def detector() -> Detector:
    rng = np.random.default_rng(5)
    return Detector(synthetic.baseline(synthetic.rows(rng, 1500, share=0.2)), replicates=500)


def window(seed: int = 6, count: int = 500, **changes: float) -> Rows:
    # one size for all: the null distribution of a size takes most of the time
    return synthetic.rows(np.random.default_rng(seed), count, share=0.2, **changes)


def moved(detector: Detector, rows: Rows) -> set[str]:
    return {statistic.name for statistic in detector.assess(rows).statistics if statistic.drifted}


@pytest.mark.slow
def test_no_verdict_below_500_records(detector: Detector) -> None:
    far = window(count=499, shift=50.0)
    verdict = detector.assess(far)
    assert (verdict.verdict, verdict.statistics, verdict.score) == (UNKNOWN, [], None)
    assert detector.assess(window(count=500, shift=50.0)).verdict == DRIFT


def test_nothing_changed(detector: Detector) -> None:
    verdict = detector.assess(window())
    assert verdict.verdict == OK
    assert moved(detector, window()) == set()
    assert 0 < verdict.effective < verdict.records
    json.dumps(verdict.to_dict(), allow_nan=False)


def test_each_kind_of_change_is_named(detector: Detector) -> None:
    assert moved(detector, window(shift=0.6)) == {"attention.border"}
    spread = window()
    spread.values[:, COLUMN["attention.gini"]] = np.where(
        np.arange(500) % 2, 0.5, spread.values[:, COLUMN["attention.gini"]]
    )
    assert moved(detector, spread) == {"attention.gini"}, "the mean is as before"
    classes = window()
    classes.predicted[:150] = 700
    assert moved(detector, classes) == {"classes"}
    low = window()
    rate = low.low.copy()
    rate[np.flatnonzero(~rate)[:60]] = True
    assert moved(detector, Rows(low.values, low.weights, rate, low.zero, low.predicted, low.target, low.maps)) == {
        "low_confidence"
    }
    zero = window()
    zero.zero[:120] = True
    assert moved(detector, zero) == {"zero_maps"}
    maps = window()
    of_class = maps.target == 1
    maps.maps[of_class] = maps.maps[of_class][:, ::-1]
    names = moved(detector, maps)
    assert "map/beagle" in names and names <= {"map/beagle", "map"}


def test_one_stray_value_is_no_drift(detector: Detector) -> None:
    """What the baseline never saw may happen once."""
    rng = np.random.default_rng(1)
    table = synthetic.rows(rng, 1000)
    table.values[:, COLUMN["attention.peaks"]] = 1
    table.zero[:] = False
    still = Detector(synthetic.baseline(table), replicates=500)
    now = synthetic.rows(rng, 500)
    now.values[:, COLUMN["attention.peaks"]] = 1
    now.zero[:] = False
    now.zero[3] = True
    now.values[4, COLUMN["attention.peaks"]] = 9
    assert still.assess(now).verdict == OK


def test_distances_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(3)
    table, now = synthetic.rows(rng, 1200, share=0.3), synthetic.rows(rng, 700, share=0.3, shift=0.8)
    verdict = Detector(synthetic.baseline(table), replicates=400).assess(now)
    constants = {statistic.name: statistic for statistic in verdict.statistics}
    for name in ("confidence", "attention.border", "attention.half_area", "attention.y"):
        a, b = table.values[:, COLUMN[name]], now.values[:, COLUMN[name]]
        u, v = np.isfinite(a), np.isfinite(b)
        mean = np.average(a[u], weights=table.weights[u])
        deviation = np.sqrt(np.average((a[u] - mean) ** 2, weights=table.weights[u]))
        expected = wasserstein_distance(a[u], b[v], table.weights[u], now.weights[v]) / deviation
        # the field is put on 32 steps
        assert constants[name].distance == pytest.approx(expected, rel=0.05, abs=0.02)
        assert constants[name].baseline == pytest.approx(mean, rel=1e-5)
        assert constants[name].window == pytest.approx(np.average(b[v], weights=now.weights[v]), rel=1e-5)
    rates = [np.average(rows.low, weights=rows.weights) for rows in (table, now)]
    assert constants["low_confidence"].distance == pytest.approx(abs(rates[0] - rates[1]), rel=1e-4)
    share = [np.bincount(rows.predicted, rows.weights, 6) / rows.weights.sum() for rows in (table, now)]
    assert constants["classes"].distance == pytest.approx(np.abs(share[0] - share[1]).sum() / 2, rel=1e-4)
    means = []
    for rows in (table, now):
        of_class = (rows.target == 2) & np.isfinite(rows.maps[:, 0, 0])
        means.append(np.average(rows.maps[of_class], axis=0, weights=rows.weights[of_class]))
    assert constants["map/espresso"].distance == pytest.approx(np.abs(means[0] - means[1]).sum() / 2, rel=1e-4)


def test_windows() -> None:
    assert drift.windows(0, 500) == []
    assert drift.windows(120, 500) == [(0, 120)]
    assert drift.windows(999, 500) == [(0, 999)]
    assert drift.windows(1700, 500) == [(0, 700), (700, 1200), (1200, 1700)]


def records(first: int, count: int, **changes: object) -> list[dict]:
    return [synthetic.record(n, **copy.deepcopy(changes)) for n in range(first, first + count)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("baseline") / "baseline.json"
    document, notes = baselines.build(records(0, 900) + records(900, 3, trigger__when="entropy > 0.5"))
    assert notes == ["3 records of another model, condition, method or layer were skipped"]
    file.write_text(json.dumps(document))
    return file


def test_a_baseline_keeps_its_rows(path: Path) -> None:
    baseline, expected = baselines.load(path), Rows.of(records(0, 900))
    assert baseline.configuration == synthetic.CONFIGURATION
    assert (baseline.records, baseline.labels) == (900, {0: "tabby", 1: "beagle", 2: "espresso"})
    for name in ("low", "zero", "predicted", "target"):
        assert np.array_equal(getattr(baseline.rows, name), getattr(expected, name))
    np.testing.assert_allclose(baseline.rows.weights, expected.weights, rtol=1e-5)
    np.testing.assert_allclose(baseline.rows.values, expected.values, rtol=1e-5)
    np.testing.assert_allclose(baseline.rows.maps, expected.maps, atol=2e-5)
    assert baseline.classes == [0, 1, 2]


@pytest.mark.slow
def test_a_baseline_draws_evenly() -> None:
    document, _ = baselines.build(records(0, 1600), rows=600)
    parsed = baselines.parse(document)
    assert (parsed.records, len(parsed.rows)) == (1600, 600)
    first = set(np.round(Rows.of(records(0, 800)).values[:, 0], 6).tolist())
    part = np.mean([round(v, 6) in first for v in parsed.rows.values[:, 0].tolist()])
    assert 0.42 < part < 0.58


@pytest.mark.parametrize("spoil", ["format", "rows", "maps", "empty", "list"])
def test_files_that_are_no_baseline(path: Path, tmp_path: Path, spoil: str) -> None:
    document = json.loads(path.read_text())
    if spoil == "format":
        document["format"] = 2
    elif spoil == "rows":
        document["rows"]["low"].pop()
    elif spoil == "maps":
        document["rows"]["maps"]["uint16"] = "AAAA"
    text = {"empty": "", "list": "[]"}.get(spoil, json.dumps(document))
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(InputError, match=r"is not a baseline .*; make one with"):
        baselines.load(tmp_path / "b.json")
    with pytest.raises(InputError, match="cannot be read"):
        baselines.load(tmp_path / "none.json")


def test_too_few_for_a_baseline() -> None:
    with pytest.raises(InputError, match="there are 499 records"):
        baselines.build(records(0, 499))
    with pytest.raises(InputError, match="no records"):
        baselines.build([])


def test_a_record_s_own_distances(path: Path) -> None:
    baseline = baselines.load(path)
    ranks = [baseline.distances(record)["rank"] for record in records(5000, 200)]
    assert 0.4 < float(np.mean(ranks)) < 0.6, "ranks of the like are even"
    odd = synthetic.record(1, index=0, attention__border=0.9)
    odd["map"]["values"] = [0] * 48 + [255]
    distances = baseline.distances(odd)
    assert (distances["furthest"], distances["rank"], distances["comparable"]) == ("attention.border", 1.0, True)
    mean, deviation = (part[COLUMN["attention.border"]] for part in baseline.scale)
    assert distances["deviation"] == pytest.approx((0.9 - mean) / deviation, abs=1e-3)
    corner = np.zeros((7, 7))
    corner[6, 6] = 1
    assert distances["map"] == pytest.approx(np.abs(corner - baseline.mean_maps[0]).sum() / 2, abs=1e-3)
    other = baseline.distances(synthetic.record(1, prediction__layer="layer3"))
    assert (other["comparable"], other["map"], other["baseline"]) == (False, None, baseline.identity)
    json.dumps(distances, allow_nan=False)


@pytest.mark.slow
def test_judging_records(path: Path) -> None:
    judge = Detector(baselines.load(path), replicates=400)
    coming = (
        records(1000, 1200) + records(2200, 600, attention__border=0.31) + records(2800, 7, trigger__when="label == 3")
    )
    verdict = drift.assess(coming, judge, 600)
    assert [w.verdict for w in verdict.windows] == [OK, OK, DRIFT]
    assert [w.records for w in verdict.windows] == [600, 600, 600]
    assert verdict.others == 7 and len(verdict.notes) == 1
    assert verdict.latest.statistics[0].name == "attention.border"
    hourly = drift.assess(coming, judge, timedelta(hours=12))
    # the records begin 16 h 40 min after midnight, one a minute
    assert [w.records for w in hourly.windows] == [440, 720, 640]
    assert [w.verdict for w in hourly.windows] == [UNKNOWN, OK, DRIFT]
    assert drift.assess([], judge).latest.verdict == UNKNOWN
    with pytest.raises(InputError, match="at least 500"):
        drift.assess(coming, judge, 100)


def test_rates_that_cannot_be_told(path: Path) -> None:
    with pytest.raises(InputError, match="take at least 4000"):
        Detector(baselines.load(path), false_alarms=0.001, replicates=2000)
    with pytest.raises(InputError, match="between 0 and 1"):
        Detector(baselines.load(path), false_alarms=0.0)


def test_large_windows_are_drawn_from_the_same_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting the draws of a sample of any size, against listing them: mean and deviation of every sum."""
    rng = np.random.default_rng(5)
    family = drift_statistics.Family(synthetic.baseline(synthetic.rows(rng, 600)))
    for nested in (False, True):
        listed = family.draws(1500, 700, 1, nested=nested).astype(float)
        monkeypatch.setattr(drift_statistics, "_LARGE", 0)
        counted = family.draws(1500, 700, 2, nested=nested).astype(float)
        monkeypatch.undo()
        deviation = listed.std(0)
        error = np.abs(listed.mean(0) - counted.mean(0)) / np.maximum(deviation, 1e-9) / np.sqrt(2 / 1500)
        assert error.max() < 5
        np.testing.assert_allclose(counted.std(0), deviation, rtol=0.15, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("window", [500, timedelta(hours=12), timedelta(minutes=7)])
def test_windows_are_those_of_all_records_at_once(window: int | timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a table of all records that is cut by hand, also where the rows are in a temporary file."""
    monkeypatch.setattr(spool, "_IN_MEMORY", 1000)
    baseline = baselines.parse(baselines.build([synthetic.record(n) for n in range(600)])[0])
    records = [synthetic.record(n) for n in range(1000, 2150)]
    detector = drift.Detector(baseline, replicates=400)
    result = drift.assess([*records, synthetic.record(3000, prediction__layer="other")], detector, window)
    table = Rows.of(records, baseline.grid)
    times = [record["ts"] for record in records]
    if isinstance(window, int):
        bounds = drift.windows(len(records), window)
    else:
        numbers = [int(datetime.fromisoformat(time).timestamp() // window.total_seconds()) for time in times]
        begins = [row for row, number in enumerate(numbers) if row == 0 or number != numbers[row - 1]]
        bounds = list(zip(begins, [*begins[1:], len(times)], strict=True))
    assert result.others == 1 and len(result.windows) == len(bounds)
    for verdict, (begin, end) in zip(result.windows, bounds, strict=True):
        expected = detector.assess(table.take(slice(begin, end)), times[begin], times[end - 1])
        for name in ("verdict", "records", "effective", "since", "until", "threshold"):
            assert getattr(verdict, name) == getattr(expected, name), name
        assert (verdict.score or 0.0) == pytest.approx(expected.score or 0.0, rel=1e-4)
        of_window, of_rows = (
            {statistic.name: statistic.distance for statistic in one.statistics if statistic.distance is not None}
            for one in (verdict, expected)
        )
        assert of_window == pytest.approx(of_rows, rel=1e-4)
