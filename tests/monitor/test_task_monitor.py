"""A monitor beside a detector or a segmentation: its best box, its largest class, and what it refuses."""

from __future__ import annotations

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
from onnxcam.errors import ModelError, OnnxcamError, SettingError
from onnxcam.monitor import schema
from tests.monitor.monitoring import UNLIMITED, Collector, balanced
from tests.support import detectors, scenes

DETECTOR, SEGMENTER = models.path("scenes/detector.onnx"), models.path("scenes/segmenter.onnx")
SETTINGS: dict[str, Any] = {"worker": "inline", "baseline_sample": 0, **UNLIMITED}


@pytest.fixture(scope="module")
def explainer() -> onnxcam.Explainer:
    return onnxcam.Explainer(DETECTOR, preprocess="0..1", probe=False)


@pytest.fixture(scope="module")
def tensors(explainer: onnxcam.Explainer) -> np.ndarray:
    return np.concatenate([explainer.prepare(str(path))[1] for path in scenes.PICTURES])


@pytest.fixture(scope="module")
def ready() -> bytes:
    return onnxcam.augment(DETECTOR, probe=False).SerializeToString()


@pytest.mark.slow
def test_the_best_box_meets_the_condition_and_is_explained(
    explainer: onnxcam.Explainer, tensors: np.ndarray, ready: bytes
) -> None:
    sink, plain = Collector(), onnxruntime.InferenceSession(DETECTOR)
    with onnxcam.Monitor(ready, sink=sink, when="confidence < 0.85 or label == 'star'", **SETTINGS) as monitor:
        observed = monitor.wrap(plain).run(None, {"images": tensors})
        assert np.array_equal(observed[0], plain.run(None, {"images": tensors})[0])
        listed = [explainer.boxes(str(path)) for path in scenes.PICTURES]
        due = [k for k, boxes in enumerate(listed) if boxes[0].score < 0.85 or boxes[0].label == "star"]
        stats = monitor.stats()
        assert balanced(stats) and 0 < len(due) < len(tensors)
        assert (stats["explained"], stats["confident"]) == (len(due), len(tensors) - len(due))
    for k, record in zip(due, sink.records, strict=True):
        schema.validate(record)
        assert schema.is_record(record)
        prediction, best = record["prediction"], listed[k][0]
        assert prediction["task"] == "detect" and prediction["margin"] is prediction["entropy"] is None
        assert prediction["confidence"] == pytest.approx(best.score, rel=1e-5)
        assert prediction["top"][0]["label"] == prediction["target"]["label"] == best.label
        assert prediction["target"]["candidate"] == best.index == prediction["boxes"][0]["index"]
        assert prediction["target"]["score"] == pytest.approx(best.score, rel=1e-5)
        # boxes are in pixels of what was observed, the prepared tensor
        height, width = record["picture"]["size"]
        scale = width / explainer.prepare(str(scenes.PICTURES[k]))[0].pixels.shape[1]
        assert height == width and prediction["target"]["box"] == pytest.approx(np.array(best.box) * scale, abs=0.1)
        answer = explainer.explain(str(scenes.PICTURES[k]))
        assert prediction["layer"] == answer.maps[0].scalar.layer and prediction["method"] == answer.method
        assert [one["index"] for one in prediction["boxes"]] == [one.index for one in listed[k][:20]]
        raw = explainer.attribute(tensors[k : k + 1], onnxcam.targets.Box(best.index), normalize="none", size="layer")
        from onnxcam.explain import statistics

        centroid = statistics.describe(raw[0])["centroid"]
        assert record["attention"]["centroid"] == pytest.approx(centroid, abs=1e-4)


@pytest.mark.parametrize("worker", ["inline", pytest.param("process", marks=pytest.mark.slow)])
def test_pictures_and_a_decorated_function(explainer: onnxcam.Explainer, ready: bytes, worker: str) -> None:
    """Boxes are in pixels of the picture where that is what was observed; a worker process gets all it needs."""
    sink = Collector()
    settings = SETTINGS | {"worker": worker}
    with onnxcam.Monitor(ready, sink=sink, when="confidence <= 1", preprocess="0..1", **settings) as monitor:

        @monitor.watch(scores="boxes")
        def predict(picture: str) -> dict[str, Any]:
            return {"boxes": explainer.batch_scores(explainer.prepare(picture)[1]).reshape(1, 8, 320)}

        predict(str(scenes.PICTURES[0]))
        assert monitor.flush(60)
        assert balanced(monitor.stats()) and monitor.stats()["explained"] == 1
    best = explainer.boxes(str(scenes.PICTURES[0]))[0]
    assert sink.records[0]["prediction"]["target"]["box"] == pytest.approx(best.box, rel=1e-3)


