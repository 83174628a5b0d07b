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
from tests.monitor.monitoring import ALWAYS, CLASSES, MODEL, PLAIN, UNLIMITED, Kept, pictures
from tests.support.models import mlp, tiny_cnn


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def monitor(kept: Kept) -> Iterator[Monitor]:
    with Monitor(MODEL, sink=kept, when=ALWAYS, **UNLIMITED) as made:
        yield made


@pytest.fixture(scope="module")
def served() -> Any:
    return ort.InferenceSession(PLAIN)


def expected(batch: np.ndarray) -> np.ndarray:
    """Top-1 maps as `Explainer` computes them, `[N, h, w]`."""
    return onnxcam.Explainer(MODEL).attribute(batch, normalize="none", size="layer")


def check_maps(kept: Kept, batch: np.ndarray) -> None:
    """The records show the maps of the batch's rows, in order, as bytes of their maxima."""
    maps = expected(batch)
    assert len(kept.records) == len(batch)
    for record, wanted in zip(kept.records, maps, strict=True):
        assert record["map"]["shape"] == list(wanted.shape)
        levels = wanted.ravel() / wanted.max() * 255
        np.testing.assert_allclose(record["map"]["values"], levels, atol=0.51)


def test_run_returns_what_it_returned(monitor: Monitor, kept: Kept, served: Any) -> None:
    watched, batch = monitor.wrap(served), pictures(4)
    for names in (None, ["logits"], []):
        found, wanted = watched.run(names, {"input": batch}), served.run(names, {"input": batch})
        assert type(found) is type(wanted) and len(found) == len(wanted)
        assert found[0].tobytes() == wanted[0].tobytes()
    assert monitor.flush(10)
    assert monitor.stats()["explained"] == 12
    del kept.records[4:]
    check_maps(kept, batch)


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


def test_run_async_is_seen_before_its_callback(monitor: Monitor, kept: Kept) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    served = ort.InferenceSession(PLAIN, options)
    watched, batch = monitor.wrap(served), pictures(2)
    wanted = served.run(None, {"input": batch})[0]
    done, got = threading.Event(), []

    def callback(results: Any, data: Any, error: str) -> None:
        got.append((results[0].copy(), data, error, monitor.stats()["seen"]))
        batch[:] = 0  # the caller's again
        done.set()

    watched.run_async(["logits"], {"input": batch}, callback, "mine")
    assert done.wait(10)
    scores, data, error, seen = got[0]
    assert scores.tobytes() == wanted.tobytes() and data == "mine" and not error and seen == 2
    assert monitor.flush(10)
    check_maps(kept, pictures(2))


def test_run_async_passes_errors_on(monitor: Monitor) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    watched = monitor.wrap(ort.InferenceSession(PLAIN, options))
    done, got = threading.Event(), []

    def callback(results: Any, data: Any, error: str) -> None:
        got.append((list(results), error))
        done.set()

    watched.run_async(["logits"], {"input": pictures(1)[:, :2]}, callback, None)
    assert done.wait(10)
    assert "invalid dimensions" in got[0][1] and got[0][0] == []
    assert monitor.stats()["seen"] == 0


@pytest.mark.parametrize("how", ["cpu", "ortvalue", "pointer"])
def test_iobinding_is_seen(how: str, monitor: Monitor, kept: Kept, served: Any) -> None:
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
    check_maps(kept, batch)


def test_iobinding_made_elsewhere_runs_unseen(monitor: Monitor, served: Any) -> None:
    watched, batch = monitor.wrap(served), pictures(1)
    binding = ort.IOBinding(watched)
    binding.bind_cpu_input("input", batch)
    binding.bind_output("logits")
    watched.run_with_iobinding(binding)
    assert binding.copy_outputs_to_cpu()[0].tobytes() == served.run(None, {"input": batch})[0].tobytes()
    assert monitor.stats()["seen"] == 0


def test_nothing_of_the_callers_is_kept(monitor: Monitor, kept: Kept, served: Any) -> None:
    watched, batch = monitor.wrap(served), pictures(2)
    results = watched.run(None, {"input": batch})
    results[0][:] = 0
    batch[:] = 0
    assert monitor.flush(10)
    check_maps(kept, pictures(2))


def test_a_runs_logid_names_the_request(monitor: Monitor, kept: Kept, served: Any) -> None:
    options = ort.RunOptions()
    options.logid = "order-66"
    monitor.wrap(served).run(None, {"input": pictures(2)}, options)
    assert monitor.flush(10)
    assert [record["request"] for record in kept.records] == ["order-66"] * 2


