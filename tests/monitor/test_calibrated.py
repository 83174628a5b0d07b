"""A monitor of a calibrated file: conditions, records and feedback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.errors import InputError, SettingError, TargetError
from onnxcam.monitor import feedback, reading, schema
from onnxcam.monitor.metrics import export_coverage
from onnxcam.network import manifest as manifests
from onnxcam.network.calibration import nodes
from onnxcam.network.calibration.conformal import Rule
from onnxcam.network.calibration.record import Calibration
from onnxcam.targets.readout import Readout
from tests.support import models

CALIBRATION = Calibration(
    2.0, Rule("lac", 1.0), 0.1, 0.3, 200, (0.85, 0.94),
    facts={"quantiles": {"n": 200, "levels": [0.01, 0.5], "confidence": [0.1, 0.4]},
           "risk": {"max": 0.05, "confidence": 0.95, "by": "confidence", "threshold": 0.45}},
)  # fmt: skip
READOUT = Readout("logits", "logits", 5)


@pytest.fixture
def model() -> onnx.ModelProto:
    """A calibrated file."""
    result = onnxcam.augment(models.tiny_cnn(), labels=list("abcde"), probe=False)
    manifest = manifests.read(result)
    assert manifest is not None
    nodes.attach(result, manifest, CALIBRATION)
    manifests.write(result, manifest)
    return result


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1.2, (40, 5)).astype(np.float32)


def watch(model: onnx.ModelProto, folder: Path, when: str, **settings: Any) -> onnxcam.Monitor:
    return onnxcam.Monitor(
        model, sink=str(folder), when=when, worker="inline", rate=None, daily_budget=None, sample=1.0,
        duplicates=None, baseline_sample=0.0, redact="hash", sink_options={"min_free": 0}, **settings,
    )  # fmt: skip


def observe(monitor: onnxcam.Monitor, scores: np.ndarray, cut: int) -> Iterator[int]:
    tensor = np.random.default_rng(1).random((len(scores), 3, 32, 32), np.float32)
    for start in range(0, len(scores), cut):
        rows = slice(start, start + cut)
        yield monitor.observe(scores[rows], tensor=tensor[rows], ids=[f"r{k}" for k in range(start, start + cut)])


@pytest.mark.parametrize("when", ["set > 1", "calibrated < 0.4", "risk > 5%", "set == 0 or confidence < 0.3"])
def test_records_are_of_the_rows_that_meet_the_condition(
    model: onnx.ModelProto, scores: np.ndarray, tmp_path: Path, when: str
) -> None:
    with watch(model, tmp_path, when, scores="logits") as monitor:
        for _ in observe(monitor, scores, 8):
            pass
    inside, p = CALIBRATION.sets(scores, READOUT), CALIBRATION.probabilities(scores, READOUT).max(axis=1)
    size, confidence = inside.sum(axis=1), READOUT.probabilities(scores).max(axis=1)
    want = {
        "set > 1": size != 1,
        "calibrated < 0.4": p < 0.4,
        "risk > 5%": confidence < 0.45,
        "set == 0 or confidence < 0.3": (size == 0) | (confidence < 0.3),
    }[when]
    assert 0 < want.sum() < 40
    records = {record["request"]: record for record in reading.records(tmp_path)}
    assert sorted(records) == sorted(f"r{k}" for k in np.flatnonzero(want))
    for identity, record in records.items():
        schema.validate(record)
        row, prediction = int(identity[1:]), record["prediction"]
        assert prediction["set_size"] == size[row]
        assert prediction["set"] == {
            "classes": [k for k in np.argsort(-scores[row]) if inside[row, k]], "alpha": 0.1, "n": 200,
            "empty": "allowed",
        }  # fmt: skip
        assert prediction["calibrated"] == pytest.approx(p[row], abs=1e-6)


def test_the_share_of_traffic_is_ranked_among_recent_rows(
    model: onnx.ModelProto, scores: np.ndarray, tmp_path: Path
) -> None:
    results = []
    for cut in (1, 8):
        with watch(model, tmp_path / str(cut), "top 20%", scores="logits") as monitor:
            queued = sum(observe(monitor, scores, cut))
            results.append((queued, monitor.stats()["thresholds"]))
    assert results[0] == results[1]
    queued, thresholds = results[0]
    assert thresholds["top 20% by confidence"]["rows"] == 40
    assert thresholds["top 20% by confidence"]["warm_up"] == 4
    assert 2 <= queued <= 16


@pytest.mark.parametrize(
    ("when", "want"),
    [
        ("not top 20%", set(range(4, 40))),
        ("top 20% or not top 20%", set(range(40))),
        ("confidence <= 1 or not top 20%", set(range(40))),
    ],
)
def test_without_a_threshold_the_first_rows_are_on_no_side(
    scores: np.ndarray, tmp_path: Path, when: str, want: set[int]
) -> None:
    with watch(models.tiny_cnn(), tmp_path, when, scores="logits") as monitor:
        for _ in observe(monitor, scores, 8):
            pass
    requests = {int(record["request"][1:]) for record in reading.records(tmp_path)}
    assert requests - want == set() and (requests == want) is (when != "not top 20%")
    assert (0 in requests) is (when != "not top 20%")


def test_probabilities_alone_are_enough(model: onnx.ModelProto, scores: np.ndarray, tmp_path: Path) -> None:
    counts = []
    for form, values in (("logits", scores), ("probabilities", READOUT.probabilities(scores))):
        with watch(model, tmp_path / form, "set > 1 or calibrated < 0.3", scores=form) as monitor:
            counts.append(sum(observe(monitor, values, 8)))
    assert counts[0] == counts[1] > 0


def test_feedback_is_stored_by_label_or_index_and_scraped(
    model: onnx.ModelProto, scores: np.ndarray, tmp_path: Path
) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    with watch(model, tmp_path, "confidence <= 1", scores="logits") as monitor:
        for _ in observe(monitor, scores, 8):
            pass
        assert monitor.feedback("r0", "b") == 1
        assert monitor.feedback(["r1", "r2"], [0, np.int64(3)]) == 2
        with pytest.raises(TargetError):
            monitor.feedback("r3", "z")
        with pytest.raises(InputError, match="2 ids and 1 true classes"):
            monitor.feedback(["r3", "r4"], [1])
        with pytest.raises(InputError, match="-1"):
            monitor.feedback("r3", -1)
    assert feedback.read(tmp_path).by_id == {"r0": 1, "r1": 0, "r2": 3}
    registry = prometheus.CollectorRegistry()
    export_coverage(tmp_path, registry)
    assert registry.get_sample_value("onnxcam_monitor_coverage_pictures") == 3
    inside = CALIBRATION.sets(scores, READOUT)
    want = np.mean([inside[0, 1], inside[1, 0], inside[2, 3]])
    assert registry.get_sample_value("onnxcam_monitor_coverage_ratio") == pytest.approx(want)
    assert registry.get_sample_value("onnxcam_monitor_coverage_alarm") == 0


def test_a_plain_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="this file has no calibration"):
        watch(models.tiny_cnn(), tmp_path, "set > 1")
    with watch(models.tiny_cnn(), tmp_path / "top", "top 5%") as monitor:  # recent traffic needs none
        assert monitor.stats()["thresholds"]["top 5% by confidence"]["threshold"] is None
    silent = onnxcam.Monitor(models.tiny_cnn(), sink=lambda record, files: None)
    with silent, pytest.raises(SettingError, match="no sink of this monitor is one"):
        silent.feedback("a", 1)
