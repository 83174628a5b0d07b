"""The sizes of every value for one picture, further than plain shape inference gets.

Exporters write shapes as arithmetic (Shape, Gather, Concat, Reshape); with the batch fixed it can be worked out.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import defs, numpy_helper, shape_inference

from onnxcam.errors import ModelError
from onnxcam.graph.constant_folding import ConstantFolder
from onnxcam.graph.shape_inference import refresh, skeleton
from onnxcam.graph.view import Graph

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


class StaticShapes:
    """Shapes for a batch of one where the batch is free, else for the model's own; also small values known before.

    Arguments:
        fixed: dimensions of inputs that are to be taken instead of the graph's own.
    """

    def __init__(self, graph: Graph, fixed: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self._graph = _of_one_picture(graph, fixed or {})
        self._folder = ConstantFolder(self._graph)
        for node in self._graph.nodes:
            if any(self.shape(name) is None for name in node.output if name):
                self._complete(node)

    def shape(self, value: str) -> tuple[int, ...] | None:
        """The dimensions of a value, None where some are not known."""
        found = self._graph.shape(value)
        known = [dim for dim in found or () if isinstance(dim, int)]
        return tuple(known) if found is not None and len(known) == len(found) else None

    def dtype(self, value: str) -> int:
        """`TensorProto` element type of a value, 0 when unknown."""
        return self._graph.dtype(value)

    def small(self, value: str) -> list[int] | None:
        """A small value that is known before the model runs, as a list."""
        found = self._folder.value(value)
        return None if found is None else [int(x) for x in found.reshape(-1)]

    def _complete(self, node: onnx.NodeProto) -> None:
        """Infer what a node returns anew, from what is known of its inputs by now."""
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for name in filter(None, node.input):
            kind = self._graph.dtype(name)
            if not kind or self._graph.shape(name) is None:
                return
            types[name] = onnx.helper.make_tensor_type_proto(kind, self._graph.shape(name))
            held = self._folder.value(name) if kind in _INTEGERS else None
            if held is not None:
                data[name] = numpy_helper.from_array(held, name)
        try:
            schema = defs.get_schema(node.op_type, self._graph.opset, node.domain)
            imports = list(self._graph.model.opset_import)
            found = shape_inference.infer_node_outputs(schema, node, types, data, None, imports)
        except Exception:
            return  # no such operator, or a graph that is wrong: its sizes stay unknown
        for name, kind in found.items():
            self._graph.declare(onnx.helper.make_value_info(name, kind))


def _of_one_picture(graph: Graph, fixed: Mapping[str, tuple[int, ...]]) -> Graph:
    bare, _ = skeleton(graph.model)
    del bare.graph.value_info[:]
    for info in bare.graph.input:
        dims = info.type.tensor_type.shape.dim
        if info.name not in graph.initializers and len(dims) and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
        for dim, size in zip(dims, fixed.get(info.name, ()), strict=False):
            dim.dim_value = size
    for info in bare.graph.output:
        info.type.tensor_type.ClearField("shape")
    try:
        return refresh(bare)
    except ModelError:
        return Graph(graph.model)  # the symbols say what they say
