"""Head, tail and backward pass of a model, and the views they make possible."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcam
from onnxcam import runtime
from onnxcam.errors import LayerError
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.features import HeadRun, run_head
from onnxcam.explain.sessions import Sessions
from onnxcam.explain.view import LayerView, view
from onnxcam.network.names import INPUT
from onnxcam.network.network import Network
from onnxcam.targets.objectives import Contrast, Probability, logit, resolve
from tests.network.test_split import skipping
from tests.support import models

CPU = ["CPUExecutionProvider"]


def batch(rows: int = 3, *, nhwc: bool = False, seed: int = 0) -> np.ndarray:
    shape = (rows, 32, 32, 3) if nhwc else (rows, 3, 32, 32)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def features(source: Any, layer: str, rows: int = 3, **options: Any) -> HeadRun:
    sessions = Sessions(source, lambda data, _: runtime.open_session(data, CPU))
    fixed = sessions.network.picture.type.tensor_type.shape.dim[0].dim_value or None
    nhwc = sessions.network.cut(INPUT).layout.name == "NHWC"
    return run_head(sessions, batch(rows, nhwc=nhwc), [layer], size=fixed, **options)


def tokens() -> onnx.ModelProto:
    """Patches as tokens behind a class token; what is read is the class token, after it has mixed with the others."""
    model = models.tiny_cnn(size=16, width=4, classes=4)
    rng = np.random.default_rng(3)
    del model.graph.node[4:]
    weights = {"cls": rng.normal(size=(1, 1, 8)), "mix": rng.normal(size=(65, 65)) * 0.2, "w": rng.normal(size=(8, 4))}
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    for name, value in (("to", [0, 8, -1]), ("ones", [1, 1]), ("first", 0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    make = helper.make_node
    model.graph.node.extend(
        [
            make("Reshape", ["relu2", "to"], ["flat"]),
            make("Transpose", ["flat"], ["patches"], perm=[0, 2, 1]),
            make("Shape", ["patches"], ["shape"]),
            make("Gather", ["shape", "first"], ["rows"]),
            make("Unsqueeze", ["rows", "zero"], ["rows1"]),
            make("Concat", ["rows1", "ones"], ["where"], axis=0),
            make("Expand", ["cls", "where"], ["class"]),
            make("Concat", ["class", "patches"], ["tokens"], axis=1),
            make("MatMul", ["mix", "tokens"], ["mixed"]),
            make("Relu", ["mixed"], ["active"]),
            make("Gather", ["active", "first"], ["read"], axis=1),
            make("MatMul", ["read", "w"], ["logits"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "zero"))
    conv = next(node for node in model.graph.node if node.name == "last")
    for attribute in conv.attribute:
        if attribute.name == "strides":
            attribute.ints[:] = [2, 2]
    return model


def reading_the_batch() -> onnx.ModelProto:
    """Its tail asks the picture for the number of rows, as older exporters write a flattening."""
    model = models.tiny_cnn()
    flatten = next(node for node in model.graph.node if node.name == "flatten")
    at = list(model.graph.node).index(flatten)
    make = helper.make_node
    new = [
        make("Shape", ["input"], ["shape"]),
        make("Gather", ["shape", "zero"], ["rows"]),
        make("Concat", ["rows", "rest"], ["wanted"], axis=0),
        make("Reshape", ["pooled", "wanted"], ["flat"]),
    ]
    del model.graph.node[at]
    for index, added in enumerate(new):
        model.graph.node.insert(at + index, added)
    for name, value in (("zero", [0]), ("rest", [-1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    return model


SOURCES = {
    "plain": (models.tiny_cnn(), "relu2"),
    "deep": (models.tiny_cnn(), "relu1"),
    "softmax": (models.tiny_cnn(ending="Softmax"), "relu2"),
    "sigmoid": (models.tiny_cnn(ending="Sigmoid", classes=4), "relu2"),
    "one logit": (models.tiny_cnn(ending="Sigmoid", classes=1), "relu2"),
    "NHWC": (models.tiny_cnn(nhwc=True), "relu1"),
    "rows fixed": (models.tiny_cnn(batch=2), "relu1"),
    "one row": (models.tiny_cnn(batch=1), "relu2"),
    "skip": (skipping(), "relu2"),
    "rows read": (reading_the_batch(), "relu2"),
    "open size": (models.tiny_cnn(size=None), "relu1"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_head_and_backward_equal_the_explainable_model(name: str) -> None:
    source, layer = SOURCES[name]
    whole = Explainer(onnxcam.augment(source, [layer], ("gradcam", "hirescam")), providers=CPU)
    head_run = features(source, layer)
    x = head_run.batch.pictures
    target = [0, 1, 0] if head_run.batch.readout.size == 2 else [3, 0, 2]
    want = whole.run(x, target)
    layer_view = view(head_run, layer, resolve(target, head_run.scores, head_run.batch.readout))
    assert np.allclose(head_run.scores, want.scores, atol=1e-5)
    assert np.allclose(layer_view.activations, want.activations, atol=1e-5)
    assert np.linalg.norm(layer_view.gradients - want.gradients) <= 1e-5 * np.linalg.norm(want.gradients)
    for method, maps in zip(("gradcam", "hirescam"), layer_view.maps(["gradcam", "hirescam"]), strict=True):
        file = whole.attribute(x, target, method, normalize="none", size="layer")
        assert np.allclose(np.maximum(maps, 0), file, atol=1e-5)


@pytest.mark.parametrize("name", SOURCES)
def test_variants_are_what_the_model_says_of_changed_activations(name: str) -> None:
    source, layer = SOURCES[name]
    head_run = features(source, layer)
    layer_view = view(head_run, layer, resolve([0, 1, 0], head_run.scores, head_run.batch.readout))
    rows = np.array([2, 0, 1, 1, 2])
    unchanged = layer_view.variants(5, lambda a, b: (layer_view.activations[rows[a:b]], rows[a:b]))
    assert np.allclose(unchanged, head_run.scores[rows], atol=1e-5)
    factor = np.linspace(0.5, 1.5, 5, dtype=np.float32)[:, None, None, None]

    def make(a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        return layer_view.activations[rows[a:b]] * factor[a:b], rows[a:b]

    values = layer_view.values(5, make)
    # the gradient found at the changed activations predicts a further small change of the value
    step = 1e-2
    further = layer_view.values(5, lambda a, b: (make(a, b)[0] * (1 + step), rows[a:b]))
    lower = layer_view.values(5, lambda a, b: (make(a, b)[0] * (1 - step), rows[a:b]))
    predicted = np.concatenate(
        [(g * make(a, b)[0]).sum(axis=(1, 2, 3)) for a, b, g in layer_view.differentiate(5, make)]
    )
    assert np.allclose((further - lower) / (2 * step), predicted, rtol=2e-2, atol=2e-2)
    assert not np.allclose(values, layer_view.value()[rows], atol=1e-4)


def test_tokens_keep_their_class_token() -> None:
    source = tokens()
    layer = onnxcam.graph.layers.Layer("tokens", "tokens", layout="NTC", grid=(8, 8), prefix_tokens=1)
    explainable = onnxcam.augment(source, [layer])
    sessions = Sessions(explainable, lambda data, _: runtime.open_session(data, CPU))
    x = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)[:, :, :16, :16]
    head_run = run_head(sessions, x, ["tokens"], size=None)
    layer_view = view(head_run, "tokens", logit(np.array([0, 1, 2]), head_run.batch.readout))
    want = Explainer(explainable, providers=CPU).run(x, [0, 1, 2])
    patches = want.gradients[:, 1:].transpose(0, 2, 1).reshape(layer_view.gradients.shape)
    assert np.allclose(layer_view.gradients, patches, atol=1e-6)
    rows = np.array([1, 2])
    assert np.allclose(
        layer_view.variants(2, lambda a, b: (layer_view.activations[rows[a:b]], rows[a:b])),
        head_run.scores[rows],
        atol=1e-5,
    )


@pytest.mark.parametrize("nhwc", [False, True])
def test_the_picture_is_a_layer_too(nhwc: bool) -> None:
    source = models.tiny_cnn(nhwc=nhwc)
    head_run = features(source, "relu2")
    layer_view = view(head_run, "relu2", resolve([3, 0, 2], head_run.scores, head_run.batch.readout)).input
    assert layer_view.activations.shape == (3, 3, 32, 32)
    model = onnxcam.gradient(source, "logits", ["input"])
    session = runtime.open_session(model.SerializeToString(), CPU)
    cotangent = np.eye(5, dtype=np.float32)[[3, 0, 2]]
    (want,) = session.run(["grad.input"], {"input": head_run.batch.pictures, "cotangent.logits": cotangent})
    assert np.allclose(layer_view.gradients, want.transpose(0, 3, 1, 2) if nhwc else want, atol=1e-6)
    moved = layer_view.at(layer_view.activations + 1)
    assert np.allclose(moved.activations, layer_view.activations + 1)
    assert not np.allclose(moved.scores, head_run.scores)


def with_nodes(*between: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """A tiny CNN with more nodes between `relu2` and its pooling; the last one makes `changed`."""
    model = models.tiny_cnn()
    pool = next(node for node in model.graph.node if node.name == "pool")
    pool.input[0] = "changed"
    at = list(model.graph.node).index(pool)
    for index, node in enumerate(between):
        model.graph.node.insert(at + index, node)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


node = helper.make_node
AFFINE = {
    "pooling and linear": (models.tiny_cnn(), True),
    "flattened": (models.tiny_cnn(pool="Flatten"), True),
    "largest value": (models.tiny_cnn(pool="GlobalMaxPool"), False),
    "a ReLU": (with_nodes(node("Relu", ["relu2"], ["changed"])), False),
    "its square": (with_nodes(node("Mul", ["relu2", "relu2"], ["changed"])), False),
    "a constant factor": (with_nodes(node("Mul", ["relu2", "two"], ["changed"]), two=np.float32([2])), True),
    "divided by": (with_nodes(node("Div", ["two", "relu2"], ["changed"]), two=np.float32([2])), False),
    "itself added": (with_nodes(node("Add", ["relu2", "relu2"], ["changed"])), True),
    "a gate of its own": (
        with_nodes(node("GlobalAveragePool", ["relu2"], ["squeezed"]), node("Mul", ["relu2", "squeezed"], ["changed"])),
        False,
    ),
    "where it is large": (
        with_nodes(
            node("Greater", ["relu2", "half"], ["large"]),
            node("Where", ["large", "relu2", "half"], ["changed"]),
            half=np.float32([0.5]),
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", AFFINE)
def test_a_tail_is_called_affine_only_where_it_is(name: str) -> None:
    source, affine = AFFINE[name]
    cut = Network(source).cut("relu2")
    assert cut.affine == affine
    head_run = features(source, "relu2")
    layer_view = view(head_run, "relu2", resolve([3, 0, 2], head_run.scores, head_run.batch.readout))
    rows = np.arange(3)
    a = np.maximum(layer_view.activations, 0.1)
    noise = np.random.default_rng(5).uniform(0.1, 1, a.shape).astype(np.float32)
    (first, second, middle) = (
        layer_view.values(3, lambda i, j, x=x: (x[i:j], rows[i:j])) for x in (a, noise, (a + noise) / 2)
    )
    if affine:
        assert np.allclose(middle, (first + second) / 2, atol=1e-4)


def test_the_head_runs_once_for_many_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = Explainer(onnxcam.augment(models.tiny_cnn(), ["relu1", "relu2"]), providers=CPU)
    heads = []
    real = runtime.run

    def counting(session: Any, outputs: Any, feeds: Any) -> Any:
        heads.extend(name for name in feeds if name == "input")
        return real(session, outputs, feeds)

    monkeypatch.setattr(runtime, "run", counting)
    examination = explainer.examine(batch(), ["relu1", "relu2"])
    for target in (None, 2, Contrast(), Probability(1)):
        for layer in ("relu1", "relu2", ["relu1", "relu2"]):
            examination.attribute(target, ["gradcam", "hirescam"], layer)
    assert heads == ["input"]
    assert np.allclose(
        examination.attribute(2, "gradcam", "relu2"), explainer.attribute(batch(), 2, "gradcam", "relu2"), atol=1e-6
    )


def test_objectives_reach_the_maps() -> None:
    """A contrast's map before its ReLU is the difference of two classes' maps; a probability's is a multiple."""
    head_run = features(models.tiny_cnn(), "relu2")

    def raw(target: Any) -> np.ndarray:
        return view(head_run, "relu2", resolve(target, head_run.scores, head_run.batch.readout)).map("gradcam")

    assert np.allclose(raw(Contrast(1, 3)), raw(1) - raw(3), atol=1e-5)
    p = np.exp(head_run.scores - head_run.scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    mixed = sum(p[:, k, None, None] * raw(k) for k in range(5))
    assert np.allclose(raw(Probability(2)), p[:, 2, None, None] * (raw(2) - mixed), atol=1e-5)


def test_progress_is_told_and_can_stop_the_work() -> None:
    calls = []
    head_run = features(models.tiny_cnn(), "relu2", progress=lambda done, total: calls.append((done, total)))
    layer_view = view(head_run, "relu2", resolve(None, head_run.scores, head_run.batch.readout))
    rows = np.arange(1000) % 3
    layer_view.values(1000, lambda a, b: (layer_view.activations[rows[a:b]], rows[a:b]))
    assert calls[-1] == (1000, 1000) and len(calls) > 1 and calls == sorted(calls)

    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough

    stopped = features(models.tiny_cnn(), "relu2", progress=stop)
    layer_view = view(stopped, "relu2", resolve(None, stopped.scores, stopped.batch.readout))
    with pytest.raises(Enough):
        layer_view.values(1000, lambda a, b: (layer_view.activations[rows[a:b]], rows[a:b]))


@pytest.mark.slow
def test_few_variants_are_held_at_a_time() -> None:
    head_run = features(models.tiny_cnn(width=64), "relu1")
    layer_view = view(head_run, "relu1", resolve(None, head_run.scores, head_run.batch.readout))
    most = 0

    def make(a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal most
        rows = np.zeros(b - a, np.int64)
        activations = layer_view.activations[rows]
        most = max(most, activations.nbytes)
        return activations, rows

    layer_view.values(400, make)
    assert most <= 32 << 20 < 400 * layer_view.activations[0].nbytes


def test_an_unknown_layer_is_named_with_those_of_the_file() -> None:
    with pytest.raises(LayerError, match=r"no layer 'relu9'.*the file itself exposes \['relu2'\]"):
        Network(onnxcam.augment(models.tiny_cnn())).cut("relu9")


def test_sessions_are_made_once_by_many_threads() -> None:
    models_made: list[bytes] = []

    def open_session(data: bytes, _: str) -> Any:
        models_made.append(data)
        return runtime.open_session(data, CPU)

    sessions = Sessions(models.tiny_cnn(), open_session)
    views: list[LayerView] = []

    def work() -> None:
        head_run = run_head(sessions, batch(), ["relu2"], size=None)
        layer_view = view(head_run, "relu2", resolve([1, 2, 3], head_run.scores, head_run.batch.readout))
        layer_view.maps(["gradcam"])
        views.append(layer_view)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(views) == 8 and len(models_made) == 2
    assert all(np.array_equal(each.gradients, views[0].gradients) for each in views)