def test_run_async_keeps_the_requests_name(monitor: Monitor, kept: Kept) -> None:
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
    names = [(record["request"], record["trace"]) for record in kept.records]
    assert names == [("one", "trace-one"), ("two", "trace-two"), ("three", None)]


def test_a_session_wrapped_twice_counts_once(monitor: Monitor, served: Any) -> None:
    watched = monitor.wrap(served)
    assert monitor.wrap(watched) is watched
    with Monitor(MODEL, sink=Kept(), when=ALWAYS, **UNLIMITED) as other:
        both = other.wrap(watched)
        assert both is not watched and monitor.wrap(both) is both and other.wrap(both) is both
        both.run(None, {"input": pictures(2)})
        assert (monitor.stats()["seen"], other.stats()["seen"]) == (2, 2)
    monitor.wrap(served).run(None, {"input": pictures(1)})  # the session itself, once more
    assert monitor.stats()["seen"] == 3


def test_probabilities_are_known_by_the_outputs_name(kept: Kept) -> None:
    plain = tiny_cnn(ending="Softmax").SerializeToString()
    with Monitor(plain, sink=kept, when=ALWAYS, **UNLIMITED) as monitor:
        served = ort.InferenceSession(plain)
        batch = pictures(3)
        wanted = monitor.wrap(served).run(None, {"input": batch})[0]
        assert monitor.flush(10)
    found = [record["prediction"]["confidence"] for record in kept.records]
    np.testing.assert_allclose(found, wanted.max(axis=1), rtol=1e-5)


def test_an_explainable_model_may_serve_itself(monitor: Monitor, kept: Kept) -> None:
    served = ort.InferenceSession(MODEL)
    watched, batch = monitor.wrap(served), pictures(2)
    found = watched.run(["heatmap"], {"input": batch})
    assert len(found) == 1
    assert found[0].tobytes() == served.run(["heatmap"], {"input": batch})[0].tobytes()
    assert monitor.flush(10)
    check_maps(kept, batch)


@pytest.mark.parametrize("redact", ["heatmap_only", "none", "hash"])
def test_with_features_exposed_the_tail_alone_is_run(redact: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    head, tails = split(MODEL)
    served = ort.InferenceSession(head.SerializeToString())
    cut = next(iter(tails.values())).cut
    with Monitor(MODEL, sink=kept, when=ALWAYS, redact=redact, **UNLIMITED) as monitor:
        watched, batch = monitor.wrap(served), pictures(3)
        monkeypatch.setattr(row_explainer.Explainer, "attribute", None)  # the whole model is never asked
        found = watched.run(["logits"], {"input": batch})
        assert len(found) == 1 and found[0].tobytes() == served.run(["logits"], {"input": batch})[0].tobytes()
        waiting = monitor.stats()["queue_bytes"]
        assert monitor.flush(10)
        assert monitor.stats()["explained"] == 3, monitor.stats()
    features = sum(value.nbytes for value in served.run(list(cut), {"input": batch}))
    if redact == "heatmap_only":  # the picture itself was not even copied
        assert waiting <= features + 3 * (1024 + 4 * CLASSES)
        assert all(record["picture"] == {"sha256": None, "size": [32, 32]} for record in kept.records)
    else:
        assert all(record["picture"]["sha256"] for record in kept.records)
    assert {frozenset(files) for files in kept.files} == {
        frozenset({"heatmap_only": ["heatmap"], "none": ["heatmap", "overlay", "input"], "hash": []}[redact])
    }
    monkeypatch.undo()
    check_maps(kept, batch)


def test_another_input_name_and_a_picked_output(kept: Kept, monitor: Monitor) -> None:
    model = onnx.load_from_string(PLAIN)
    for node in model.graph.node:
        node.input[:] = ["image" if name == "input" else name for name in node.input]
    model.graph.input[0].name = "image"
    model.graph.output.append(onnx.helper.make_tensor_value_info("pooled", 1, ["N", 16, 1, 1]))
    served = ort.InferenceSession(model.SerializeToString())
    batch = pictures(2)
    found = monitor.wrap(served).run(["pooled"], {"image": batch})
    assert len(found) == 1 and found[0].shape == (2, 16, 1, 1)
    assert monitor.flush(10)
    check_maps(kept, batch)


def test_a_session_of_another_model_is_refused(monitor: Monitor) -> None:
    with pytest.raises(InputError, match="scores of 5 classes"):
        monitor.wrap(ort.InferenceSession(tiny_cnn(classes=7).SerializeToString()))
    renamed = mlp()
    renamed.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    with pytest.raises(InputError, match="scores of 5 classes"):
        monitor.wrap(ort.InferenceSession(renamed.SerializeToString()))
