"""A network as a list of operations: an operator, and the element-wise operators that end its layer.

    Conv -> BatchNormalization -> Relu -> QuantizeLinear -> DequantizeLinear

is one operation. Two networks that compute the same are compared where operations end: between those, a conversion or a
quantization may put the work into other operators.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import FLOATS, Graph, attributes, uses

PICTURE, LINEAR, CONVOLUTION = "picture", "linear", "convolution"
_QUANTIZE, _DEQUANTIZE, _DYNAMIC = "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"
_SAME = having(Trait.PASSES) | {"CastLike", _QUANTIZE, _DEQUANTIZE}
_ENDING = (having(Trait.ENDS_LAYER) | {"BatchNormalization", "Transpose", "Softplus"}) - _SAME
_PREPARING = {"Add", "Sub", "Mul", "Div", "Transpose"}  # of a picture by constants
RESHAPING = having(Trait.RESHAPES) | {"Transpose"}
_SIZES = frozenset({"Shape", "Size", "ConstantOfShape", "Range", "EyeLike"})
_KINDS = {
    "GlobalAveragePool": "mean",
    "ReduceMean": "mean",
    "Gemm": LINEAR,
    "MatMulInteger": LINEAR,
    "ConvInteger": CONVOLUTION,
    "Conv": CONVOLUTION,
    "Sum": "Add",
}
_PREFIX = "onnxcam/"  # of nodes that normalising adds
_MOST = 16  # operators that may end one layer, such as a GELU that is written out


@dataclass(frozen=True)
class Pair:
    """QuantizeLinear and the DequantizeLinear that reads it.

    Attributes:
        quantize, dequantize: the nodes.
        value: what is read behind the pair.
    """

    quantize: onnx.NodeProto
    dequantize: onnx.NodeProto

    @property
    def value(self) -> str:
        return str(self.dequantize.output[0])


@dataclass(frozen=True, eq=False)
class Operation:
    """An operator and what ends its layer.

    Attributes:
        node: the operator; None of the picture itself, with what prepares it inside the graph.
        kind: what it computes, whatever the operator is called.
        value: the float value that it ends with; before it is quantized, where it is.
        pairs: what quantizes that value.
        inner: what quantizes values before it.
        nodes: its nodes, the operator's first, without those that quantize.
        sources: the values of the operations that it reads.
        weight, bias: the names of its constants, None without.
    """

    node: onnx.NodeProto | None
    kind: str
    value: str
    pairs: tuple[Pair, ...]
    nodes: tuple[onnx.NodeProto, ...]
    sources: tuple[str, ...] = ()
    weight: str | None = None
    bias: str | None = None
    inner: tuple[Pair, ...] = ()

    @property
    def delivered(self) -> str:
        """The value that the next operations read."""
        return self.pairs[0].value if self.pairs else self.value

    @property
    def name(self) -> str:
        """The operator's name, or that of the value without."""
        name = self.value if self.node is None else name_of(self.node)
        if not name.startswith(_PREFIX):
            return name
        inner = self.value.startswith(_PREFIX) and self.pairs
        return str(self.pairs[0].quantize.output[0]) if inner else self.value


def name_of(node: onnx.NodeProto) -> str:
    """The name of a node in its file; that of its value where normalising has made the node."""
    made_here = not node.name or node.name.startswith(_PREFIX)
    return str(node.output[0] if made_here else node.name)


