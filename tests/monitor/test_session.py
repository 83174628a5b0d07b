"""A watched session is the session: same results, same errors, same everything, and the monitor sees what it did."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxcam
from onnxcam.errors import InputError
from onnxcam.monitor import row_explainer
from onnxcam.monitor.hook import Monitor
from onnxcam.network.split import split
from tests.monitor.monitoring import ALWAYS, CLASSES, MODEL, PLAIN, UNLIMITED, Collector, pictures
from tests.support.models import mlp, tiny_cnn


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture
def monitor(collector: Collector) -> Iterator[Monitor]:
    with Monitor(MODEL, sink=collector, when=ALWAYS, **UNLIMITED) as watcher:
        yield watcher


@pytest.fixture(scope="module")
def served() -> Any:
    return ort.InferenceSession(PLAIN)


def expected(batch: np.ndarray) -> np.ndarray:
    """Top-1 maps as `Explainer` computes them, `[N, h, w]`."""
    return onnxcam.Explainer(MODEL).attribute(batch, normalize="none", size="layer")


def check_maps(collector: Collector, batch: np.ndarray) -> None:
    """The records show the maps of the batch's rows, in order, as bytes of their maxima."""
    maps = expected(batch)
    assert len(collector.records) == len(batch)
    for record, want in zip(collector.records, maps, strict=True):
        assert record["map"]["shape"] == list(want.shape)
        levels = want.ravel() / want.max() * 255
        np.testing.assert_allclose(record["map"]["values"], levels, atol=0.51)


def test_run_returns_what_it_returned(monitor: Monitor, collector: Collector, served: Any) -> None:
    watched, batch = monitor.wrap(served), pictures(4)
    for names in (None, ["logits"], []):
        outputs, want = watched.run(names, {"input": batch}), served.run(names, {"input": batch})
        assert type(outputs) is type(want) and len(outputs) == len(want)
        assert outputs[0].tobytes() == want[0].tobytes()
    assert monitor.flush(10)
    assert monitor.stats()["explained"] == 12
    del collector.records[4:]
    check_maps(collector, batch)


def test_everything_else_is_the_sessions(monitor: Monitor, served: Any) -> None:
    watched = monitor.wrap(served)
    assert isinstance(watched, ort.InferenceSession)
    assert [i.name for i in watched.get_inputs()] == ["input"]
    assert watched.get_providers() == served.get_providers()
    assert watched.get_modelmeta().graph_name == "tiny"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = watched.nonsense
    watched.note = 3
    assert served.note == 3
    del served.note


def test_run_async_is_seen_before_its_callback(monitor: Monitor, collector: Collector) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    served = ort.InferenceSession(PLAIN, options)
    watched, batch = monitor.wrap(served), pictures(2)
    want = served.run(None, {"input": batch})[0]
    done, calls = threading.Event(), []

    def callback(results: Any, data: Any, error: str) -> None:
        calls.append((results[0].copy(), data, error, monitor.stats()["seen"]))
        batch[:] = 0  # the caller's again
        done.set()

    watched.run_async(["logits"], {"input": batch}, callback, "mine")
    assert done.wait(10)
    scores, data, error, observed = calls[0]
    assert scores.tobytes() == want.tobytes() and data == "mine" and not error and observed == 2
    assert monitor.flush(10)
    check_maps(collector, pictures(2))


def test_run_async_passes_errors_on(monitor: Monitor) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    watched = monitor.wrap(ort.InferenceSession(PLAIN, options))
    done, calls = threading.Event(), []

    def callback(results: Any, data: Any, error: str) -> None:
        calls.append((list(results), error))
        done.set()

    watched.run_async(["logits"], {"input": pictures(1)[:, :2]}, callback, None)
    assert done.wait(10)
    assert "invalid dimensions" in calls[0][1] and calls[0][0] == []
    assert monitor.stats()["seen"] == 0


@pytest.mark.parametrize("how", ["cpu", "ortvalue", "pointer"])
def test_iobinding_is_seen(how: str, monitor: Monitor, collector: Collector, served: Any) -> None:
    watched, batch = monitor.wrap(served), pictures(3)
    binding = watched.io_binding()
    assert isinstance(binding, ort.IOBinding)
    if how == "cpu":
        binding.bind_cpu_input("input", batch)
    elif how == "ortvalue":
        binding.bind_ortvalue_input("input", ort.OrtValue.ortvalue_from_numpy(batch))
    else:
        binding.bind_input("input", "cpu", 0, np.float32, batch.shape, batch.ctypes.data)
    binding.bind_output("logits")
    watched.run_with_iobinding(binding)
    assert binding.copy_outputs_to_cpu()[0].tobytes() == served.run(None, {"input": batch})[0].tobytes()
    assert monitor.flush(10)
    check_maps(collector, batch)


def test_iobinding_made_elsewhere_runs_unseen(monitor: Monitor, served: Any) -> None:
    watched, batch = monitor.wrap(served), pictures(1)
    binding = ort.IOBinding(watched)
    binding.bind_cpu_input("input", batch)
    binding.bind_output("logits")
    watched.run_with_iobinding(binding)
    assert binding.copy_outputs_to_cpu()[0].tobytes() == served.run(None, {"input": batch})[0].tobytes()
    assert monitor.stats()["seen"] == 0


def test_nothing_of_the_callers_is_kept(monitor: Monitor, collector: Collector, served: Any) -> None:
    watched, batch = monitor.wrap(served), pictures(2)
    results = watched.run(None, {"input": batch})
    results[0][:] = 0
    batch[:] = 0
    assert monitor.flush(10)
    check_maps(collector, pictures(2))


