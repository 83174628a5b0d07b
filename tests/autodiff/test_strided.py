"""Input gradients of strided convolutions that do without ConvTranspose, and steps that do without comparisons."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnxcam
from onnxcam.autodiff.passes.blocked_layout import above, below
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph
from tests.autodiff.harness import build, check, covers, normal
from tests.support.runtime import run

KINDS = {
    # (input, weights, strides, pads, groups, what replaces ConvTranspose)
    "pointwise": ((1, 5, 7, 8), (6, 5, 1, 1), (2, 2), (0, 0, 0, 0), 1, "Resize"),
    "pointwise, grouped, 3": ((2, 4, 7, 9), (6, 2, 1, 1), (3, 1), (0, 0, 0, 0), 2, "Resize"),
    "depthwise": ((1, 4, 8, 8), (4, 1, 3, 3), (2, 2), (1, 1, 1, 1), 4, "Resize"),
    "depthwise, odd, 5": ((2, 3, 9, 11), (3, 1, 5, 5), (2, 2), (2, 2, 2, 2), 3, "Resize"),
    "depthwise, one axis": ((1, 3, 9, 8), (3, 1, 3, 3), (1, 2), (1, 0, 1, 1), 3, "Resize"),
    "first, 7": ((1, 3, 14, 12), (8, 3, 7, 7), (2, 2), (3, 3, 3, 3), 1, "Transpose"),
    "first, odd, 3": ((2, 3, 11, 9), (6, 3, 3, 3), (2, 2), (0, 1, 1, 0), 1, "Transpose"),
    "first, patches": ((1, 3, 8, 12), (6, 3, 4, 4), (4, 4), (0, 0, 0, 0), 1, "Transpose"),
    "first, many channels": ((2, 4, 6, 8), (17, 4, 3, 3), (2, 2), (1, 1, 1, 1), 1, "Transpose"),
    "wide": ((2, 16, 8, 12), (18, 16, 3, 3), (2, 2), (1, 1, 1, 1), 1, "Concat"),
    "wide, 4": ((1, 17, 12, 8), (5, 17, 4, 4), (2, 2), (1, 1, 1, 1), 1, "Concat"),
    "wide, 5 and 3": ((1, 16, 6, 10), (4, 16, 5, 3), (2, 2), (2, 0, 2, 1), 1, "Concat"),
    "wide, at the end": ((3, 16, 8, 8), (3, 16, 3, 3), (2, 2), (0, 0, 1, 1), 1, "Concat"),
    "wide, 3": ((1, 16, 9, 12), (4, 16, 5, 4), (3, 3), (1, 0, 1, 1), 1, "Concat"),
    "wide, more padding": ((1, 16, 4, 4), (4, 16, 3, 3), (2, 2), (3, 1, 0, 1), 1, "ConvTranspose"),
    "wide, odd": ((1, 16, 9, 8), (4, 16, 3, 3), (2, 2), (1, 1, 1, 1), 1, "ConvTranspose"),
    "wide, patches": ((1, 16, 8, 8), (4, 16, 2, 2), (2, 2), (0, 0, 0, 0), 1, "ConvTranspose"),
    "wide, dilated": ((1, 16, 8, 8), (4, 16, 3, 3), (2, 2), (2, 2, 2, 2), 1, "ConvTranspose"),
    "wide, two strides": ((1, 16, 8, 9), (4, 16, 3, 5), (2, 3), (1, 1, 1, 1), 1, "ConvTranspose"),
    "few": ((1, 6, 8, 8), (8, 6, 3, 3), (2, 2), (1, 1, 1, 1), 1, "ConvTranspose"),
    "depthwise, 3": ((1, 3, 9, 9), (3, 1, 3, 3), (3, 3), (1, 1, 1, 1), 3, "ConvTranspose"),
    "multiplier": ((1, 2, 8, 8), (8, 1, 3, 3), (2, 2), (1, 1, 1, 1), 2, "ConvTranspose"),
}


@pytest.mark.sample(2)
@covers("Conv")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind.startswith("wide") else ()) for kind in KINDS]
)
def test_each_kind_of_stride(kind: str) -> None:
    shape, weight, strides, pads, group, operator = KINDS[kind]
    dilations = [2, 2] if kind.endswith("dilated") else [1, 1]
    text = f"y = Conv<strides={list(strides)}, pads={list(pads)}, group={group}, dilations={dilations}>(x, w)"
    feeds, weights = {"x": normal(*shape)}, {"w": normal(*weight)}
    check(text, feeds, weights, wrt=["x"])
    emitted = onnxcam.gradient(build(text, feeds, weights), "y", ["x"])
    kinds = {node.op_type for node in emitted.graph.node}
    assert operator in kinds
    assert (operator == "ConvTranspose") == ("ConvTranspose" in kinds)


@pytest.mark.slow
def test_weights_that_are_computed_are_turned_at_run_time() -> None:
    """Nothing of the kernels of a wide convolution is stored a second time."""
    text = "v = Tanh(w) y = Conv<strides=[2, 2], pads=[1, 1, 1, 1]>(x, v)"
    feeds, weights = {"x": normal(1, 16, 8, 8)}, {"w": normal(20, 16, 3, 3)}
    check(text, feeds, weights, wrt=["x"])
    plain, emitted = build(text, feeds, weights), onnxcam.gradient(build(text, feeds, weights), "y", ["x"])
    assert len(emitted.SerializeToString()) < len(plain.SerializeToString()) + 10_000


BOUNDS = [0.0, 6.0, -1.0, 0.1, 3e-20, 1e30, 255.0]


@pytest.mark.parametrize("bound", BOUNDS)
def test_steps_are_exact_next_to_their_bound(bound: float) -> None:
    """For every float from the bound's neighbours to the largest: exactly what the comparison says."""
    edge = np.float32(bound)
    near = np.array(
        [edge, *(np.nextafter(edge, np.float32(to)) for to in (-np.inf, np.inf)), 0, 1, -1, 3e38, -3e38], np.float32
    )
    rng = np.random.default_rng(0)
    values = np.concatenate([near, edge + rng.normal(size=200).astype(np.float32), rng.normal(size=200) * 1e4])
    values = values[(np.abs(values - edge) >= np.finfo(np.float32).tiny) | (values == edge)].astype(np.float32)
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.add(version=18)
    model.graph.name = "steps"
    model.graph.input.append(onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(values)]))
    op = Builder(Graph(model))
    for name, step in (("above", above), ("below", below)):
        op.Identity(step(op, "y", float(edge)), name=name)
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(values)]))
    model.graph.node.extend(op.nodes)
    assert [node.op_type for node in op.nodes] == ["HardSigmoid", "Identity"] * 2
    higher, lower = run(model, y=values).values()
    assert np.array_equal(higher, (values > edge).astype(np.float32))
    assert np.array_equal(lower, (values < edge).astype(np.float32))


