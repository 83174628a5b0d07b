"""A model of one picture `[C, H, W]`, as torchvision's detectors are exported, read as one of a batch of one."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcam.graph import edit
from onnxcam.graph.shape_inference import refresh
from onnxcam.graph.view import FLOATS, Graph, Shape

_CHANNELS = 3  # of a picture whose layout the shape alone must tell
_SMALLEST = 16  # rows and columns


def with_batch_axis(graph: Graph) -> Graph:
    """The graph with its one picture `[3, H, W]` or `[H, W, 3]` as input `[1, …]`; any other graph as it is."""
    inputs = [value for value in graph.inputs if graph.consumers.get(value.name)]
    if len(inputs) != 1 or not _is_picture(graph.shape(inputs[0].name)):
        return graph
    name, dtype, shape = inputs[0].name, graph.dtype(inputs[0].name), graph.shape(inputs[0].name)
    if dtype not in FLOATS | {onnx.TensorProto.UINT8} or shape is None:
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    single, axes = f"{name}.single", f"{name}.axes"
    while single in graph or axes in graph:
        single, axes = f"{single}_", f"{axes}_"
    edit.rename(model, {name: single})
    for index, value in enumerate(model.graph.input):
        if value.name == single:
            model.graph.input[index].CopyFrom(edit.info(name, dtype, (1, *shape)))
    squeeze = helper.make_node("Squeeze", [name, axes], [single], name=single)
    nodes = [squeeze, *model.graph.node]
    edit.replace_nodes(model, nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), axes))
    return refresh(model)


def _is_picture(shape: Shape | None) -> bool:
    """Whether a shape is that of a colour picture, channels first or last."""
    if shape is None or len(shape) != 3:
        return False
    for channels, size in ((shape[0], shape[1:]), (shape[2], shape[:2])):
        if channels == _CHANNELS and all(not isinstance(dim, int) or dim >= _SMALLEST for dim in size):
            return True
    return False
