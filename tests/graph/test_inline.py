"""Composite operators and branches of a known condition are replaced by what they stand for, with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxcam
from onnxcam.errors import UnsupportedOperator
from onnxcam.graph.normalize import prepare
from tests.autodiff.harness import check, normal
from tests.support.runtime import run

SQUEEZED = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 3, %s, 4] x) => (float[N, ?, ?] y) {
  shape = Shape(x) two = Constant<value_int = 2>() height = Gather(shape, two)
  one = Constant<value_int = 1>() alone = Equal(height, one)
  z = If(alone) <
    then_branch = t () => (p) { axes = Constant<value_ints = [2]>() r = Squeeze(x, axes) p = Neg(r) },
    else_branch = e () => (q) { q = Identity(x) }>
  y = Exp(z)
}"""


def test_a_branch_of_a_known_condition_is_inlined() -> None:
    source = parser.parse_model(SQUEEZED % "1")
    graph = prepare(source)
    assert "If" not in {node.op_type for node in graph.nodes}
    assert graph.shape("z") == ("N", 3, 4)
    x = normal(2, 3, 1, 4)
    np.testing.assert_allclose(run(graph.model, x=x)["y"], np.exp(-x[:, :, 0]), rtol=1e-6)
    derived = onnxcam.gradient(source, of="y", wrt=["x"])
    dy = normal(2, 3, 4, seed=1)
    gradient = run(derived, {"x": x, "cotangent.y": dy})["grad.x"]
    np.testing.assert_allclose(gradient, (-np.exp(-x[:, :, 0]) * dy)[:, :, None], rtol=1e-6)


def test_control_flow_on_the_way_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOperator, match=r"operator If .*condition is known only at run time"):
        onnxcam.gradient(parser.parse_model(SQUEEZED % "H"), of="y", wrt=["x"])


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_recurrent_operators_are_refused_by_name(op_type: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[5, N, 4] x) => (float[5, 1, N, 3] y) {{ s = {op_type}<hidden_size = 3>(x, w, r) y = Exp(s) }}"""
    source = parser.parse_model(text)
    for name, columns in (("w", 4), ("r", 3)):
        source.graph.initializer.append(onnx.numpy_helper.from_array(normal(1, 3 * gates, columns), name))
    with pytest.raises(UnsupportedOperator, match=f"operator {op_type} .*recurrent"):
        onnxcam.gradient(source, of="y", wrt=["x"])


@pytest.mark.parametrize("attributes", ["", "<is_causal=1>", "<softcap=2.0>", "<scale=0.3>"])
def test_attention(attributes: str) -> None:
    feeds = {"q": normal(2, 4, 3, 4), "k": normal(2, 2, 5, 4, seed=1), "v": normal(2, 2, 5, 3, seed=2)}
    check(f"y = Attention{attributes}(q, k, v)", feeds, opset=23, free=("static", "batch"))


def test_attention_of_tokens_with_a_mask() -> None:
    feeds = {"q": normal(2, 3, 8), "k": normal(2, 5, 8, seed=1), "v": normal(2, 5, 8, seed=2)}
    mask = {"m": np.arange(15).reshape(3, 5) % 4 != 1}
    check("y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, m)", feeds, mask, opset=23, free=("static", "batch"))


def test_attention_with_a_past_and_optional_inputs_left_out() -> None:
    feeds = {"q": normal(2, 2, 3, 4), "k": normal(2, 2, 3, 4, seed=1), "v": normal(2, 2, 3, 4, seed=2)}
    past = {"pk": normal(2, 2, 5, 4, seed=3), "pv": normal(2, 2, 5, 4, seed=4)}
    check("y, a, b = Attention<is_causal=1>(q, k, v, , pk, pv)", {**feeds, **past}, opset=23, free=("static", "batch"))


def test_attention_that_counts_the_padding_of_keys() -> None:
    feeds = {"q": normal(2, 2, 3, 4), "k": normal(2, 2, 5, 4, seed=1), "v": normal(2, 2, 5, 4, seed=2)}
    check("y = Attention(q, k, v, , , , n)", feeds, {"n": np.asarray([3, 5])}, opset=24, free=("static", "batch"))


@pytest.mark.parametrize("opset", [23, 24, 26])
def test_attention_of_a_query_that_may_see_nobody(opset: int) -> None:
    feeds = {"q": normal(1, 2, 3, 4), "k": normal(1, 2, 3, 4, seed=1), "v": normal(1, 2, 3, 4, seed=2)}
    mask = {"m": np.asarray([[True, False, True], [False, False, False], [False, True, True]])}
    check("y = Attention(q, k, v, m)", feeds, mask, opset=opset, free=("static", "batch"))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("op_type", ["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"])
def test_losses(op_type: str, reduction: str) -> None:
    constants = {"t": np.asarray([[0, 3], [2, 1], [1, 1]]), "w": np.float32([0.3, 0.8, 1.5, 0.9])}
    body = f'y = {op_type}<reduction="{reduction}", ignore_index=3>(x, t, w)'
    check(body, {"x": normal(3, 4, 2)}, constants, wrt=["x"], opset=22, free=("static",))


def test_centre_crop_pad() -> None:
    body = "y = CenterCropPad<axes=[2, 3]>(x, s)"
    check(body, {"x": normal(2, 2, 5, 3)}, {"s": np.asarray([3, 6])}, wrt=["x"], free=("static", "batch"))