@covers("Clip")
def test_both_steps_of_a_clip_come_before_its_products() -> None:
    """Between them ONNX Runtime would take the second step in the forward pass, and hold it until it is read."""
    feeds, bounds = {"x": normal(2, 3, 4, 4) * 6}, {"low": np.float32(0), "high": np.float32(6)}
    check("y = Clip(x, low, high)", feeds, bounds, wrt=["x"])
    emitted = onnxcam.gradient(build("y = Clip(x, low, high)", feeds, bounds), "y", ["x"])
    assert [n.op_type for n in emitted.graph.node[1:-1]] == ["HardSigmoid", "HardSigmoid", "Mul", "Mul"]


@covers("Mul", "Sigmoid")
def test_the_gradient_of_silu_is_one_slope() -> None:
    feeds = {"x": normal(2, 3, 4, 4)}
    for text in ("s = Sigmoid(x) y = Mul(x, s)", "s = Sigmoid(x) y = Mul(s, x)"):
        check(text, feeds)
        emitted = onnxcam.gradient(build(text, feeds), "y", ["x"])
        added = [node.op_type for node in emitted.graph.node[2:] if node.op_type != "Identity"]
        assert added == ["HardSigmoid", "Mul", "Add", "Mul"]
    check("s = Sigmoid(x) z = Mul(x, s) y = Add(z, s)", feeds)  # the sigmoid is read elsewhere too


