"""A network whose operators between quantized layers compute in floats.

QOperator files pool, transpose and reshape the integers themselves, which mean nothing without the scale that is
applied behind. These operators choose or move elements, so that the floats come out the same where the integers are
dequantized first.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx

from onnxcam.graph import edit
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import FLOATS, Graph, copy_of, uses
from onnxcam.network.network import Network

_CHOOSING = (having(Trait.MOVES) - having(Trait.JOINTLY_AFFINE)) | {"MaxPool"}  # elements, whatever they are
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def in_floats(network: Network) -> Network:
    """The network itself, or a copy whose operators of integers are written as those of floats.

    Its values are the same, but for those integers.
    """
    graph = network.graph
    if not any(node.op_type in _CHOOSING and _whole(graph, node.input[0]) for node in graph.nodes if node.input):
        return network
    result = copy.copy(network)
    result.graph = _rewritten(graph)
    return result


def _rewritten(graph: Graph) -> Graph:
    grids: dict[str, list[str]] = {}  # scale and zero point of an integer value
    floats: dict[str, str] = {}  # what an integer value stands for
    nodes: list[onnx.NodeProto] = []
    infos: list[onnx.ValueInfoProto] = []

    def declare(name: str, value: str) -> str:
        infos.append(edit.info(name, graph.dtype(grids[value][0]), graph.shape(value)))
        floats[value] = name
        return name

    for node in graph.nodes:
        source = node.input[0] if node.input else ""
        if node.op_type == _DEQUANTIZE and source in floats and _one_grid(graph, grids[source], list(node.input[1:])):
            nodes.append(onnx.helper.make_node("Identity", [floats[source]], list(node.output), node.name))
            continue
        nodes.append(node)
        if node.op_type == _QUANTIZE and _single(graph, list(node.input[1:])):
            grids[node.output[0]] = list(node.input[1:])
        elif node.op_type in _CHOOSING and source in grids and not any(name in grids for name in [*uses(node)][1:]):
            if source not in floats:
                name = declare(f"{source}/dequantized", source)
                nodes.append(onnx.helper.make_node(_DEQUANTIZE, [source, *grids[source]], [name], name))
            twin = copy_of(node)
            if node.op_type == "MaxPool":
                del twin.output[1:]  # indices
            grids |= dict.fromkeys((name for name in twin.output if name), grids[source])
            twin.name = node.name or node.output[0]
            twin.input[0] = floats[source]
            for place, value in enumerate(twin.output):
                if value:
                    twin.output[place] = declare(f"{value}/dequantized", value)
            nodes.append(twin)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    edit.replace_nodes(model, nodes)
    model.graph.value_info.extend(infos)
    edit.prune(model)
    result = Graph(model)
    result.source_opset, result.rewrites = graph.source_opset, graph.rewrites
    return result


def _whole(graph: Graph, value: str) -> bool:
    return bool(graph.dtype(value)) and graph.dtype(value) not in FLOATS and not graph.is_constant(value)


def _single(graph: Graph, grid: list[str]) -> bool:
    """Whether a scale and zero point are constants for the whole tensor: axes may be moved."""
    arrays = [graph.constant(name) for name in grid if name]
    return (
        all(array is not None and array.size == 1 for array in arrays)
        and bool(grid)
        and float(np.asarray(arrays[0]).reshape(-1)[0]) > 0
    )


def _one_grid(graph: Graph, a: list[str], b: list[str]) -> bool:
    if not _single(graph, b):
        return False
    first, second = (
        [np.asarray(graph.constant(name)).reshape(-1)[0] if name else 0 for name in [*grid, ""][:2]] for grid in (a, b)
    )
    return bool(first[0] == second[0] and first[1] == second[1])
