"""Weights stored as float16: what is stored, what is left, and that the numbers are those of rounded weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxcam.graph.float16 import store_float16
from onnxcam.graph.load import serialize
from onnxcam.graph.normalize import prepare
from onnxcam.graph.view import Graph
from tests.graph.text import model
from tests.support.runtime import run

rng = np.random.default_rng(0)


def linear(w: np.ndarray) -> onnx.ModelProto:
    return model(f"g (float[N, {w.shape[0]}] x) => (float[N, {w.shape[1]}] y) {{ y = MatMul(x, w) }}", w=w)


def stored(model_proto: onnx.ModelProto) -> dict[str, int]:
    return {t.name: t.data_type for t in model_proto.graph.initializer}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def test_the_arithmetic_is_float32_on_rounded_weights():
    w, x = normal(64, 48), normal(3, 64)
    halved = store_float16(linear(w))
    onnx.checker.check_model(halved, full_check=True)
    want = x.astype(np.float64) @ w.astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(run(halved, x=x)["y"], want, rtol=1e-5, atol=1e-5)
    # float16 arithmetic, or a rounding of x, would be 100 times further off
    assert np.abs(want - x.astype(np.float64) @ w).max() > 1e-4


def test_the_file_is_half_the_size_and_its_values_keep_their_names():
    source = linear(normal(128, 128))
    halved = store_float16(source)
    assert halved.ByteSize() < 0.51 * source.ByteSize()
    assert [(n.op_type, list(n.input), list(n.output)) for n in halved.graph.node] == [
        ("Cast", ["w/float16"], ["w"]),
        ("MatMul", ["x", "w"], ["y"]),
    ]
    assert Graph(halved).shape("w") == (128, 128)
    assert Graph(halved).dtype("w") == onnx.TensorProto.FLOAT


def test_the_source_is_not_edited():
    source = linear(normal(64, 48))
    before = source.SerializeToString()
    store_float16(source)
    assert source.SerializeToString() == before


@pytest.mark.parametrize(("threshold", "kind"), [(3072, "FLOAT16"), (3073, "FLOAT")])
def test_small_initializers_are_left(threshold, kind):
    halved = store_float16(linear(normal(64, 48)), threshold=threshold)
    assert [onnx.TensorProto.DataType.Name(k) for k in stored(halved).values()] == [kind]


def _with(value: float) -> np.ndarray:
    w = normal(64, 48)
    w[3, 5] = value
    return w


@pytest.mark.parametrize(
    "w",
    [
        pytest.param(_with(65520.0), id="beyond the largest float16"),
        pytest.param(_with(-1e30), id="far beyond"),
        pytest.param(_with(np.inf), id="infinite"),
        pytest.param(_with(np.nan), id="not a number"),
        pytest.param(normal(64, 48) * np.float32(1e-6), id="mostly denormal"),
        pytest.param(normal(64, 48) * np.float32(1e-9), id="underflows to zero"),
    ],
)
def test_what_float16_cannot_hold_is_left(w):
    source = linear(w)
    assert store_float16(source).SerializeToString() == source.SerializeToString()


@pytest.mark.parametrize(
    "w",
    [
        pytest.param(_with(65504.0), id="the largest float16"),
        pytest.param(_with(1e-7), id="one denormal among many"),
        pytest.param(np.zeros((64, 48), np.float32), id="zero"),
        pytest.param(normal(64, 48) * np.float32(1e-3), id="small but normal"),
    ],
)
def test_what_float16_can_hold_is_stored(w):
    halved = store_float16(linear(w))
    assert stored(halved) == {"w/float16": onnx.TensorProto.FLOAT16}
    rounded = numpy_helper.to_array(halved.graph.initializer[0]).astype(np.float64)
    assert np.linalg.norm(rounded - w) <= 5e-4 * np.linalg.norm(w.astype(np.float64))


def test_the_tolerance_decides():
    w = normal(64, 48) * np.float32(1e-4)
    lost = np.linalg.norm(w.astype(np.float16).astype(np.float64) - w) / np.linalg.norm(w.astype(np.float64))
    assert set(stored(store_float16(linear(w), tolerance=lost * 1.01))) == {"w/float16"}
    assert set(stored(store_float16(linear(w), tolerance=lost * 0.99))) == {"w"}


def test_other_types_and_overridable_initializers_are_left():
    source = model(
        "g (float[N, 64] x, float[64, 64] w) => (float[N, 64] y, int64[2048] j, double[2048] e) "
        "{ y = MatMul(x, w)  j = Identity(i)  e = Identity(d) }",
        w=normal(64, 64),
        i=np.arange(2048),
        d=np.ones(2048),
    )
    halved = store_float16(source)
    assert stored(halved) == stored(source)
    assert len(halved.graph.node) == len(source.graph.node)


def test_a_weight_read_twice_and_inside_a_branch_is_cast_once():
    w, x = normal(64, 64), normal(2, 64)
    source = model(
        "g (float[2, 64] x) => (float[2, 64] y) {\n  a = MatMul(x, w)\n  s = ReduceSum<keepdims = 0>(a)\n  zero = "
        "Constant<value = float {0.0}>()\n  positive = Greater(s, zero)\n  y = If(positive) <then_branch = t () => "
        "(float[2, 64] p) { p = MatMul(a, w) },\n                    else_branch = e () => (float[2, 64] q) { q = "
        "Sub(a, w_sum) }>\n}",
        w=w,
        w_sum=w.sum(0),
    )
    halved = store_float16(source)
    assert [n.op_type for n in halved.graph.node].count("Cast") == 1
    r = w.astype(np.float16).astype(np.float64)
    a = x @ r
    want = a @ r if a.sum() > 0 else a - w.sum(0)
    np.testing.assert_allclose(run(halved, x=x)["y"], want, rtol=1e-4, atol=1e-4)


def test_names_in_use_are_avoided():
    source = model("g (float[N, 64] x) => (float[N, 64] y) { k = MatMul(x, w)  y = Add(k, other) }", w=normal(64, 64))
    source.graph.initializer.append(numpy_helper.from_array(normal(64), "w/float16"))
    source.graph.node[1].input[1] = "w/float16"
    halved = store_float16(source)
    onnx.checker.check_model(halved, full_check=True)
    x = normal(2, 64)
    np.testing.assert_allclose(run(halved, x=x)["y"], run(source, x=x)["y"], rtol=1e-2, atol=1e-1)
    assert len(set(stored(halved))) == 2


def test_twice_is_once():
    halved = store_float16(linear(normal(64, 48)))
    assert store_float16(halved).SerializeToString() == halved.SerializeToString()


def test_the_cast_counts_as_a_constant():
    w = normal(64, 48)
    graph = prepare(store_float16(linear(w)))
    assert graph.is_constant("w")
    value = graph.constant("w")
    assert value is not None
    np.testing.assert_array_equal(value, w.astype(np.float16).astype(np.float32))


def test_the_runtime_folds_the_cast(tmp_path):
    """After optimisation no Cast is left and the convolution is fused with its activation, as without it."""
    text = "g (float[1, 16, 8, 8] x) => (float[1, 32, 8, 8] y) { c = Conv<pads = [1, 1, 1, 1]>(x, w, b)  y = Relu(c) }"
    source = model(text, w=normal(32, 16, 3, 3), b=normal(32))
    optimised = []
    for version in (source, store_float16(source)):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 3
        ort.InferenceSession(serialize(version), options, providers=["CPUExecutionProvider"])
        optimised.append([n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node])
    assert optimised[0] == optimised[1]
    assert "Cast" not in optimised[1] and "Relu" not in optimised[1]
