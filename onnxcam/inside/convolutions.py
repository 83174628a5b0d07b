"""The convolution of a layer, and its weights as floats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxcam import runtime
from onnxcam.errors import LayerError, listing, nearest
from onnxcam.graph import edit
from onnxcam.graph.load import serialize
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.view import Graph, attributes

CONVOLUTIONS = ("Conv", "ConvTranspose")
_STEPS = having(Trait.ENDS_LAYER | Trait.NORMALIZES) | {"Dropout", "Pad", "QuantizeLinear", "Reshape", "Transpose"}
_BEFORE = having(Trait.ELEMENTWISE) | {"Pad", "Transpose", "BatchNormalization"}


def convolutions(graph: Graph) -> list[onnx.NodeProto]:
    """The two-dimensional convolutions with constant weights, in graph order."""
    return [node for node in graph.nodes if _has_filters(graph, node)]


def convolution_of(graph: Graph, value: str, layer: str) -> onnx.NodeProto:
    """The convolution of a layer: that of its own value, or the last one before it with only the steps of one layer
    (normalisation, activation, residual sum) in between.

    Raises:
        LayerError: there is none; the message names layers that have one.
    """
    queue, visited = [value], {value}
    others: list[str] = []
    other_rank: tuple[object, ...] | None = None
    while queue:
        name = max(queue, key=lambda one: graph.position.get(one, -1))
        queue.remove(name)
        node = graph.producer.get(name)
        if node is None:
            continue
        if _has_filters(graph, node):
            return node
        if node.op_type not in _STEPS:
            others.append(f"{node.op_type} {node.name!r}")
            shape = graph.shape(node.input[1]) if node.op_type in CONVOLUTIONS else None
            other_rank = shape if other_rank is None and shape is not None and len(shape) != 4 else other_rank
            continue
        for source in node.input:
            if source and source not in visited and not graph.is_constant(source):
                visited.add(source)
                queue.append(source)
    near = nearest(layer, [str(node.output[0]) for node in convolutions(graph)])
    have = f"layers that have are {listing(near)}" if near else "no layer of this model has any"
    if other_rank is not None:
        raise LayerError(
            f"layer {layer!r} has filters of {len(other_rank) - 2} axes, {describe(other_rank)}; only those of height "
            f"and width can be drawn; {have}"
        )
    what = f"it is computed by {others[0]}" if others else "no convolution computes it"
    raise LayerError(f"layer {layer!r} has no filters: {what}; {have}")


def _has_filters(graph: Graph, node: onnx.NodeProto) -> bool:
    if node.op_type not in CONVOLUTIONS or not graph.is_constant(node.input[1]):
        return False
    shape = graph.shape(node.input[1])
    return shape is not None and len(shape) == 4


def reads_colors(graph: Graph, node: onnx.NodeProto, picture: str) -> bool:
    """Whether a convolution reads the three colours of the picture, changed element by element at most."""
    shape = graph.shape(node.input[1]) or ()
    if node.op_type != "Conv" or shape[1] != 3 or int(attributes(node).get("group", 1)) != 1:
        return False
    name = node.input[0]
    while name != picture:
        before = graph.producer.get(name)
        if before is None or before.op_type not in _BEFORE:
            return False
        varying = [source for source in before.input if source and not graph.is_constant(source)]
        if len(varying) != 1:
            return False
        name = varying[0]
    return True


def weights_of(graph: Graph, node: onnx.NodeProto) -> np.ndarray:
    """The weights of a convolution, float32 `[O, I / group, kh, kw]`: dequantised, and those of a transposed one
    turned to the same order.
    """
    weights = np.asarray(constant(graph, node.input[1]), np.float32)
    if node.op_type == "Conv":
        return weights
    group = int(attributes(node).get("group", 1))
    inputs, outputs = weights.shape[:2]
    parts = weights.reshape(group, inputs // group, outputs, *weights.shape[2:])
    return parts.transpose(0, 2, 1, 3, 4).reshape(group * outputs, inputs // group, *weights.shape[2:])


def constant(graph: Graph, value: str) -> np.ndarray:
    """A value that depends on constants alone, computed where it is not stored: dequantised, transposed, scaled."""
    array = graph.constant(value)
    if array is not None:
        return array
    kind, shape = graph.dtype(value), graph.shape(value)
    model = edit.extract(graph, [], [edit.info(value, kind, shape)])
    session = runtime.open_session(serialize(model), ["CPUExecutionProvider"], runtime.options.serving(1))
    return np.asarray(runtime.run(session, [value], {})[value])


def names(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """The values that convolutions compute."""
    return [str(node.output[0]) for node in nodes]
