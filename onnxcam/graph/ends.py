"""The end of a layer: a convolution's output followed through normalisation, activation, residual Add and Concat."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.tokens import shape_of
from onnxcam.graph.view import Graph, Shape, attributes

Counts = Callable[[onnx.NodeProto, str], bool]

_STEPS, _NORMALIZATIONS = having(Trait.ENDS_LAYER), having(Trait.NORMALIZES)
_PRODUCTS = 8  # of the scale of a dynamic quantization with those of weights


class Ends:
    """The ends of the layers of one graph; ways that join are followed once.

    Arguments:
        counts: whether a node's use of a value counts; all do by default.
    """

    def __init__(self, graph: Graph, counts: Counts | None = None) -> None:
        self._graph, self._counts = graph, counts
        self._ends: dict[str, str | None] = {}

    def of(self, value: str) -> str:
        """The last value to which a value leads through the rest of its layer, never through pooling."""
        ends, way = self._ends, [value]
        while way[-1] not in ends:
            following = self._following(way[-1])
            if following is None:
                ends[way[-1]] = way[-1] if _ends_layer(self._graph, way[-1]) else None
            else:
                way.append(following)
        for name, following in zip(way[-2::-1], way[:0:-1], strict=True):
            ends[name] = ends[following] or (name if _ends_layer(self._graph, name) else None)
        return ends[value] or value

    def _following(self, value: str) -> str | None:
        graph = self._graph
        step = _step(graph, value, self._counts) or _activation(graph, value, self._counts)
        return step or _joined(graph, value) or _turned(graph, value)


def turns(node: onnx.NodeProto) -> bool:
    """Whether a node is a transposition of NCHW to NHWC or back."""
    return node.op_type == "Transpose" and list(attributes(node).get("perm", ())) in ([0, 2, 3, 1], [0, 3, 1, 2])


def spatial(shape: Shape | None) -> bool:
    """Whether a shape is of rank 4 with more than one position, as far as it is known."""
    return shape is not None and len(shape) == 4 and shape[2:] != (1, 1) and shape[1:3] != (1, 1)


def _ends_layer(graph: Graph, value: str) -> bool:
    """Whether a value is a layer's output: not one between QuantizeLinear and DequantizeLinear, nor a transposition
    that nothing of the layer follows."""
    node = graph.producer.get(value)
    return graph.is_float(value) and (node is None or not turns(node))


def _turned(graph: Graph, value: str) -> str | None:
    """The only reader of a value, if it turns NCHW to NHWC or back and a bias, activation or join follows.

    Frameworks that keep channels last write each convolution between two such Transposes.
    """
    readers = graph.consumers.get(value, [])
    if len(readers) != 1 or not turns(readers[0]) or value in graph.output_names:
        return None
    turned = str(readers[0].output[0])
    after = graph.consumers.get(turned, [])
    return turned if after and all(node.op_type in _STEPS or node.op_type == "Concat" for node in after) else None


def _step(graph: Graph, value: str, counts: Counts | None) -> str | None:
    """The output of the only reader of a value, if that is elementwise with constants; else `_activation` searches."""
    readers = graph.consumers.get(value, ())
    if len(readers) != 1 or readers[0].op_type not in _STEPS:
        return None
    node, output = readers[0], str(readers[0].output[0])
    names = list(node.input)
    if value not in names or any(name and name != value and not graph.is_constant(name) for name in names):
        return None
    if shape_of(graph, output) != shape_of(graph, value) or not (counts is None or counts(node, value)):
        return None
    return output


def _activation(graph: Graph, value: str, counts: Counts | None) -> str | None:
    """The next value on all paths from `value`, through elementwise operators alone; None if there is none.

    An activation may be several operators (SiLU is Sigmoid and Mul, GELU five), whose paths join again.
    """
    inside, shape = {value}, shape_of(graph, value)
    queue: list[tuple[int, onnx.NodeProto]] = []  # readers of what is inside, in graph order
    queued: set[int] = set()
    waiting: dict[str, int] = {}  # readers of a value whose output is not inside
    ahead = 0  # values inside that are read from outside, or by nothing
    exposed = False  # whether one of them, but for the first, is an output of the graph

    def enter(name: str) -> None:
        nonlocal ahead
        readers = [n for n in graph.consumers.get(name, []) if counts is None or counts(n, name)]
        waiting[name] = len(readers)
        ahead += 1
        for reader in readers:
            index = graph.index_of(reader)
            if index not in queued and name in reader.input:
                queued.add(index)
                heapq.heappush(queue, (index, reader))

    enter(value)
    while queue:
        _, node = heapq.heappop(queue)
        output, kind = node.output[0], node.op_type
        # a normalisation may be exported as its parts, with means over the channels of each token
        simple = (
            kind in _STEPS or kind in _NORMALIZATIONS or (kind == "ReduceMean" and _per_token(graph, value, output))
        )
        if exposed or not simple:
            return None
        names = dict.fromkeys(node.input)
        others = [name for name in names if name and name not in inside and not graph.is_constant(name)]
        if any(not is_dynamic_scale(graph, name) for name in others):
            return None
        same_shape = shape_of(graph, output) == shape
        if not same_shape and not _per_token(graph, value, output):
            return None
        inside.add(output)
        exposed |= output in graph.output_names
        for name in names:
            if name in inside and (counts is None or counts(node, name)):
                waiting[name] -= 1
                ahead -= waiting[name] == 0
        enter(output)
        if ahead == 1 and same_shape:
            return str(output)
    return None


def is_dynamic_scale(graph: Graph, value: str) -> bool:
    """Whether a value is the scale of a dynamic quantization, or its product with those of constant weights."""
    for _ in range(_PRODUCTS):
        node = graph.producer.get(value)
        if node is None:
            return False
        if node.op_type == "DynamicQuantizeLinear":
            return bool(value != node.output[0])
        varying = [name for name in node.input[:3] if not graph.is_constant(name)]
        if node.op_type != "Mul" or len(varying) != 1:
            return False
        value = varying[0]
    return False


def _per_token(graph: Graph, value: str, output: str) -> bool:
    """Whether `output` is one number for each token of `value`, `[N, T, C]`."""
    shape = shape_of(graph, value)
    return shape is not None and len(shape) == 3 and shape_of(graph, output) == (*shape[:2], 1)


def _joined(graph: Graph, value: str) -> str | None:
    """The residual Add or channel Concat that is the only reader of the value."""
    consumers = graph.consumers.get(value, [])
    if len(consumers) != 1 or value in graph.output_names:
        return None
    node = consumers[0]
    shape, joined = shape_of(graph, value), shape_of(graph, node.output[0])
    if shape is None or joined is None or len(shape) != len(joined) or not spatial(joined):
        return None
    if node.op_type in ("Add", "Sum") and shape[1:] == joined[1:]:
        return str(node.output[0])
    if node.op_type == "Concat" and shape[2:] == joined[2:]:
        return str(node.output[0])
    return None
