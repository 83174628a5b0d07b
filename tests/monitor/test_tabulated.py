"""Baselines of tables, against those of the records that a monitor writes about the same pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxcam
from onnxcam.errors import InputError, SettingError
from onnxcam.fleet import Explain
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import record as records
from onnxcam.monitor.drift import Detector
from onnxcam.monitor.table import Rows
from onnxcam.monitor.tabulated import COLUMNS, Table
from onnxcam.targets import conditions
from tests.cli.conftest import (
    Run,
    run,  # noqa: F401 - a fixture
)
from tests.fleet import samples
from tests.fleet import table as fleet_table
from tests.monitor.test_merging import content

COUNT, MOMENT, WHEN = 40, "2026-11-30T10:00:00.000000Z", "confidence < 0.6"
Batch = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def batch(model: Path) -> Batch:
    """The rows of a table, one of them with an error."""
    pictures = samples.column(samples.pictures(COUNT, every=20))
    paths = samples.column([f"{number}.png" for number in range(COUNT)])
    return dict(Explain(model, column="picture")({"picture": pictures, "path": paths}))


def repeated(batch: Batch, count: int) -> Batch:
    """More rows of the same pictures under other names."""
    places = np.arange(count) % COUNT
    rows = {name: values[places] for name, values in batch.items()}
    return rows | {"path": samples.column([f"{number}.png" for number in range(count)])}


def of(batch: Batch, rows: Any = slice(None), **options: Any) -> Table:
    some = {name: values[rows] for name, values in batch.items()}
    return Table([some], **({"root": "/p", "moment": MOMENT} | options))


def test_the_rows_are_those_that_a_monitor_records(model: Path, batch: Batch) -> None:
    explainer = onnxcam.Explainer(model)
    condition = conditions.parse(WHEN)
    expected = []
    for number, data in enumerate(samples.pictures(COUNT, every=20)):
        if batch["error"][number]:
            continue
        e = explainer.explain(data)
        probabilities = explainer.predict(explainer.prepare(data)[1])
        values = conditions.quantities(probabilities, explainer.terms.readout)
        low = bool(conditions.evaluate(condition, values)[0])
        expected.append(
            records.build(
                model={"name": None, "sha256": batch["model"][0]},
                provider="x",
                trigger={"when": WHEN, "reason": "condition" if low else "baseline", "sample": 1.0},
                probabilities=probabilities[0],
                **{name: float(values[name][0]) for name in ("confidence", "margin", "entropy")},
                target=e.target,
                layer="relu2",
                method="gradcam",
                raw_map=explainer.attribute(explainer.prepare(data)[1], size="layer", normalize="none")[0],
                latency_ms={},
                labels=explainer.labels,
                identity=f"/p/{number}.png",
            )
            | {"ts": MOMENT}
        )
    outcome = baselines.parse(baselines.build(of(batch, when=WHEN), fewest=1)[0], fewest=1)
    theirs = baselines.parse(baselines.build(expected, fewest=1)[0], fewest=1)
    assert outcome.configuration == theirs.configuration and outcome.labels == theirs.labels
    for name in ("low", "zero", "predicted", "target"):
        assert np.array_equal(getattr(outcome.rows, name), getattr(theirs.rows, name)), name
    assert 0 < outcome.rows.low.sum() < len(outcome.rows)
    np.testing.assert_allclose(outcome.rows.values, theirs.rows.values, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(outcome.rows.maps, theirs.rows.maps, atol=1e-4)


@pytest.mark.slow
def test_tables_of_eight_parts_give_the_verdict_of_one(batch: Batch) -> None:
    """Each part was run at another time, below another folder."""
    whole = repeated(batch, 800)
    whole["path"] = samples.column([f"{number % 8}/{path}" for number, path in enumerate(whole["path"])])
    one = baselines.build(of(whole, when=WHEN))[0]
    parts = []
    for part in range(8):
        some = {name: values[part::8] for name, values in whole.items()}
        some["path"] = samples.column([path.partition("/")[2] for path in some["path"]])
        table = Table([some], root=f"/p/{part}", moment=f"2026-11-30T1{part}:00:00.000000Z", when=WHEN)
        parts.append(baselines.build(table, fewest=1)[0])
    merged, notes = baselines.merge(parts[::-1])
    assert notes == [] and merged["rows"] == one["rows"]
    assert content(merged) | {"since": MOMENT, "until": MOMENT} == content(one) | {"since": MOMENT, "until": MOMENT}
    detectors = [Detector(baselines.parse(document), replicates=400) for document in (one, merged)]
    window = Rows.of([json.loads(json.dumps(c.record())) for c in of(whole, slice(0, 600), when=WHEN)], (8, 8))
    verdicts = [detector.assess(window) for detector in detectors]
    assert verdicts[0] == verdicts[1] and verdicts[0].statistics


def test_what_is_no_baseline(model: Path, batch: Batch) -> None:
    pictures = samples.column(samples.pictures(6, every=100))
    some = Explain(model, column="picture", when="confidence < 0.3")({"picture": pictures})
    with pytest.raises(InputError, match="did not meet the condition that it was made with"):
        baselines.build(Table([some], root="/p", moment=MOMENT), fewest=1)
    for when in ("set > 1", "top 5%"):
        with pytest.raises(SettingError, match="cannot be evaluated on a table"):
            of(batch, when=when)
    assert set(COLUMNS) <= set(batch), "the columns that are read are those of Explain"


@pytest.mark.slow
def test_the_command_makes_baselines_of_tables(run: Run, model: Path, tmp_path: Path) -> None:  # noqa: F811
    few = fleet_table.folder_of(tmp_path / "few", 12, every=10)
    pictures = fleet_table.linked(tmp_path / "pictures", sorted(few.rglob("*.png")), 560)
    assert fleet_table.batch(model, pictures, "-o", tmp_path / "t", "--rows-per-part", 70).exit_code == 1
    outcome = run("monitor", "baseline", tmp_path / "t", "--when", WHEN, "-o", tmp_path / "b.json", "--json")
    assert outcome.code == 0, outcome.err
    bad = sum(1 for error in fleet_table.rows(tmp_path / "t", ["error"])["error"] if error)
    assert outcome.json()["records"] == 560 - bad and outcome.json()["notes"] == [
        f"{bad} rows with an error were skipped"
    ]
    assert baselines.load(tmp_path / "b.json").configuration.when == WHEN
    files = sorted((tmp_path / "t").glob("*.parquet"))
    parts = run("monitor", "baseline", *files[::-1], "--when", WHEN, "-o", tmp_path / "merged.json")
    assert parts.code == 0, parts.err
    one, other = (json.loads((tmp_path / name).read_bytes()) for name in ("b.json", "merged.json"))
    assert one["rows"] == other["rows"] and one["labels"] == other["labels"]
    files[3].unlink()
    left = run("monitor", "baseline", tmp_path / "t", "-o", tmp_path / "left.json", "--part", "--json")
    assert "70 rows are missing" in left.json()["notes"][0]
    for arguments, message in (
        ([tmp_path / "t", "--since", "1d"], "is a table"),
        ([tmp_path / "b.json", "--when", WHEN], "--when is for tables"),
        ([tmp_path / "t", tmp_path / "t"], "name it once"),
        ([tmp_path / "t", "--when", "label == 'zebra'"], "zebra"),
    ):
        result = run("monitor", "baseline", *arguments, "-o", tmp_path / "x.json")
        assert result.code == 2 and message in result.err, result.err
    assert not (tmp_path / "x.json").exists()
