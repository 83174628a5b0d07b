"""Maxima as PyTorch differentiates them: some of its operators give the gradient of a tie to its first element.

`torch.amax` shares it equally, as the rule of ReduceMax does; AdaptiveMaxPool2d and `torch.max(x, dim)` do not, and
become the same ReduceMax. The exporter's notes on a node tell which it was.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcam.graph.edit import replace_nodes
from onnxcam.graph.view import Graph, attributes

_FIRST = re.compile(r"adaptive_?max_?pool|aten\.(max|min)\.dim\b", re.IGNORECASE)
_NOTES = ("namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.fx_node", "pkg.torch.onnx.stack_trace")
_EXTREMA = {"ReduceMax": "ArgMax", "ReduceMin": "ArgMin"}


def first_of_ties(model: onnx.ModelProto) -> None:
    """Write extrema whose first element counts as a selection of that element, in place: the values stay the same.

    Only nodes whose notes say so are rewritten, and only over one axis, or over all axes behind the channels.
    """
    if not any(node.op_type in _EXTREMA and node.metadata_props for node in model.graph.node):
        return
    graph = Graph(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        selected = _selection(graph, node) if node.op_type in _EXTREMA and _is_first(node) else None
        nodes.extend(selected or [node])
    replace_nodes(model, nodes)


def _is_first(node: onnx.NodeProto) -> bool:
    return any(note.key in _NOTES and _FIRST.search(note.value) for note in node.metadata_props)


def _selection(graph: Graph, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The nodes that select the first of the largest (or smallest) elements; None where the axes do not allow it."""
    attrs = attributes(node)
    x, y, shape = node.input[0], node.output[0], graph.shape(node.input[0])
    listed = graph.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else attrs.get("axes")
    if listed is None or shape is None or not len(listed):
        return None
    axes = sorted(int(axis) % len(shape) for axis in listed)
    if len(axes) == 1:
        places = f"{y}/first"
        argument = helper.make_node(_EXTREMA[node.op_type], [x], [places], axis=axes[0], keepdims=1)
        value, ending = _squeezed(graph, y, axes, attrs)
        return [argument, helper.make_node("GatherElements", [x, places], [value], axis=axes[0]), *ending]
    if axes != list(range(2, len(shape))) or node.op_type != "ReduceMax":
        return None
    value, ending = _squeezed(graph, y, axes, attrs)
    return [helper.make_node("GlobalMaxPool", [x], [value], name=node.name), *ending]


def _squeezed(graph: Graph, y: str, axes: list[int], attrs: dict[str, int]) -> tuple[str, list[onnx.NodeProto]]:
    """The name under which to write a value that keeps its axes, and the nodes that bring it to the original form."""
    if attrs.get("keepdims", 1):
        return y, []
    name = f"{y}/axes"
    graph.model.graph.initializer.append(numpy_helper.from_array(np.asarray(axes), name))
    return f"{y}/reduced", [helper.make_node("Squeeze", [f"{y}/reduced", name], [y])]