def test_the_sigmoid_of_silu_may_be_asked_for_itself() -> None:
    """dS = X dY is not passed over where S is one of the ends."""
    feeds = {"x": normal(2, 3)}
    model = onnxcam.gradient(build("s = Sigmoid(x) y = Mul(x, s)", feeds), "y", ["x", "s"])
    dy = normal(2, 3, seed=3)
    dx, ds = run(model, feeds | {"cotangent.y": dy}, outputs=["grad.x", "grad.s"]).values()
    s = 1 / (1 + np.exp(-feeds["x"].astype(np.float64)))
    assert np.allclose(ds, feeds["x"] * dy, atol=1e-6)
    assert np.allclose(dx, dy * (s + feeds["x"] * s * (1 - s)), atol=1e-6)


@covers("Add", "GlobalAveragePool")
def test_what_is_expanded_to_be_added_is_not_expanded() -> None:
    text = "p = GlobalAveragePool(x) q = Mul(x, p) y = Exp(q)"
    feeds = {"x": normal(2, 3, 4, 4) * np.float32(0.5)}
    check(text, feeds)
    model = onnxcam.gradient(build(text, feeds), "y", ["x"])
    assert "Expand" not in {node.op_type for node in model.graph.node}
    check("p = GlobalAveragePool(x) q = Add(x, p) y = Exp(q)", feeds)


@covers("MatMul", "Mul")
@pytest.mark.parametrize(("free", "result"), [("static", "GlobalAveragePool"), ("all", "ReduceSum")])
def test_a_gate_per_channel_is_summed_up_by_pooling(free: str, result: str) -> None:
    """As squeeze-and-excitation has it; ReduceSum would leave the layout of convolutions."""
    text, feeds = "y = Mul(x, g)", {"x": normal(2, 3, 5, 4), "g": normal(2, 3, 1, 1)}
    check(text, feeds)
    model = onnxcam.gradient(build(text, feeds, free=free), "y", ["g"])
    assert result in {node.op_type for node in model.graph.node}
    check("y = Mul(x, g)", {"x": normal(2, 3, 1, 4), "g": normal(2, 3, 1, 1)})
    check("y = Mul(x, g)", {"x": normal(2, 3, 4), "g": normal(2, 1, 1)})
    check("y = Mul(x, g)", {"x": normal(2, 3, 2, 2, 2), "g": normal(2, 3, 1, 1, 2)})
    check("y = MatMul(x, g)", {"x": normal(2, 3, 2, 2, 2, 2), "g": normal(2, 3, 1, 1, 2, 2)})


@covers("GlobalAveragePool", "Relu")
def test_what_a_pool_shares_out_is_repeated_in_the_layout_of_convolutions() -> None:
    """Its single pixels are brought there, not all of them, and nothing is left of the Expand."""
    feeds, pooled = {"x": normal(2, 3, 5, 4)}, "r = Relu(x) y = GlobalAveragePool(r)"
    check(pooled, feeds)
    kinds = [node.op_type for node in onnxcam.gradient(build(pooled, feeds), "y", ["x"]).graph.node[2:-1]]
    assert "Resize" in kinds and "Expand" not in kinds
    twice = "r = Relu(x) p = GlobalAveragePool(r) q = Add(x, p) y = Exp(q)"  # read elsewhere as it was
    check(twice, feeds)
    both = onnxcam.gradient(build(pooled, feeds), "y", ["x", "r"])  # asked for itself
    dy = normal(2, 3, 1, 1, seed=5)
    dx, dr = run(both, feeds | {"cotangent.y": dy}, outputs=["grad.x", "grad.r"]).values()
    assert np.allclose(dr, np.broadcast_to(dy / 20, dr.shape)) and np.allclose(dx, dr * (feeds["x"] > 0))