def test_the_largest_class_of_a_segmentation(tensors: np.ndarray) -> None:
    sink = Collector()
    with onnxcam.Monitor(
        SEGMENTER, sink=sink, when="confidence < 0.8 and label == 'background'", **SETTINGS
    ) as monitor:
        (scores,) = monitor.wrap(onnxruntime.InferenceSession(SEGMENTER)).run(None, {"images": tensors})
        stats = monitor.stats()
        bad = scores.copy()
        bad[0, 0, 0, 0] = np.nan  # as uncertain as possible, and so of the condition
        monitor.observe(bad[:1], tensor=tensors[:1])
        assert monitor.stats()["explained"] == stats["explained"] + 1
    classes = scores.argmax(axis=1).reshape(len(scores), -1)
    shares = (classes == 0).mean(axis=1)
    assert stats["explained"] == (shares < 0.8).sum() > 0 and balanced(stats)
    for row, record in zip(np.flatnonzero(shares < 0.8), sink.records, strict=False):
        schema.validate(record)
        counts = np.bincount(classes[row], minlength=5)
        assert record["prediction"]["confidence"] == pytest.approx(shares[row], abs=1e-6)
        assert record["prediction"]["target"]["index"] == counts[1:].argmax() + 1  # the background is no object
        assert "boxes" not in record["prediction"]


def test_outputs_that_are_not_of_the_model_are_counted(ready: bytes, tensors: np.ndarray) -> None:
    with onnxcam.Monitor(ready, sink=Collector(), **SETTINGS) as monitor:
        assert monitor.observe(np.zeros((2, 8, 319), np.float32), tensor=tensors[:2]) == 0
        assert monitor.observe(np.zeros((3, 8, 320), "U1"), tensor=tensors[:3]) == 0
        assert monitor.observe({"output1": np.zeros((1, 8, 320))}, tensor=tensors[:1]) == 0
        stats = monitor.stats()
        assert balanced(stats) and stats["dropped"]["invalid"] == stats["seen"] == 6


@pytest.mark.parametrize("name", ["detr", "torchvision"])
def test_several_outputs_are_read_together(name: str) -> None:
    """Of a detector with its NMS inside a picture without any candidate has nothing to explain."""
    model = detectors.build(name).SerializeToString()
    sink, session = Collector(), onnxruntime.InferenceSession(model)
    pictures = detectors.pictures(1)
    with onnxcam.Monitor(model, sink=sink, when="confidence <= 1", **SETTINGS) as monitor:
        watched, first = monitor.wrap(session), session.get_outputs()[0].name
        names = {i.name: pictures for i in session.get_inputs()}
        assert len(watched.run([first], names)) == 1
        assert monitor.stats()["explained"] == 1, monitor.stats()
        if name == "torchvision":
            outputs = {o.name: v[:0] for o, v in zip(session.get_outputs(), session.run(None, names), strict=True)}
            assert monitor.observe(outputs, tensor=pictures) == 0
            assert monitor.stats()["confident"] == 1
        assert balanced(monitor.stats())
    schema.validate(sink.records[0])
    reported, prediction = onnxcam.Explainer(model, probe=False).boxes(pictures), sink.records[0]["prediction"]
    assert [one["index"] for one in prediction["boxes"]] == [one.index for one in reported[:20]]
    for entry, one in zip(prediction["boxes"], reported, strict=False):
        assert entry["box"] == pytest.approx(one.box, abs=1e-2) and entry["score"] == pytest.approx(one.score, abs=1e-5)


@pytest.mark.parametrize("when", ["margin < 0.1", "entropy > 0.5", "set > 1", "top 5% by margin", "risk > 1%"])
def test_conditions_on_classes_are_refused(ready: bytes, when: str) -> None:
    with pytest.raises(SettingError, match="best box"):
        onnxcam.Monitor(ready, sink=Collector(), when=when)


def test_what_compares_classes_is_refused(ready: bytes) -> None:
    with pytest.raises(ModelError, match="'embed'"):
        onnxcam.Monitor(detectors.build("embed").SerializeToString(), sink=Collector())
    with onnxcam.Monitor(ready, sink=Collector()) as monitor, pytest.raises(ModelError, match="feedback"):
        monitor.feedback("a", 1)
    with pytest.raises(OnnxcamError, match="outputs"), onnxcam.Monitor(ready, sink=Collector()) as monitor:
        monitor.wrap(onnxruntime.InferenceSession(SEGMENTER))


@pytest.mark.slow
def test_records_are_read_and_reported(ready: bytes, tensors: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "cam"
    with onnxcam.Monitor(ready, sink=folder, when="confidence <= 1", **SETTINGS, redact="none") as monitor:
        monitor.wrap(onnxruntime.InferenceSession(ready)).run(["output0"], {"images": tensors})
    run = CliRunner().invoke
    reply = run(main, ["monitor", "query", str(folder), "--where", "confidence < 0.85", "--json"])
    records = [json.loads(line) for line in reply.stdout.splitlines()]
    assert records and all(one["prediction"]["confidence"] < 0.85 for one in records)
    for command in (["tail"], ["stats"], ["query", "--sort", "margin"], ["feedback"]):
        result = run(main, ["monitor", command[0], str(folder), *command[1:]])
        assert result.exit_code == 0, result.output
    assert "detector" in result.output
    result = run(main, ["monitor", "report", str(folder), "-o", str(tmp_path / "report.html")])
    assert (
        result.exit_code == 0 and records[0]["prediction"]["target"]["label"] in (tmp_path / "report.html").read_text()
    )
