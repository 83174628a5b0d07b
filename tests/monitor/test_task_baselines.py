"""Baselines of a detector's and a segmentation's records: numbers of boxes, scores, classes, and maps of any level."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

import onnxcam
from onnxcam import models
from onnxcam.cli import main
from onnxcam.errors import SettingError
from onnxcam.fleet import Explain
from onnxcam.monitor import baseline as baselines
from onnxcam.monitor import schema
from onnxcam.monitor.drift import Detector
from onnxcam.monitor.table import FIELDS, OWN_LAYER, Configuration, Rows, shares
from onnxcam.monitor.tabulated import Table
from onnxcam.monitor.timestamps import timestamp
from tests.fleet.samples import column
from tests.monitor.monitoring import UNLIMITED, Collector
from tests.monitor.test_merging import content
from tests.support import detectors, scenes

DETECTOR, SEGMENTER = models.path("scenes/detector.onnx"), models.path("scenes/segmenter.onnx")
SETTINGS: dict[str, Any] = {"worker": "inline", "baseline_sample": 0, "when": "confidence <= 1", **UNLIMITED}
START = 1_800_000_000.0


def recorded(path: str, **settings: Any) -> list[dict[str, Any]]:
    """The records of the six scenes."""
    sink, explainer = Collector(), onnxcam.Explainer(path, preprocess="0..1", probe=False)
    with onnxcam.Monitor(path, sink=sink, **SETTINGS | settings) as monitor:
        for picture in scenes.PICTURES:
            tensor = explainer.prepare(str(picture))[1]
            monitor.wrap(onnxruntime.InferenceSession(path)).run(None, {"images": tensor})
    assert len(sink.records) == len(scenes.PICTURES)
    return sink.records


@pytest.fixture(scope="module")
def scene_records() -> list[dict[str, Any]]:
    return recorded(DETECTOR)


def period(some: list[dict[str, Any]], count: int, first: int = 0, **changes: Any) -> list[dict[str, Any]]:
    """Records of a time with much the same pictures, drawn at random, each once a minute."""
    rng = np.random.default_rng([5, first])
    drawn = []
    for number in range(first, first + count):
        record = copy.deepcopy(some[int(rng.integers(len(some)))])
        record |= {"id": f"{number}", "ts": timestamp(START + 60 * number)}
        prediction = record["prediction"]
        prediction["confidence"] = float(np.clip(prediction["confidence"] + rng.normal(0, 0.02), 0, 1))
        if "most" in changes:
            prediction["boxes"] = prediction["boxes"][: changes["most"]]
        drawn.append(record)
    return drawn


def test_a_baseline_has_what_the_records_have(scene_records: list[dict[str, Any]]) -> None:
    records = period(scene_records, 600)
    document, notes = baselines.build(records)
    baseline = baselines.parse(document)
    assert notes == [] and baseline.configuration.layer == OWN_LAYER == document["layer"]
    names = list(FIELDS)
    values = baseline.rows.values
    assert sorted(values[:, names.index("boxes")]) == sorted(len(r["prediction"]["boxes"]) for r in records)
    assert np.isnan(values[:, names.index("margin")]).all() and "margin" not in document["rows"]["fields"]
    score = sorted(r["prediction"]["confidence"] for r in records)
    assert sorted(values[:, names.index("confidence")]) == pytest.approx(score, abs=1e-5)
    best = records[0]["prediction"]["top"][0]
    assert baseline.labels[best["index"]] == best["label"]
    assert sorted(baseline.rows.predicted) == sorted(r["prediction"]["top"][0]["index"] for r in records)
    record = copy.deepcopy(records[0])
    record["prediction"]["boxes"] *= 6
    distances = baseline.distances(record)
    assert distances["comparable"] and distances["furthest"] == "boxes" and distances["deviation"] > 2


@pytest.mark.slow
def test_parts_merge_into_the_whole(scene_records: list[dict[str, Any]]) -> None:
    records = period(scene_records, 640)
    whole = baselines.build(records)[0]
    parts = [baselines.build(records[k::3], fewest=1)[0] for k in (2, 0, 1)]
    assert content(baselines.merge(parts)[0]) == content(whole)
    assert baselines.parse(json.loads(json.dumps(whole))).rows.maps.shape == baselines.parse(whole).rows.maps.shape


@pytest.mark.slow
def test_fewer_boxes_are_a_drift_and_the_same_are_none(scene_records: list[dict[str, Any]]) -> None:
    detector = Detector(baselines.parse(baselines.build(period(scene_records, 800))[0]), replicates=400)
    same = detector.assess(Rows.of(period(scene_records, 520, 5000), detector.baseline.grid))
    assert same.verdict == "ok"
    fewer = detector.assess(Rows.of(period(scene_records, 520, 5000, most=1), detector.baseline.grid))
    assert [one.name for one in fewer.drifted] == ["boxes"]
    (boxes,) = fewer.drifted
    assert boxes.window == pytest.approx(1.0) and boxes.kind == "mean"


@pytest.mark.slow
def test_maps_of_all_levels_are_compared() -> None:
    """Maps of two levels of a pyramid, of other sizes, are in one baseline: their energy lies in the same cells."""
    path, sink = detectors.build("yolov8").SerializeToString(), Collector()
    tensors = detectors.pictures(24)
    with onnxcam.Monitor(path, sink=sink, **SETTINGS) as monitor:
        for tensor in tensors:
            monitor.wrap(onnxruntime.InferenceSession(path)).run(None, {"picture": tensor[None]})
    records = sink.records
    for record in records:
        schema.validate(record)
    layers = {record["prediction"]["layer"] for record in records}
    shapes = {tuple(record["map"]["shape"]) for record in records}
    document, notes = baselines.build(records, fewest=1)
    baseline = baselines.parse(document, fewest=1)
    assert len(layers) == len(shapes) == 2 and notes == [] and baseline.configuration.layer == OWN_LAYER
    assert baseline.grid == (8, 8) and baseline.mapped.sum() == sum(not r["attention"]["zero"] for r in records)
    record = records[0]
    levels = np.reshape(record["map"]["values"], record["map"]["shape"])
    energy = Rows.of([record]).maps[0]
    fine = np.kron(levels, np.ones((8, 8)))
    expected = fine.reshape(8, fine.shape[0] // 8, 8, fine.shape[1] // 8).sum((1, 3)) / fine.sum()
    np.testing.assert_allclose(energy, expected, atol=1e-6)
    coarse = shares(np.eye(2))
    assert coarse is not None and coarse.shape == (2, 2), "of a classifier they stay as they are"


@pytest.mark.slow
def test_a_layer_that_was_named_is_another_configuration(scene_records: list[dict[str, Any]]) -> None:
    layer = scene_records[0]["prediction"]["layer"]
    (record, *_) = recorded(DETECTOR, layer=layer)
    assert record["prediction"]["own_layer"] is False
    assert Configuration.of(record).layer == layer != Configuration.of(scene_records[0]).layer


@pytest.mark.slow
def test_a_monitor_compares_with_its_baseline(scene_records: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(baselines.build(period(scene_records, 600))[0]))
    (first, *_) = recorded(DETECTOR, baseline=path)
    assert first["drift"]["comparable"] and first["drift"]["map"] is not None
    schema.validate(first)
    with pytest.raises(SettingError, match="each box's own"):
        onnxcam.Monitor(DETECTOR, sink=Collector(), **SETTINGS, baseline=path, layer=first["prediction"]["layer"])


@pytest.mark.slow
def test_a_segmentation() -> None:
    records = period(recorded(SEGMENTER), 600)
    baseline = baselines.parse(baselines.build(records)[0])
    assert baseline.configuration.layer == records[0]["prediction"]["layer"]
    assert np.isnan(baseline.rows.values[:, list(FIELDS).index("boxes")]).all()
    assert sorted(baseline.rows.target) == sorted(r["prediction"]["target"]["index"] for r in records)


@pytest.mark.slow
def test_a_table_gives_the_baseline_of_the_records(scene_records: list[dict[str, Any]]) -> None:
    explain = Explain(DETECTOR, column="picture", preprocess="0..1")
    paths = column([str(path) for path in scenes.PICTURES])
    batch = explain({"picture": paths, "path": paths})
    table = Table(
        [batch], root="/", moment=scene_records[0]["ts"], when=SETTINGS["when"], task="detect", own_layer=True
    )
    of_table = [candidate.record() for candidate in table]
    for one, other in zip(of_table, scene_records, strict=True):
        rows = [Rows.of([record], (8, 8)) for record in (one, other)]
        np.testing.assert_allclose(rows[0].values, rows[1].values, rtol=0.02, atol=2e-3)
        np.testing.assert_allclose(rows[0].maps, rows[1].maps, atol=2e-3)
        assert rows[0].target == rows[1].target and rows[0].predicted == rows[1].predicted
        assert Configuration.of(one).layer == Configuration.of(other).layer
    with pytest.raises(SettingError, match="which has confidence, label;"):
        Table([batch], root="/", moment=scene_records[0]["ts"], when="margin < 0.1", task="detect")


@pytest.mark.slow
def test_the_commands(scene_records: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    run = CliRunner().invoke
    table = tmp_path / "table.parquet"
    arguments = [str(scenes.FOLDER), "-o", str(table), "--preprocess", "0..1"]
    outcome = run(main, ["batch", str(DETECTOR), *arguments])
    assert outcome.exit_code == 0, outcome.output
    result = run(main, ["monitor", "baseline", str(table), "--part", "-o", str(tmp_path / "b.json"), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "b.json").read_text())
    assert json.loads(result.stdout)["rows"] == len(scenes.PICTURES) and document["layer"] == OWN_LAYER
    assert document["method"] == "layercam" and None not in document["rows"]["fields"]["boxes"]
    numbers = sorted(len(record["prediction"]["boxes"]) for record in scene_records)
    assert sorted(document["rows"]["fields"]["boxes"]) == numbers
