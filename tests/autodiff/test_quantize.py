"""Gradients of quantization: those of the clipping that is left when rounding is taken for the identity."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
import torch

import onnxcam
from onnxcam.errors import UnsupportedOperator
from tests.autodiff.harness import build, close, covers, gradients, normal, record
from tests.support.runtime import run

KINDS = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16, "uint16": np.uint16}
CENTRE = {"int8": -3, "uint8": 120, "int16": 5, "uint16": 33000}


def pair(scale: np.ndarray, zero: np.ndarray | None, between: str = "q", axis: int | None = None) -> str:
    names = "s, z" if zero is not None else "s"
    attribute = "" if axis is None else f"<axis={axis}>"
    middle = "" if between == "q" else f"\nm = {between}"
    last = "q" if between == "q" else "m"
    return f"q = QuantizeLinear{attribute}(x, {names}){middle}\ny = DequantizeLinear{attribute}({last}, {names})"


def clipped(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """torch's gradient of clamp(x) between the bounds of the type."""
    kind = np.iinfo(zero.dtype)
    low, high = ((limit - zero.astype(np.float64)) * scale for limit in (kind.min, kind.max))
    tensor = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = torch.minimum(torch.maximum(tensor, torch.tensor(low)), torch.tensor(high))
    (gradient,) = torch.autograd.grad(y, tensor, torch.tensor(dy, dtype=torch.float64))
    return gradient.numpy()


@pytest.mark.parametrize("free", ["static", "batch", "all"])
@pytest.mark.parametrize("kind", KINDS)
@covers("QuantizeLinear", "DequantizeLinear")
def test_straight_through_where_nothing_saturates(kind: str, free: str) -> None:
    zero = np.array(CENTRE[kind], KINDS[kind])
    reach = np.iinfo(KINDS[kind]).max - np.iinfo(KINDS[kind]).min
    scale = np.array(2.0 / reach, np.float32)
    x, dy = normal(2, 3, 5, 4), normal(2, 3, 5, 4, seed=1)
    model = build(pair(scale, zero), {"x": x}, {"s": scale, "z": zero}, opset=21, free=free)
    record(model)
    (gradient,) = gradients(model, {"x": x}, dy, ["x"])
    close(gradient, clipped(x, scale, zero, dy), 1e-6, "the gradient")
    assert 0 < np.count_nonzero(gradient == 0) < x.size  # some saturate, some do not


@covers("QuantizeLinear", "DequantizeLinear")
def test_scales_along_an_axis() -> None:
    zero, scale = np.array([0, 10, -20], np.int8), np.array([0.004, 0.01, 0.02], np.float32)
    x, dy = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    for axis, turn in ((1, (0, 1, 2)), (-1, (0, 2, 1))):
        turned, cotangent = (np.ascontiguousarray(value.transpose(turn)) for value in (x, dy))
        model = build(pair(scale, zero, axis=axis), {"x": turned}, {"s": scale, "z": zero}, opset=21)
        record(model)
        (gradient,) = gradients(model, {"x": turned}, cotangent, ["x"])
        wide = [value[:, None] for value in (scale, zero)]
        close(gradient.transpose(turn), clipped(x, *wide, dy), 1e-6, f"the gradient along axis {axis}")


@covers("QuantizeLinear", "DequantizeLinear")
def test_a_scale_known_only_as_the_model_runs() -> None:
    scale, zero = np.array(0.008, np.float32), np.array(100, np.uint8)
    x, dy = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    feeds = {"x": x, "s": scale, "z": zero}
    model = build(pair(scale, zero), feeds)
    record(model)
    (gradient,) = gradients(model, feeds, dy, ["x"])
    close(gradient, clipped(x, scale, zero, dy), 1e-6, "the gradient")


@pytest.mark.parametrize(
    ("between", "shape"),
    [
        ("Reshape(q, to)", (6, 4)),
        ("Transpose<perm=[2, 0, 1]>(q)", (4, 2, 3)),
        ("Concat<axis=0>(q, q)", (4, 3, 4)),
        ("Flatten(q)", (2, 12)),
    ],
)
def test_what_is_moved_about_between_them_is_differentiated(between: str, shape: tuple[int, ...]) -> None:
    scale, zero = np.array(0.01, np.float32), np.array(110, np.uint8)
    x, dy = normal(2, 3, 4), normal(*shape, seed=1)
    constants = {"s": scale, "z": zero, "to": np.array([6, 4], np.int64)}
    model = build(pair(scale, zero, between), {"x": x}, constants)
    (gradient,) = gradients(model, {"x": x}, dy, ["x"])
    if "Concat" in between:
        back = dy[:2] + dy[2:]
    else:
        back = dy.transpose(1, 2, 0) if "Transpose" in between else dy.reshape(x.shape)
    close(gradient, clipped(x, scale, zero, np.ascontiguousarray(back)), 1e-6, "the gradient")


