"""What the monitor sees, keeps and explains."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import special, stats

import onnxcam
from onnxcam.errors import LabelsError, ModelError, SettingError, TargetError
from onnxcam.monitor.hook import Monitor, request
from onnxcam.monitor.page import _pictures
from onnxcam.monitor.schema import validate
from tests.monitor.monitoring import (
    ALWAYS,
    CLASSES,
    MODEL,
    PLAIN,
    UNLIMITED,
    Collector,
    FakeClock,
    Gate,
    balanced,
    logits,
    pictures,
)

LABELS = ["ant", "bee", "cat", "dog", "eel"]
UNIT = {"color": "RGB", "scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def monitor(collector: Collector) -> Iterator[Monitor]:
    with Monitor(
        MODEL, sink=collector, when=ALWAYS, labels=LABELS, preprocess=UNIT, redact="none", **UNLIMITED
    ) as watcher:
        yield watcher


def noise(seed: int = 0, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_records_say_what_was_predicted_and_seen(monitor: Monitor, collector: Collector) -> None:
    batch, scores = pictures(3), logits(3)
    assert monitor.observe(scores, tensor=batch, ids=["a", None, 7], traces=["t"] * 3) == 3
    assert monitor.flush(10)
    p = special.softmax(scores.astype(np.float64), axis=1)
    maps = onnxcam.Explainer(MODEL).attribute(batch, list(scores.argmax(axis=1)), normalize="none", size="layer")
    for row, record in enumerate(collector.records):
        validate(record)
        prediction = record["prediction"]
        best = np.argsort(-p[row])
        assert [entry["index"] for entry in prediction["top"]] == best.tolist()
        np.testing.assert_allclose([entry["probability"] for entry in prediction["top"]], p[row][best], rtol=1e-5)
        assert prediction["target"] == {"index": int(best[0]), "label": LABELS[best[0]]}
        assert prediction["confidence"] == pytest.approx(p[row].max(), rel=1e-5)
        assert prediction["margin"] == pytest.approx(p[row][best[0]] - p[row][best[1]], rel=1e-4)
        assert prediction["entropy"] == pytest.approx(stats.entropy(p[row]) / np.log(CLASSES), rel=1e-5)
        np.testing.assert_allclose(record["map"]["values"], maps[row].ravel() / maps[row].max() * 255, atol=0.51)
        assert record["picture"]["sha256"] == hashlib.sha256(batch[row : row + 1].tobytes()).hexdigest()
        assert record["model"]["sha256"] == hashlib.sha256(MODEL).hexdigest()
        assert record["trigger"] == {"when": ALWAYS, "reason": "condition", "sample": 1.0}
    assert [r["request"] for r in collector.records] == ["a", None, "7"]
    assert [r["trace"] for r in collector.records] == ["t"] * 3


def test_pictures_are_prepared_and_mapped_back(monitor: Monitor, collector: Collector, tmp_path: Path) -> None:
    pixels = noise()
    encoded = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    (tmp_path / "a.png").write_bytes(encoded)
    scores = logits(4)
    assert monitor.observe(scores, pictures=[encoded, pixels, tmp_path / "a.png", str(tmp_path / "a.png")]) == 4
    assert monitor.flush(10)
    explainer = onnxcam.Explainer(MODEL, preprocess=UNIT)
    for row, (record, files) in enumerate(zip(collector.records, collector.files, strict=True)):
        reference = explainer.explain(pixels, int(scores[row].argmax()), normalize="max")
        drawn = {kind: cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1] for kind, data in files.items()}
        assert record["picture"]["size"] == [40, 60]
        np.testing.assert_array_equal(drawn["input"], pixels)
        np.testing.assert_array_equal(drawn["overlay"], reference.overlay())
        raw = reference.raw_map.ravel()
        assert record["attention"]["zero"] == (not raw.any())
        np.testing.assert_allclose(record["map"]["values"], raw / max(raw.max(), 1e-9) * 255, atol=0.51)
    digests = [record["picture"]["sha256"] for record in collector.records]
    assert digests[0] == digests[2] == digests[3] == hashlib.sha256(encoded).hexdigest() != digests[1]


def test_a_tensor_is_shown_as_the_picture_it_was(monitor: Monitor, collector: Collector) -> None:
    pixels = noise(size=(32, 32))
    tensor = np.moveaxis(pixels.astype(np.float32) / 255, -1, 0)[None]
    monitor.observe(logits(1), tensor=tensor)
    assert monitor.flush(10)
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(collector.files[0]["input"], np.uint8), 1)[..., ::-1], pixels
    )


def test_one_row_needs_no_batch_axis(monitor: Monitor, collector: Collector) -> None:
    scores, batch = logits(1)[0], pictures(1)[0]
    assert monitor.observe(scores, tensor=batch) == 1
    assert monitor.observe(scores, pictures=noise()) == 1
    assert monitor.observe(scores, pictures=cv2.imencode(".png", noise())[1].tobytes(), ids="r") == 1
    assert monitor.flush(10)
    assert monitor.stats()["explained"] == 3, monitor.stats()
    assert collector.records[2]["request"] == "r"


def test_only_what_meets_the_condition(collector: Collector) -> None:
    scores = logits(400, spread=3)
    p = special.softmax(scores.astype(np.float64), axis=1)
    sorted_p = np.sort(p, axis=1)
    met = (p.max(axis=1) < 0.6) & (p.argmax(axis=1) != 2) | (sorted_p[:, -1] - sorted_p[:, -2] < 0.05)
    when = "confidence < 0.6 and label != 'cat' or margin < 0.05"
    with Monitor(
        MODEL, sink=collector, when=when, labels=LABELS, baseline_sample=0, queue=1000, redact="hash", **UNLIMITED
    ) as monitor:
        assert monitor.observe(scores, tensor=pictures(400)) == met.sum()
        assert monitor.flush(60)
        assert monitor.stats()["confident"] == 400 - met.sum()
    np.testing.assert_allclose(
        [r["prediction"]["confidence"] for r in collector.records], p[met].max(axis=1), rtol=1e-5
    )


def test_confident_rows_are_sampled_for_the_baseline(collector: Collector) -> None:
    scores = np.zeros((2000, CLASSES), np.float32)
    scores[:, 1] = 9
    tensor = np.broadcast_to(pictures(1), (2000, 3, 32, 32))
    with Monitor(
        MODEL,
        sink=collector,
        when="confidence < 0.6",
        baseline_sample=0.05,
        queue=1000,
        seed=3,
        redact="hash",
        **UNLIMITED,
    ) as monitor:
        queued = monitor.observe(scores, tensor=tensor)
        assert 65 < queued < 135  # 3.5 standard deviations
        assert monitor.flush(60)
        result = monitor.stats()
    assert result["confident"] == 2000 - queued and result["baseline"] == queued
    assert {(r["trigger"]["reason"], r["trigger"]["sample"]) for r in collector.records} == {("baseline", 0.05)}


def test_unsure_rows_are_sampled(collector: Collector) -> None:
    with Monitor(
        MODEL, sink=collector, when=ALWAYS, sample=0.1, queue=1000, seed=3, redact="hash", **UNLIMITED
    ) as monitor:
        queued = monitor.observe(logits(1000), tensor=np.broadcast_to(pictures(1), (1000, 3, 32, 32)))
        assert 65 < queued < 135
        assert monitor.stats()["dropped"]["sample"] == 1000 - queued
        assert monitor.flush(30)
    assert {r["trigger"]["sample"] for r in collector.records} == {0.1}


@pytest.mark.slow
def test_any_framework(monitor: Monitor, collector: Collector) -> None:
    torch = pytest.importorskip("torch")
    batch, scores = pictures(2), logits(2)
    grown = torch.tensor(scores, requires_grad=True)
    assert monitor.observe(grown * 1, tensor=torch.tensor(batch)) == 2
    assert monitor.observe(scores.tolist(), tensor=batch.tolist()) == 2
    assert monitor.observe(torch.tensor(scores).half(), tensor=torch.tensor(batch).double()) == 2
    assert monitor.flush(10)
    assert monitor.stats()["explained"] == 6, monitor.stats()
    maps = [record["map"]["values"] for record in collector.records]
    assert maps[0] == maps[2] == maps[4] and maps[1] == maps[3] == maps[5]


@pytest.mark.slow
def test_logits_and_probabilities_are_told_apart(collector: Collector) -> None:
    scores = logits(50)
    p = special.softmax(scores.astype(np.float64), axis=1)
    with Monitor(MODEL, sink=collector, when=ALWAYS, redact="hash", **UNLIMITED) as monitor:
        for values in (scores, p.astype(np.float32), np.log(p)):
            monitor.observe(values, tensor=pictures(50))
            assert monitor.flush(20)
    result = np.array([r["prediction"]["confidence"] for r in collector.records]).reshape(3, 50)
    np.testing.assert_allclose(result, np.broadcast_to(p.max(axis=1), (3, 50)), rtol=1e-4)


def test_what_was_explained_a_moment_ago_is_not_again(collector: Collector) -> None:
    clock = FakeClock()
    options = UNLIMITED | {"duplicates": "1min"}
    with Monitor(MODEL, sink=collector, when=ALWAYS, clock=clock, **options) as monitor:
        batch, scores = pictures(2), logits(2)
        for _ in range(3):
            monitor.observe(scores, tensor=batch)
        assert monitor.flush(10)
        assert (monitor.stats()["explained"], monitor.stats()["dropped"]["duplicate"]) == (2, 4)
        clock.now += 61
        monitor.observe(scores, tensor=batch)
        assert monitor.flush(10)
        assert (monitor.stats()["explained"], monitor.stats()["dropped"]["duplicate"]) == (4, 4)
        monitor.observe(scores[:1], tensor=batch[:1] + 1e-3)  # another picture
        monitor.observe(np.roll(scores[:1], 1), tensor=batch[:1])  # another class of the same
        assert monitor.flush(10)
        assert monitor.stats()["explained"] == 6


@pytest.mark.parametrize("on_full", ["drop_newest", "drop_oldest"])
def test_a_full_queue_drops_by_policy(on_full: str, collector: Collector) -> None:
    gate = Gate()
    with Monitor(MODEL, sink=[gate, collector], when=ALWAYS, queue=3, on_full=on_full, **UNLIMITED) as monitor:
        monitor.observe(logits(1), tensor=pictures(1), ids=["first"])
        assert gate.entered.wait(10)
        for k in range(6):
            assert monitor.observe(logits(1), tensor=pictures(1), ids=[str(k)]) == (on_full == "drop_oldest" or k < 3)
        result = monitor.stats()
        assert (result["queued"], result["running"]) == (3, 1) and balanced(result)
        assert result["dropped"]["queue" if on_full == "drop_newest" else "evicted"] == 3
        gate.open.set()
        assert monitor.flush(10)
    names = [record["request"] for record in collector.records]
    assert names == ["first", *("012" if on_full == "drop_newest" else "345")]


def test_bytes_bound_the_queue(collector: Collector) -> None:
    gate = Gate()
    row = pictures(1).nbytes + 4 * CLASSES + 1024
    with Monitor(MODEL, sink=[gate, collector], when=ALWAYS, queue_bytes=3 * row, **UNLIMITED) as monitor:
        assert monitor.observe(logits(8), tensor=pictures(8)) == 3
        assert monitor.stats()["dropped"]["bytes"] == 5
        assert monitor.stats()["queue_bytes"] == 3 * row
        huge = np.zeros((400, 400, 3), np.uint8)
        assert monitor.observe(logits(1), pictures=[huge]) == 0
        gate.open.set()


def test_nonsense_is_counted_and_told(monitor: Monitor, caplog: pytest.LogCaptureFixture) -> None:
    scores, batch = logits(2), pictures(2)
    nonsense: list[tuple[Any, dict[str, Any]]] = [
        (scores[:, :3], {"tensor": batch}),
        (scores, {"tensor": batch[:1]}),
        (scores, {}),
        (scores, {"tensor": batch, "pictures": [b"", b""]}),
        (scores, {"pictures": [batch[0], batch[1]]}),
        (scores, {"tensor": batch, "ids": ["one"]}),
        ([["a", "b"], ["c"]], {"tensor": batch}),
        (None, {"tensor": batch}),
        ({"scores": 1}, {"tensor": batch}),
    ]
    for values, keywords in nonsense:
        assert monitor.observe(values, **keywords) == 0
    result = monitor.stats()
    assert result["dropped"]["invalid"] == result["seen"] == 7 * 2 + 1 + 1
    assert "expected numbers [N, 5]" in caplog.text


def test_a_picture_that_is_none_fails_alone(monitor: Monitor, collector: Collector) -> None:
    good = cv2.imencode(".png", noise())[1].tobytes()
    assert monitor.observe(logits(3), pictures=[good, b"not a picture", good]) == 3
    assert monitor.flush(10)
    result = monitor.stats()
    assert (result["explained"], result["failed"], result["failures"]["explain"]) == (2, 1, 1)


def test_wrong_tensors_fail_in_the_worker(monitor: Monitor) -> None:
    monitor.observe(logits(1), tensor=pictures(1)[:, :2])
    assert monitor.flush(10)
    assert monitor.stats()["failures"]["explain"] == 1


def test_scores_that_are_not_finite_are_explained(monitor: Monitor, collector: Collector) -> None:
    monitor.observe(np.full((1, CLASSES), np.nan, np.float32), tensor=pictures(1))
    assert monitor.flush(10)
    assert monitor.stats()["explained"] == 1
    assert collector.records[0]["prediction"]["confidence"] == 0
    validate(collector.records[0])


def test_requests_are_named_by_their_context(monitor: Monitor, collector: Collector) -> None:
    async def serve(name: str) -> None:
        with request(name, trace=f"trace-{name}"):
            await asyncio.sleep(0.01)
            monitor.observe(logits(1), tensor=pictures(1))

    async def all_at_once() -> None:
        await asyncio.gather(*(serve(str(k)) for k in range(5)))

    asyncio.run(all_at_once())
    monitor.observe(logits(1), tensor=pictures(1))
    assert monitor.flush(10)
    assert {(r["request"], r["trace"]) for r in collector.records} == {(str(k), f"trace-{k}") for k in range(5)} | {
        (None, None)
    }


def test_watched_functions(monitor: Monitor, collector: Collector) -> None:
    batch, scores = pictures(2), logits(2)
    encoded = cv2.imencode(".png", noise())[1].tobytes()

    @monitor.watch(image=0)
    def predict(inputs: Any) -> np.ndarray:
        """Says."""
        return scores

    @monitor.watch(image="picture", scores="probabilities")
    def named(threshold: float, *, picture: Any) -> dict[str, Any]:
        return {"probabilities": special.softmax(scores[:1], axis=1)}

    @monitor.watch(image="inputs", scores=lambda out: out[1])
    async def later(self: Any, inputs: Any) -> tuple[str, np.ndarray]:
        return "ok", scores[0]

    assert predict(batch) is scores and predict(inputs=[noise(), encoded]) is scores
    assert predict.__doc__ == "Says." and predict.__name__ == "predict"
    assert list(named(0.5, picture=[encoded])) == ["probabilities"]
    assert asyncio.run(later(None, noise()))[0] == "ok"
    assert monitor.flush(10)
    assert monitor.stats()["explained"] == 6, monitor.stats()


def test_a_watched_function_fails_as_before(monitor: Monitor) -> None:
    @monitor.watch()
    def predict(inputs: Any) -> Any:
        raise ValueError("mine")

    @monitor.watch()
    def silent() -> None:
        return None

    with pytest.raises(ValueError, match="mine"):
        predict(pictures(1))
    assert silent() is None
    assert monitor.stats()["seen"] == 0
    with pytest.raises(SettingError, match="arguments"):
        monitor.watch(image="nothing")(predict)


def test_a_function_watched_twice_is_refused(monitor: Monitor) -> None:
    """Every prediction would count twice; also behind another decorator."""
    watched = monitor.watch()(lambda tensor: logits(1))
    for again in (watched, functools.lru_cache(watched), functools.wraps(watched)(lambda tensor: watched(tensor))):
        with pytest.raises(SettingError, match="watched by this monitor already"):
            monitor.watch()(again)  # type: ignore[type-var]
    with Monitor(MODEL, sink=Collector(), when=ALWAYS, **UNLIMITED) as other:
        other.watch()(watched)(pictures(1))
        assert (monitor.stats()["seen"], other.stats()["seen"]) == (1, 1)


@pytest.mark.parametrize("worker", ["thread", "process", "inline"])
def test_every_worker_explains_the_same(worker: str, collector: Collector) -> None:
    with Monitor(
        MODEL, sink=collector, when=ALWAYS, worker=worker, redact="none", preprocess=UNIT, **UNLIMITED
    ) as monitor:
        assert monitor.observe(logits(2), tensor=pictures(2)) == 2
        if worker == "inline":
            assert len(collector.records) == 2
        assert monitor.observe(logits(1), pictures=[noise()]) == 1
        assert monitor.flush(60)
    other = Collector()
    with Monitor(
        MODEL, sink=other, when=ALWAYS, worker="inline", redact="none", preprocess=UNIT, **UNLIMITED
    ) as monitor:
        monitor.observe(logits(2), tensor=pictures(2))
        monitor.observe(logits(1), pictures=[noise()])
    assert collector.files == other.files
    for ours, theirs in zip(collector.records, other.records, strict=True):
        same = ("prediction", "attention", "map", "picture", "pid", "model")
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


def test_a_layer_and_method_of_choice(collector: Collector) -> None:
    with Monitor(PLAIN, sink=collector, when=ALWAYS, layer="relu1", method="gradcam", **UNLIMITED) as monitor:
        monitor.observe(logits(1), tensor=pictures(1))
        assert monitor.flush(10)
    assert collector.records[0]["prediction"]["layer"] == "relu1"
    assert collector.records[0]["map"]["shape"] == [16, 16]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"when": "confidence < 60"}, SettingError),
        ({"when": "label == 'unicorn'", "labels": LABELS}, TargetError),
        ({"sample": 1.5}, SettingError),
        ({"baseline_sample": True}, SettingError),
        ({"rate": "fast"}, SettingError),
        ({"burst": 0}, SettingError),
        ({"daily_budget": 1.5}, SettingError),
        ({"queue": 0}, SettingError),
        ({"queue_bytes": "lots"}, SettingError),
        ({"on_full": "panic"}, SettingError),
        ({"worker": "gpu"}, SettingError),
        ({"scores": "percent"}, SettingError),
        ({"redact": "everything"}, SettingError),
        ({"duplicates": "never"}, SettingError),
        ({"labels": ["one"]}, LabelsError),
        ({"sink": 3}, SettingError),
        ({"sink_options": {"retain_bytes": "x"}, "sink": "/tmp/never"}, SettingError),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Monitor(MODEL, **({"sink": Collector()} | options))


def test_a_model_that_cannot_be() -> None:
    with pytest.raises(ModelError):
        Monitor(b"not a model", sink=Collector())
    with pytest.raises(ModelError):
        Monitor("/nowhere/model.onnx", sink=Collector())


@pytest.mark.slow
def test_a_model_that_goes_missing_is_opened_again(tmp_path: Path, collector: Collector) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    with Monitor(path, sink=collector, when=ALWAYS, **UNLIMITED) as monitor:
        path.rename(tmp_path / "gone.onnx")
        monitor.observe(logits(1), tensor=pictures(1))
        assert monitor.flush(10)
        assert monitor.stats()["failures"]["worker"] == 1
        (tmp_path / "gone.onnx").rename(path)
        monitor.observe(logits(1), tensor=pictures(1))
        assert monitor.flush(10)
        assert monitor.stats()["explained"] == 1


def test_a_folder_gets_records_and_pictures(tmp_path: Path) -> None:
    with Monitor(MODEL, sink=tmp_path / "cam", when=ALWAYS, **UNLIMITED, sink_options={"sync": False}) as monitor:
        monitor.observe(logits(2), tensor=pictures(2))
        assert monitor.flush(10)
    assert len(list((tmp_path / "cam" / "files").rglob("*-heatmap.png"))) == 2
    assert sum(len(p.read_text().splitlines()) for p in (tmp_path / "cam" / "records").glob("*.jsonl")) == 2


def test_a_layer_of_a_part_is_recorded_where_it_lies(collector: Collector) -> None:
    """The record's map and region cover the whole input, the picture is drawn as an explanation has it."""
    source = Path(__file__).parent.parent / "cases" / "crop_inside.onnx"
    model = onnxcam.augment(source, preprocess=UNIT).SerializeToString()
    region = np.zeros((32, 32))
    region[16:, 16:] = 1  # the crop
    monitor = Monitor(model, sink=collector, when=ALWAYS, region=region, redact="none", **UNLIMITED)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    explainer = onnxcam.Explainer(model)
    scores = explainer.run(explainer.prepare(pixels)[1]).scores
    assert monitor.observe(scores, pictures=[pixels]) == 1 and monitor.flush(10)
    monitor.close(10)
    (record,), (files,) = collector.records, collector.files
    reference = explainer.explain(pixels, normalize="max")
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(files["overlay"], np.uint8), 1)[..., ::-1], reference.overlay()
    )
    colors = cv2.imdecode(np.frombuffer(files["heatmap"], np.uint8), 1)
    assert (np.ptp(colors[:16], axis=2) == 0).all(), "the part that the model never saw is hatched in greys"
    assert np.ptp(colors[17:, 17:], axis=2).min() > 0
    assert record["attention"]["region"] == pytest.approx(1.0)
    stored = np.reshape(record["map"]["values"], record["map"]["shape"])
    half = len(stored) // 2
    assert stored[half:, half:].any() and not stored[:half].any() and not stored[:, :half].any()
    assert record["map"]["covered"] == [0.5, 0.5, 1.0, 1.0]
    validate(record)
    assert "framed: what the layer sees" in "".join(_pictures(record, Path("absent")))
