"""Which axis is which, and the way to `[N, C, h, w]` and back, in NumPy and as nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph
from onnxcam.network.layout import Layout

# layout, and the shape of a batch with 2 rows, 5 channels and a map of 3 x 4
LAYOUTS = {
    "NCHW": (Layout("NCHW"), (2, 5, 3, 4)),
    "NHWC": (Layout("NHWC"), (2, 3, 4, 5)),
    "tokens after a class token": (Layout("NTC", (3, 4), 1), (2, 13, 5)),
    "N(HW)C": (Layout("NTC", (3, 4)), (2, 12, 5)),
}


def values(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_there_and_back(name: str) -> None:
    layout, shape = LAYOUTS[name]
    tensor = values(shape)
    canonical = layout.to_canonical(tensor)
    assert canonical.shape == (2, 5, 3, 4)
    for row, channel, y, x in np.ndindex(canonical.shape):
        place = {
            "NCHW": (row, channel, y, x),
            "NHWC": (row, y, x, channel),
            "NTC": (row, layout.prefix_tokens + 4 * y + x, channel),
        }
        assert canonical[row, channel, y, x] == tensor[place[layout.name]]
    prefix = tensor[:, : layout.prefix_tokens] if layout.tokens else None
    assert np.array_equal(layout.from_canonical(canonical, prefix), tensor)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("name", LAYOUTS)
def test_nodes_compute_the_same(name: str, kind: int) -> None:
    layout, shape = LAYOUTS[name]
    tensor = values(shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    graph = helper.make_graph([], "g", [edit.info("x", kind, ["N", *shape[1:]])], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    op = Builder(Graph(model))
    output = op.Identity(layout.emit_canonical(op, "x", kind), name="y")
    edit.add(model, op)
    model.graph.output.append(edit.info(output, TensorProto.FLOAT, [None] * 4))
    onnx.checker.check_model(model, full_check=True)
    (canonical,) = ReferenceEvaluator(model).run(None, {"x": tensor})
    np.testing.assert_array_equal(canonical, layout.to_canonical(tensor).astype(np.float32))


@pytest.mark.parametrize(("name", "channels", "size"), [("NCHW", 1, (2, 3)), ("NHWC", 3, (1, 2))])
def test_axes_of_pictures(name: str, channels: int, size: tuple[int, int]) -> None:
    layout = Layout(name)
    assert (layout.channels, (layout.height, layout.width)) == (channels, size)
    assert not layout.tokens
    shape = layout.shape("N", 3, 224, 192)
    assert (shape[channels], layout.size(shape)) == (3, (224, 192))


def test_of_a_manifest() -> None:
    assert Layout.of({"name": "input", "layout": "NHWC", "shape": ["N", 8, 8, 3]}) == Layout("NHWC")
    entry = {"name": "block", "layout": "NTC", "grid": [14, 14], "prefix_tokens": 5}
    assert Layout.of(entry) == Layout("NTC", (14, 14), 5)
