"""Which axes of a value are channels, height and width: `NCHW`, `NHWC`, or a sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, attributes

_TO_NHWC, _TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]
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
    queue: list[tuple[str, bool]] = [(value, False)]
    visited = {value}
    for name, flipped in queue:
        nodes = [(graph.producer.get(name), True), *((n, False) for n in graph.consumers.get(name, []))]
        for node, is_producer in nodes:
            if node is None:
                continue
            if node.op_type in _CHANNELS_FIRST and (is_producer or node.input[0] == name):
                return "NHWC" if flipped else "NCHW"
            if node.op_type in ("LayerNormalization", "MatMul") and (is_producer or node.input[0] == name):
                return "NCHW" if flipped else "NHWC"
            turns = node.op_type == "Transpose" and list(attributes(node).get("perm", [])) in (_TO_NHWC, _TO_NCHW)
            if not turns and node.op_type not in _KEEP_LAYOUT:
                continue
            for neighbour in (*node.output, *node.input):
                shape = graph.shape(neighbour)
                if neighbour in visited or shape is None or len(shape) != 4 or graph.is_constant(neighbour):
                    continue
                visited.add(neighbour)
                queue.append((neighbour, flipped if neighbour in _side(node, name) else flipped ^ turns))
    return "NCHW"


def _side(node: onnx.NodeProto, name: str) -> Sequence[str]:
    """The values on the same side of a node as `name`."""
    return list(node.input) if name in node.input else list(node.output)


def has_tokens(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether nodes work on tokens: a Softmax of rank 3 to 5, or an Add of rank 3."""
    rank = {"Softmax": (3, 4, 5), "Add": (3,)}
    return any(len(graph.shape(node.output[0]) or ()) in rank.get(node.op_type, ()) for node in nodes)
