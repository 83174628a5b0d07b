"""A read-only index of a graph: the producer and consumers of a value, its type, and whether it is constant."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcam.errors import ModelError, listing, nearest
from onnxcam.graph.operators import Trait, having

Dim = int | str | None
Shape = tuple[Dim, ...]

FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
)
_RANDOM = having(Trait.RANDOM)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values (strings decoded)."""
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        values[attribute.name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return values


def copy_of(node: onnx.NodeProto) -> onnx.NodeProto:
    """Copy a node, so that it outlives its graph."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def shape_of(info: onnx.ValueInfoProto) -> Shape | None:
    """The declared shape: an int, a symbol, or None per dimension; None if the rank is unknown."""
    return _shape_of_type(info.type.SerializeToString())


@lru_cache(maxsize=4096)
def _shape_of_type(data: bytes) -> Shape | None:
    """The shape of a type as it is stored: most values of a graph have that of another one."""
    tensor = onnx.TypeProto.FromString(data).tensor_type
    if not tensor.HasField("shape"):
        return None
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        kind = dim.WhichOneof("value")
        if kind == "dim_value":
            dims.append(int(dim.dim_value))
        else:
            dims.append(dim.dim_param if kind == "dim_param" and dim.dim_param else None)
    return tuple(dims)


class Graph:
    """An index over one `ModelProto`, built at construction: build a new one after editing the model, shapes included.

    Values and nodes are named as in the model; nodes are in topological order, as ONNX requires.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [i for i in graph.input if i.name not in self.initializers]
        self.outputs = list(graph.output)
        self.output_names = frozenset(output.name for output in graph.output)
        self._input_names = frozenset(info.name for info in graph.input)
        self.position: dict[str, int] = {}
        self.producer: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        # names are asked for again and again, and each time would be made anew of a message
        self._reads = [tuple(dict.fromkeys(uses(node))) for node in self.nodes]
        self._outputs = [tuple(name for name in node.output if name) for node in self.nodes]
        for index, (node, reads) in enumerate(zip(self.nodes, self._reads, strict=True)):
            for name in self._outputs[index]:
                self.producer[name] = node
                self.position[name] = index
            for name in reads:
                self.consumers.setdefault(name, []).append(node)
        self._infos: dict[str, onnx.ValueInfoProto] = {}
        for info in (*graph.value_info, *graph.input, *graph.output):
            self._infos[info.name] = info
        self._shapes: dict[str, Shape | None] = {}
        self._constants: dict[str, np.ndarray | None] = {}
        self._constant_values = {name for name in self.initializers if name not in self._input_names}
        constant = self._constant_values
        for node, reads, outputs in zip(self.nodes, self._reads, self._outputs, strict=True):
            if constant.issuperset(reads) and node.op_type not in _RANDOM:
                constant.update(outputs)
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.source_opset = self.opset  # before it was upgraded
        self.rewrites: list[str] = []  # sentences about operators of the source that were written as others

    def again(self) -> Graph:
        """Index the same model again after an edit, and keep what is known of its source."""
        graph = Graph(self.model)
        graph.source_opset, graph.rewrites = self.source_opset, self.rewrites
        return graph

    def __contains__(self, value: str) -> bool:
        return value in self.producer or value in self.initializers or value in self._input_names

    @cached_property
    def fixed_picture(self) -> Shape | None:
        """The shape of the first input, None if more of it than the first dimension is open."""
        shape = self.shape(self.inputs[0].name) if self.inputs else None
        return shape if shape is not None and all(isinstance(dim, int) for dim in shape[1:]) else None

    def declare(self, info: onnx.ValueInfoProto) -> None:
        """Set the type and shape of a value in the index; the model is unchanged."""
        self.__dict__.pop("fixed_picture", None)
        self._infos[info.name] = info
        self._shapes.pop(info.name, None)

    def index_of(self, node: onnx.NodeProto) -> int:
        """The node's index in topological order."""
        first = node.output[0]
        return self.position[first] if first else next(self.position[name] for name in node.output if name)

    def shape(self, value: str) -> Shape | None:
        """Shape of a value; None if the rank is unknown."""
        if value not in self._shapes:
            tensor, info = self.initializers.get(value), self._infos.get(value)
            declared = shape_of(info) if info is not None else None
            self._shapes[value] = tuple(tensor.dims) if tensor is not None else declared
        return self._shapes[value]

    def dtype(self, value: str) -> int:
        """`TensorProto` element type of a value, 0 when unknown."""
        tensor = self.initializers.get(value)
        if tensor is not None:
            return int(tensor.data_type)
        info = self._infos.get(value)
        return int(info.type.tensor_type.elem_type) if info is not None else 0

    def is_float(self, value: str) -> bool:
        """Whether gradients can flow through the value; an unknown type counts as float."""
        return self.dtype(value) in FLOATS or self.dtype(value) == 0

    def constant(self, value: str) -> np.ndarray | None:
        """The value as an array if it is an initializer or a Constant, also through Identity or Cast; else None."""
        way = [value]
        while way[-1] not in self._constants:  # through any number of Identity and Cast
            node = self.producer.get(way[-1])
            if node is None or node.op_type not in ("Identity", "Cast") or not self.is_constant(way[-1]):
                break
            way.append(node.input[0])
        for name in reversed(way):
            if name not in self._constants:
                self._constants[name] = self._resolve(name)
        return self._constants[value]

    def is_constant(self, value: str) -> bool:
        """Whether the value depends on constants alone; `constant` reads only some of these values."""
        return value in self._constant_values

    def _resolve(self, value: str) -> np.ndarray | None:
        if not self.is_constant(value):
            return None
        if value in self.initializers:
            return numpy_helper.to_array(self.initializers[value])
        node = self.producer[value]
        if node.op_type not in ("Constant", "Identity", "Cast"):
            return None  # could be folded, but callers need weights only
        if node.op_type == "Identity":
            return self._constants[node.input[0]]
        if node.op_type == "Cast":  # weights stored as float16 are constants too
            stored = self._constants[node.input[0]]
            kind = onnx.helper.tensor_dtype_to_np_dtype(attributes(node)["to"])
            return None if stored is None else stored.astype(kind)
        for name, constant in attributes(node).items():
            if name == "value":
                return numpy_helper.to_array(constant)
            if name in ("value_float", "value_floats"):
                return np.asarray(constant, dtype=np.float32)
            if name in ("value_int", "value_ints"):
                return np.asarray(constant, dtype=np.int64)
        return None

    def downstream(self, values: Iterable[str]) -> set[str]:
        """`values` and every value computed from them."""
        reached = set(values)
        for reads, outputs in zip(self._reads, self._outputs, strict=True):
            if not reached.isdisjoint(reads):
                reached.update(outputs)
        return reached

    def upstream(self, values: Iterable[str], stop: Iterable[str] = ()) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes needed to compute `values`, in order, and the values they read from outside.

        Arguments:
            values: the values to compute.
            stop: values at which the search ends: their producers are not included.
        """
        boundary = set(stop)
        needed = {v for v in values if v not in boundary}
        outside = {v for v in values if v in boundary}
        nodes: list[onnx.NodeProto] = []
        for index in range(len(self.nodes) - 1, -1, -1):
            if needed.isdisjoint(self._outputs[index]):
                continue
            nodes.append(self.nodes[index])
            for name in self._reads[index]:
                if name in boundary:
                    outside.add(name)
                else:
                    needed.add(name)
        outside.update(name for name in needed if name not in self.producer)
        return nodes[::-1], outside

    def between(self, sources: Iterable[str], results: Iterable[str]) -> list[onnx.NodeProto]:
        """The nodes that compute `results` from `sources`, in order."""
        reachable = self.downstream(sources)
        nodes, _ = self.upstream(results)
        return [node for node in nodes if any(name in reachable for name in node.input)]

    def find(self, name: str) -> str:
        """Resolve the name of a value, or of a node (its first output).

        Raises:
            ModelError: no value and not exactly one node has that name.
        """
        if name in self:
            return name
        named = [node for node in self.nodes if node.name == name]
        if len(named) == 1:
            return str(named[0].output[0])
        names = [*self.producer, *(i.name for i in self.inputs), *(node.name for node in self.nodes)]
        raise ModelError(
            f"the model has no value or node {name!r}; the nearest names are {listing(nearest(name, names))}"
        )


def uses(node: onnx.NodeProto) -> list[str]:
    """Every value that a node reads, its subgraphs (If, Loop) included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.HasField("g") else attribute.graphs
        for body in bodies:
            inner = {i.name for i in body.input} | {t.name for t in body.initializer}
            inner.update(name for child in body.node for name in child.output)
            for child in body.node:
                names += (name for name in uses(child) if name not in inner)
            names += (o.name for o in body.output if o.name not in inner)
    return names
