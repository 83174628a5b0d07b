"""Maxima of which the first element gets the gradient of a tie, by the exporter's notes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxcam
from onnxcam.graph.normalize import prepare
from tests.support.runtime import run

AMAX = "%amax : [num_users=1] = call_function[target=torch.ops.aten.amax.default](args = (%x, [-2, -1], True))"
MAX_DIM = "%max_1 : [num_users=1] = call_function[target=torch.ops.aten.max.dim](args = (%x, 2))"
ADAPTIVE = "['Net', 'torch.nn.modules.pooling.AdaptiveMaxPool2d', 'aten.amax.default']"


def model(reduction: str, axes: list[int], **notes: str) -> onnx.ModelProto:
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>\nsmall (float[N, 2, 3, 4] x) => (float y) '
        f"<int64[{len(axes)}] axes = {{{', '.join(map(str, axes))}}}> "
        f"{{ m = {reduction}(x, axes)  y = ReduceSum<keepdims = 0>(m) }}"
    )
    for key, value in notes.items():
        proto.graph.node[0].metadata_props.add(key=f"pkg.torch.onnx.{key}", value=value)
    return proto


def gradient(model_proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    derived = onnxcam.gradient(model_proto, "y", ["x"])
    return run(derived, {"x": x, "cotangent.y": np.float32(1)})["grad.x"]


@pytest.mark.parametrize("reduction", ["ReduceMax", "ReduceMax<keepdims = 0>"])
@pytest.mark.parametrize(
    ("axes", "notes"),
    [([2, 3], {"class_hierarchy": ADAPTIVE}), ([-2, -1], {"class_hierarchy": ADAPTIVE}), ([2], {"fx_node": MAX_DIM})],
)
def test_the_first_of_a_tie_gets_the_gradient_where_the_source_says_so(
    reduction: str, axes: list[int], notes: dict[str, str]
) -> None:
    graph = model(reduction, axes, **notes)
    x = np.zeros((1, 2, 3, 4), np.float32)
    x[0, 1, 1, 2] = x[0, 1, 2, 3] = 1.0
    slope = gradient(graph, x)
    expected = np.zeros_like(x)
    if axes == [2]:
        expected[0, :, 0] = 1
        expected[0, 1, :, 2:] = [[0, 0], [1, 0], [0, 1]]
    else:
        expected[0, 0, 0, 0] = expected[0, 1, 1, 2] = 1
    assert np.array_equal(slope, expected)
    (value,) = run(prepare(graph).model, x=x).values()
    assert value == run(graph, x=x)["y"]


def test_a_minimum_selects_the_first_of_the_smallest() -> None:
    slope = gradient(model("ReduceMin", [3], fx_node=MAX_DIM.replace("max", "min")), np.zeros((1, 2, 3, 4), np.float32))
    assert slope[..., 0].all() and not slope[..., 1:].any()


@pytest.mark.parametrize("notes", [{}, {"fx_node": AMAX}])
def test_ties_are_shared_elsewhere(notes: dict[str, str]) -> None:
    graph = model("ReduceMax", [2, 3], **notes)
    assert np.allclose(gradient(graph, np.zeros((1, 2, 3, 4), np.float32)), 1 / 12)
    assert [node.op_type for node in prepare(graph).nodes] == ["ReduceMax", "ReduceSum"]