class Operations:
    """The operations between a picture and scores, in the graph's order; the picture's comes first.

    Arguments:
        graph: the normalised graph.
        picture, scores: the values it is computed from and to.
    """

    def __init__(self, graph: Graph, picture: str, scores: str) -> None:
        self.graph, self.scores = graph, scores
        nodes = graph.between([picture], [scores])
        self._inside = {id(node) for node in nodes}
        self._base: dict[str, str] = {picture: picture}  # of a value that is another's copy, but for its rounding
        self._aside: set[str] = set()  # sizes and scales: what is computed from the picture without being its content
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._index = {id(node): place for place, node in enumerate(graph.nodes)}
        for node in nodes:
            self._note(node)
        self._assigned: set[int] = set()
        self._last = self.base(scores)
        self.all = [self._begin_with(picture)]
        for node in nodes:
            if self._is_operator(node):
                self.all.append(self._operation(node))
        self.by_value = {operation.value: operation for operation in self.all}

    def base(self, value: str) -> str:
        """The value that this is, but for rounding."""
        return self._base.get(value, value)

    def origins(self, operation: Operation) -> list[Operation]:
        """The operations that one reads, through those that only reshape."""
        sources, result, visited = list(operation.sources), [], set()
        while sources:
            value = sources.pop(0)
            origin = self.by_value.get(value)
            if origin is None or value in visited:
                continue
            visited.add(value)
            if origin.node is not None and origin.node.op_type in RESHAPING and len(origin.nodes) == 1:
                sources = [*origin.sources, *sources]
            else:
                result.append(origin)
        return result

    def _note(self, node: onnx.NodeProto) -> None:
        data = [name for name in uses(node) if not self.graph.is_constant(name)]
        if node.op_type in _SIZES or all(name in self._aside for name in data):
            self._aside.update(node.output)
            return
        base = self.base(node.input[0]) if node.input else ""
        if node.op_type == _DYNAMIC:
            self._base[node.output[0]] = base
            self._aside.update(node.output[1:])
        elif node.op_type in _SAME and base not in self._aside:
            self._base[node.output[0]] = base
        else:
            for name in dict.fromkeys(self.base(name) for name in data):
                self._readers.setdefault(name, []).append(node)

    def _is_operator(self, node: onnx.NodeProto) -> bool:
        outputs = [name for name in node.output if name]
        return (
            id(node) not in self._assigned
            and not (set(outputs) <= self._aside)
            and not any(name in self._base for name in outputs)
            and node.op_type not in _SIZES
        )

    def _begin_with(self, picture: str) -> Operation:
        value, nodes = self._grown(picture, _PREPARING)
        return Operation(None, PICTURE, self._real(value), self._pairs(value), tuple(nodes))

    def _operation(self, node: onnx.NodeProto) -> Operation:
        value, ending = self._grown(node.output[0], _ENDING)
        nodes = (node, *ending)
        self._assigned.update(id(one) for one in nodes)
        results = {name for one in nodes for name in one.output}
        read = [self.base(name) for one in nodes for name in one.input if name and not self._constant(name)]
        sources = tuple(dict.fromkeys(name for name in read if name not in results))
        kind, weight, bias = self._weights(node)
        inner = tuple(pair for name in sorted(results - {value}) for pair in self._pairs(name))
        return Operation(node, kind, self._real(value), self._pairs(value), nodes, sources, weight, bias, inner)

    def _constant(self, name: str) -> bool:
        return self.graph.is_constant(name) or name in self._aside

    def _grown(self, value: str, operators: Iterable[str]) -> tuple[str, list[onnx.NodeProto]]:
        """The value that ends a layer, and the nodes to it: those after which nothing before them is read elsewhere."""
        end, committed = value, []
        values = {value}
        nodes: list[onnx.NodeProto] = []
        while len(nodes) < _MOST and end != self._last:
            readers = {id(node): node for name in values for node in self._readers.get(name, [])}
            waiting = [node for key, node in readers.items() if key not in {id(one) for one in nodes}]
            waiting = [node for node in waiting if node.op_type in operators and self._reads_only(node, values)]
            if not waiting:
                break
            node = min(waiting, key=lambda one: self._index[id(one)])
            nodes.append(node)
            values.add(node.output[0])
            inner = values - {node.output[0]}
            reading = {id(one) for name in inner for one in self._readers.get(name, [])}
            exposed = inner & ({self._last} | set(self.graph.output_names))
            if reading <= {id(one) for one in nodes} and not exposed:
                end, committed = node.output[0], list(nodes)
        if committed and committed[-1].op_type == "Transpose":  # belongs to what reads it
            while committed and committed[-1].op_type == "Transpose":
                committed.pop()
            end = committed[-1].output[0] if committed else value
        self._assigned.update(id(node) for node in committed)
        return end, committed

    def _reads_only(self, node: onnx.NodeProto, values: set[str]) -> bool:
        if id(node) in self._assigned:
            return False
        data = [name for name in uses(node) if not self._constant(name)]
        return all(self.base(name) in values for name in data)

    def _real(self, value: str) -> str:
        """A value as floats: integers stand for what they are dequantized to."""
        if self.graph.dtype(value) in FLOATS or not self.graph.dtype(value):
            return value
        for node in self.graph.consumers.get(value, []):
            if node.op_type == _DEQUANTIZE and node.input[0] == value:
                self._base[value] = node.output[0]
                return str(node.output[0])
        return value

    def _pairs(self, value: str) -> tuple[Pair, ...]:
        pairs = []
        for quantize in self.graph.consumers.get(value, []):
            if quantize.op_type != _QUANTIZE or quantize.input[0] != value:
                continue
            for dequantize in self.graph.consumers.get(quantize.output[0], []):
                if dequantize.op_type == _DEQUANTIZE and dequantize.input[0] == quantize.output[0]:
                    pairs.append(Pair(quantize, dequantize))
        return tuple(pairs)

    def _weights(self, node: onnx.NodeProto) -> tuple[str, str | None, str | None]:
        """What an operator computes, and the names of its constants."""
        constant = [place for place, name in enumerate(node.input) if name and self.graph.is_constant(name)]
        kind = _KINDS.get(node.op_type, node.op_type)
        if node.op_type in ("MatMul", "MatMulInteger", "Gemm"):
            if not constant or constant[0] > 1:
                return "product", None, None
            kind = LINEAR
            weight = str(node.input[constant[0]])
        elif node.op_type in ("Conv", "ConvTranspose", "ConvInteger") and 1 in constant:
            weight = str(node.input[1])
            shape = self.graph.shape(weight) or ()
            groups = attributes(node).get("group", 1)
            if node.op_type != "ConvTranspose" and groups == 1 and all(side == 1 for side in shape[2:]):
                kind = LINEAR
        else:
            return kind, None, None
        has_bias = node.op_type in ("Conv", "ConvTranspose", "Gemm") and 2 in constant
        return kind, weight, str(node.input[2]) if has_bias else None
