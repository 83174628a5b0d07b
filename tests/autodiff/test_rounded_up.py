"""Pooling that rounds the number of its windows up: shapes and gradients, whatever shapes the file declares."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.graph.normalize import prepare
from tests.support.runtime import run

torch = pytest.importorskip("torch")
# size, kernel, stride, padding; in the last three the window that rounding up adds would start in the padding
GEOMETRIES = [(14, 3, 2, 0), (14, 3, 2, 1), (12, 1, 2, 0), (7, 2, 3, 1), (9, 2, 4, 1)]


def pooled(kind: str, geometry: tuple[int, ...], opset: int, stale: int | None = None, pools: int = 1) -> Any:
    """A convolution, pools, a convolution, and the mean of its maps; pooled maps are declared `stale` cells smaller."""
    size, kernel, stride, pad = geometry
    rng = np.random.default_rng(size)
    weights = {
        "a": 0.3 * rng.normal(size=(4, 3, 3, 3)),
        "b": 0.3 * rng.normal(size=(5, 4, 3, 3)),
        "w": rng.normal(size=(5, 6)),
    }
    window: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4, "ceil_mode": 1}
    nodes = [helper.make_node("Conv", ["x", "a"], ["p0"], pads=[1] * 4)]
    nodes += [helper.make_node(kind, [f"p{k}"], [f"p{k + 1}"], **window) for k in range(pools)]
    nodes += [
        helper.make_node("Conv", [f"p{pools}", "b"], ["c"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    side = (size + 2 * pad - kernel) // stride + 1
    info = helper.make_tensor_value_info
    infos = [] if stale is None else [info("p1", TensorProto.FLOAT, ["N", 4, *[max(1, side - stale)] * 2])]
    graph = helper.make_graph(
        nodes, "pooled", [info("x", TensorProto.FLOAT, ["N", 3, size, size])], [info("y", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()], value_info=infos,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def by_torch(
    model: onnx.ModelProto, kind: str, geometry: tuple[int, ...], x: np.ndarray, dy: np.ndarray, pools: int
) -> Any:
    """The outputs and the gradient at the picture."""
    weights = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    _, kernel, stride, pad = geometry
    functional, picture = torch.nn.functional, torch.tensor(x, requires_grad=True)
    value = functional.conv2d(picture, weights["a"], padding=1)
    for _ in range(pools):
        if kind == "MaxPool":
            value = functional.max_pool2d(value, kernel, stride, pad, ceil_mode=True)
        else:
            value = functional.avg_pool2d(value, kernel, stride, pad, ceil_mode=True, count_include_pad=False)
    y = functional.conv2d(value, weights["b"], padding=1).mean((2, 3)) @ weights["w"]
    (gradient,) = torch.autograd.grad((y * torch.tensor(dy)).sum(), picture)
    return y.detach().numpy(), gradient.numpy()


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("opset", "stale"), [(13, None), (18, 0), (22, 1)])
def test_gradients_are_autograds(kind: str, geometry: tuple[int, ...], opset: int, stale: int | None) -> None:
    pools = 2 if geometry[0] == 12 else 1
    model = pooled(kind, geometry, opset, stale, pools)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 3, geometry[0], geometry[0])).astype(np.float32)
    dy = rng.normal(size=(2, 6)).astype(np.float32)
    y, expected = by_torch(model, kind, geometry, x, dy, pools)
    outputs = run(onnxcam.gradient(model, of="y", wrt=["x"]), {"x": x, "cotangent.y": dy})
    np.testing.assert_allclose(outputs["y"], y, rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(outputs["grad.x"] - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("stale", [None, 0, 1])
def test_shapes_are_those_that_the_runtime_computes(stale: int | None) -> None:
    for geometry in GEOMETRIES:
        for opset in (13, 18, 22):
            model = pooled("MaxPool", geometry, opset, stale)
            graph = prepare(model)
            exposed = onnx.ModelProto()
            exposed.CopyFrom(model)
            del exposed.graph.value_info[:]
            exposed.graph.output.append(onnx.ValueInfoProto(name="p1"))
            x = np.zeros((2, 3, geometry[0], geometry[0]), np.float32)
            assert graph.shape("p1") == ("N", *run(exposed, {"x": x}, outputs=["p1"])["p1"].shape[1:])
