"""Which axes of a value are channels, height and width: `NCHW`, `NHWC`, or a sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, attributes

_TO_NHWC, _TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]
_NAMES = {False: "NCHW", True: "NHWC"}
_NEAR = 64  # values
_layouts: WeakKeyDictionary[Graph, dict[str, str]] = WeakKeyDictionary()
_tokens: WeakKeyDictionary[Graph, bool] = WeakKeyDictionary()
_CHANNELS_FIRST = having(Trait.CHANNELS_FIRST)
_KEEP_LAYOUT = having(Trait.ELEMENTWISE | Trait.KEEPS_AXES)


def input_layout(graph: Graph, name: str) -> str:
    """Find out whether the picture input is `NCHW` or `NHWC`."""
    shape = graph.shape(name) or (None,) * 4
    first, last = shape[1] in (1, 3, 4), shape[3] in (1, 3, 4)
    if first != last:
        return "NCHW" if first else "NHWC"
    return layout_of(graph, name)


def layout_of(graph: Graph, value: str) -> str:
    """Find out whether a rank-4 value is `NCHW` or `NHWC`, from the nearest operator with a fixed layout."""
    layouts = _layouts.setdefault(graph, {})
    if value not in layouts:
        channels_last, searched = _search(graph, value)
        layouts[value] = _NAMES[channels_last]
        if len(searched) > _NEAR:  # far from any such operator, what was searched once is not searched again
            for name, turned in searched:
                layouts.setdefault(name, _NAMES[channels_last ^ turned])
    return layouts[value]


def _search(graph: Graph, value: str) -> tuple[bool, list[tuple[str, bool]]]:
    """Whether channels come last, and the values that were searched, each with whether it is turned against `value`."""
    queue: list[tuple[str, bool]] = [(value, False)]
    visited, nodes_visited = {value}, set()
    for name, turned in queue:
        nodes = [(graph.producer.get(name), True), *((n, False) for n in graph.consumers.get(name, []))]
        for node, is_producer in nodes:
            if node is None:
                continue
            if node.op_type in _CHANNELS_FIRST and (is_producer or node.input[0] == name):
                return turned, queue
            if node.op_type in ("LayerNormalization", "MatMul") and (is_producer or node.input[0] == name):
                return not turned, queue
            turns = node.op_type == "Transpose" and list(attributes(node).get("perm", [])) in (_TO_NHWC, _TO_NCHW)
            if not turns and node.op_type not in _KEEP_LAYOUT:
                continue
            index = graph.index_of(node)
            if index in nodes_visited:
                continue
            nodes_visited.add(index)
            side = _side(node, name)
            for neighbour in (*node.output, *node.input):
                if neighbour in visited:
                    continue
                shape = graph.shape(neighbour)
                if shape is None or len(shape) != 4 or graph.is_constant(neighbour):
                    continue
                visited.add(neighbour)
                queue.append((neighbour, turned if neighbour in side else turned ^ turns))
    return False, queue


def _side(node: onnx.NodeProto, name: str) -> set[str]:
    """The values on the same side of a node as `name`."""
    return set(node.input) if name in node.input else set(node.output)


def works_on_tokens(graph: Graph) -> bool:
    """Whether any node of a graph works on tokens; found out once."""
    if graph not in _tokens:
        _tokens[graph] = _any_on_tokens(graph, graph.nodes)
    return _tokens[graph]


def has_tokens(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether nodes work on tokens: a Softmax of rank 3 to 5, or an Add of rank 3."""
    return works_on_tokens(graph) and _any_on_tokens(graph, nodes)


def _any_on_tokens(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> bool:
    rank = {"Softmax": (3, 4, 5), "Add": (3,)}
    return any(len(graph.shape(node.output[0]) or ()) in rank[node.op_type] for node in nodes if node.op_type in rank)
