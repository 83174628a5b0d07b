"""Static shapes of every value for a batch of one, where plain shape inference leaves dimensions open.

Exporters compute shapes in the graph (Shape, Gather, Concat, Reshape); with the batch fixed they are constants.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import defs, numpy_helper, shape_inference

from onnxcam.errors import ModelError
from onnxcam.graph.constant_folding import ConstantFolder
from onnxcam.graph.shape_inference import refresh, rounded_up, skeleton, undeclare
from onnxcam.graph.view import Graph

_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


class StaticShapes:
    """Shapes for the model's batch size, 1 if it is dynamic; also the small constants that they are computed from.

    Arguments:
        fixed: shapes of inputs instead of the declared ones.
    """

    def __init__(self, graph: Graph, fixed: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self._graph = _of_one_picture(graph, fixed or {})
        self._folder = ConstantFolder(self._graph)
        for node in self._graph.nodes:
            if any(self.shape(name) is None for name in node.output if name):
                self._complete(node)

    def shape(self, value: str) -> tuple[int, ...] | None:
        """The shape of a value; None if a dimension is unknown."""
        shape = self._graph.shape(value)
        sizes = [dim for dim in shape or () if isinstance(dim, int)]
        return tuple(sizes) if shape is not None and len(sizes) == len(shape) else None

    def first(self, value: str) -> int | None:
        """The first dimension of a value, None if it is unknown; the others may be."""
        shape = self._graph.shape(value)
        return shape[0] if shape and isinstance(shape[0], int) else None

    def dtype(self, value: str) -> int:
        """`TensorProto` element type of a value, 0 when unknown."""
        return self._graph.dtype(value)

    def integers(self, value: str) -> list[int] | None:
        """A small constant of integers as a list; None if the value is not one."""
        array = self._folder.value(value)
        return None if array is None else [int(x) for x in array.reshape(-1)]

    def numbers(self, value: str) -> list[float] | None:
        """A small constant as a list of floats; None if the value is not one."""
        array = self._folder.value(value)
        return None if array is None else [float(x) for x in array.reshape(-1)]

    def _complete(self, node: onnx.NodeProto) -> None:
        """Infer a node's output shapes from the shapes and constants of its inputs."""
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for name in filter(None, node.input):
            kind = self._graph.dtype(name)
            if not kind or self._graph.shape(name) is None:
                return
            types[name] = onnx.helper.make_tensor_type_proto(kind, self._graph.shape(name))
            # a Resize may compute its sizes from scales, which are no integers
            value = self._folder.value(name) if kind in _INTEGERS or node.op_type == "Resize" else None
            if value is not None:
                data[name] = numpy_helper.from_array(value, name)
        try:
            schema = defs.get_schema(node.op_type, self._graph.opset, node.domain)
            imports = list(self._graph.model.opset_import)
            outputs = shape_inference.infer_node_outputs(schema, node, types, data, None, imports)
        except Exception:
            return  # an unknown operator or an invalid graph: the shapes stay unknown
        right = rounded_up(node, self._graph.shape(node.input[0])) if node.input else None
        for name, kind in outputs.items():
            if right is not None:
                kind = onnx.helper.make_tensor_type_proto(kind.tensor_type.elem_type, right)
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
        undeclare(info)
    try:
        return refresh(bare)
    except ModelError:
        return Graph(graph.model)  # with symbolic dimensions