def test_a_runs_logid_names_the_request(monitor: Monitor, collector: Collector, served: Any) -> None:
    options = ort.RunOptions()
    options.logid = "order-66"
    monitor.wrap(served).run(None, {"input": pictures(2)}, options)
    assert monitor.flush(10)
    assert [record["request"] for record in collector.records] == ["order-66"] * 2


def test_run_async_keeps_the_requests_name(monitor: Monitor, collector: Collector) -> None:
    """Of the context in which it was called, and of the options as they were: the callback runs in another thread."""
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = 2
    watched = monitor.wrap(ort.InferenceSession(PLAIN, session_options))
    done = threading.Semaphore(0)

    def callback(results: Any, data: Any, error: str) -> None:
        done.release()

    for name in ("one", "two"):
        with onnxcam.monitor.hook.request(name, trace=f"trace-{name}"):
            watched.run_async(["logits"], {"input": pictures(1)}, callback, None)
        assert done.acquire(timeout=10)
    options = ort.RunOptions()
    options.logid = "three"
    watched.run_async(["logits"], {"input": pictures(1)}, callback, None, options)
    options.logid = "of the next run"
    assert done.acquire(timeout=10)
    assert monitor.flush(10)
    names = [(record["request"], record["trace"]) for record in collector.records]
    assert names == [("one", "trace-one"), ("two", "trace-two"), ("three", None)]


def test_a_session_wrapped_twice_counts_once(monitor: Monitor, served: Any) -> None:
    watched = monitor.wrap(served)
    assert monitor.wrap(watched) is watched
    with Monitor(MODEL, sink=Collector(), when=ALWAYS, **UNLIMITED) as other:
        both = other.wrap(watched)
        assert both is not watched and monitor.wrap(both) is both and other.wrap(both) is both
        both.run(None, {"input": pictures(2)})
        assert (monitor.stats()["seen"], other.stats()["seen"]) == (2, 2)
    monitor.wrap(served).run(None, {"input": pictures(1)})  # the session itself, once more
    assert monitor.stats()["seen"] == 3


def test_probabilities_are_known_by_the_outputs_name(collector: Collector) -> None:
    plain = tiny_cnn(ending="Softmax").SerializeToString()
    with Monitor(plain, sink=collector, when=ALWAYS, **UNLIMITED) as monitor:
        served = ort.InferenceSession(plain)
        batch = pictures(3)
        want = monitor.wrap(served).run(None, {"input": batch})[0]
        assert monitor.flush(10)
    confidences = [record["prediction"]["confidence"] for record in collector.records]
    np.testing.assert_allclose(confidences, want.max(axis=1), rtol=1e-5)


def test_an_explainable_model_may_serve_itself(monitor: Monitor, collector: Collector) -> None:
    served = ort.InferenceSession(MODEL)
    watched, batch = monitor.wrap(served), pictures(2)
    outputs = watched.run(["heatmap"], {"input": batch})
    assert len(outputs) == 1
    assert outputs[0].tobytes() == served.run(["heatmap"], {"input": batch})[0].tobytes()
    assert monitor.flush(10)
    check_maps(collector, batch)


@pytest.mark.parametrize("redact", ["heatmap_only", "none", "hash"])
def test_with_features_exposed_the_tail_alone_is_run(
    redact: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, tails = split(MODEL)
    served = ort.InferenceSession(head.SerializeToString())
    cut = next(iter(tails.values())).cut
    with Monitor(MODEL, sink=collector, when=ALWAYS, redact=redact, **UNLIMITED) as monitor:
        watched, batch = monitor.wrap(served), pictures(3)
        monkeypatch.setattr(row_explainer.Explainer, "attribute", None)  # the whole model is never asked
        outputs = watched.run(["logits"], {"input": batch})
        assert len(outputs) == 1 and outputs[0].tobytes() == served.run(["logits"], {"input": batch})[0].tobytes()
        waiting = monitor.stats()["queue_bytes"]
        assert monitor.flush(10)
        assert monitor.stats()["explained"] == 3, monitor.stats()
    features = sum(value.nbytes for value in served.run(list(cut), {"input": batch}))
    if redact == "heatmap_only":  # the picture itself was not even copied
        assert waiting <= features + 3 * (1024 + 4 * CLASSES)
        assert all(record["picture"] == {"sha256": None, "size": [32, 32]} for record in collector.records)
    else:
        assert all(record["picture"]["sha256"] for record in collector.records)
    assert {frozenset(files) for files in collector.files} == {
        frozenset({"heatmap_only": ["heatmap"], "none": ["heatmap", "overlay", "input"], "hash": []}[redact])
    }
    monkeypatch.undo()
    check_maps(collector, batch)


def test_another_input_name_and_a_picked_output(collector: Collector, monitor: Monitor) -> None:
    model = onnx.load_from_string(PLAIN)
    for node in model.graph.node:
        node.input[:] = ["image" if name == "input" else name for name in node.input]
    model.graph.input[0].name = "image"
    model.graph.output.append(onnx.helper.make_tensor_value_info("pooled", 1, ["N", 16, 1, 1]))
    served = ort.InferenceSession(model.SerializeToString())
    batch = pictures(2)
    outputs = monitor.wrap(served).run(["pooled"], {"image": batch})
    assert len(outputs) == 1 and outputs[0].shape == (2, 16, 1, 1)
    assert monitor.flush(10)
    check_maps(collector, batch)


def test_a_session_of_another_model_is_refused(monitor: Monitor) -> None:
    with pytest.raises(InputError, match="scores of 5 classes"):
        monitor.wrap(ort.InferenceSession(tiny_cnn(classes=7).SerializeToString()))
    renamed = mlp()
    renamed.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    with pytest.raises(InputError, match="scores of 5 classes"):
        monitor.wrap(ort.InferenceSession(renamed.SerializeToString()))