def test_pooling_of_quantized_values() -> None:
    scale, zero = np.array(0.02, np.float32), np.array(128, np.uint8)
    x = (np.random.default_rng(0).permutation(64).reshape(1, 1, 8, 8).astype(np.float32) - 32) * 0.02
    dy = normal(1, 1, 4, 4, seed=1)
    constants = {"s": scale, "z": zero}
    body = pair(scale, zero, "MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(q)")
    (gradient,) = gradients(build(body, {"x": x}, constants), {"x": x}, dy, ["x"])
    tensor = torch.tensor(x, requires_grad=True)
    (want,) = torch.autograd.grad(torch.nn.functional.max_pool2d(tensor, 2), tensor, torch.tensor(dy))
    close(gradient, want.numpy(), 1e-6, "the gradient")


def test_nothing_flows_where_everything_saturates() -> None:
    x = np.full((1, 2), 5, np.float32)
    model = build(
        pair(np.zeros(()), np.zeros(())), {"x": x}, {"s": np.float32(0.01), "z": np.array(0, np.int8)}, opset=21
    )
    assert run(model, x=x)["y"].max() < 2
    assert not gradients(model, {"x": x}, np.ones((1, 2), np.float32), ["x"])[0].any()


def test_scales_by_blocks_are_refused_by_name() -> None:
    x = normal(4, 2)
    constants = {"s": np.full((2, 2), 0.1, np.float32), "z": np.zeros((2, 2), np.int8)}
    text = "q = QuantizeLinear<axis=0, block_size=2>(x, s, z)\ny = DequantizeLinear<axis=0, block_size=2>(q, s, z)"
    model = build(text, {"x": x}, constants, opset=21)
    with pytest.raises(UnsupportedOperator, match=r"QuantizeLinear node .* blockwise"):
        gradients(model, {"x": x}, x, ["x"])


def test_an_integer_that_is_no_quantized_value_carries_nothing() -> None:
    """A uint8 made by a Cast is data, not a quantized activation."""
    from onnxcam.autodiff.sweep import path
    from onnxcam.graph.view import Graph

    model = build("q = Cast<to=2>(x)\nr = Identity(q)\ny = Cast<to=1>(r)", {"x": normal(2, 3)})
    assert path(Graph(onnx.shape_inference.infer_shapes(model)), "y", ["x"])[0] == []


@covers("DynamicQuantizeLinear")
def test_a_range_computed_from_the_data_is_passed_straight_through() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nsmall (float[2, 3] x) => (float[2, 3] y) '
        "{ q, s, z = DynamicQuantizeLinear(x)  d = DequantizeLinear(q, s, z)  y = Mul(d, d) }"
    )
    record(model)
    x, dy = normal(2, 3), normal(2, 3)
    outputs = run(onnxcam.gradient(model, "y", ["x"]), {"x": x, "cotangent.y": dy})
    (y,) = run(model, x=x).values()
    rounded = np.sqrt(y) * np.sign(x)
    assert np.abs(outputs["grad.x"] - 2 * rounded * dy).max() < 1e-5


@covers("MatMulInteger", "DynamicQuantizeLinear")
def test_products_of_integers_are_differentiated_in_the_numbers_they_stand_for() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nsmall (float[2, 4, 3] x, float[2, 3, 5] w) => (float[2, 4, 5] y) '
        "{ q, s, z = DynamicQuantizeLinear(x)  k, t, u = DynamicQuantizeLinear(w)  m = MatMulInteger(q, k, z, u)\n"
        "f = Cast<to = 1>(m)  st = Mul(s, t)  y = Mul(f, st) }"
    )
    record(model)
    x, w, dy = normal(2, 4, 3), normal(2, 3, 5), normal(2, 4, 5)
    outputs = run(onnxcam.gradient(model, "y", ["x", "w"]), {"x": x, "w": w, "cotangent.y": dy})
    # of the numbers as rounded to 8 bits
    step_x, step_w = (np.ptp(np.append(a, 0)) / 255 for a in (x, w))
    assert np.abs(outputs["grad.x"] - dy @ w.swapaxes(1, 2)).max() <= step_w * np.abs(dy).sum(axis=2).max()
    assert np.abs(outputs["grad.w"] - x.swapaxes(1, 2) @ dy).max() <= step_x * np.abs(dy).sum(axis=1).max()
