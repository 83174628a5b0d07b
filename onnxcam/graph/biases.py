"""The biases of a network: those of convolutions, the shifts of BatchNormalization, constants in an Add or Sub.

The output of a piecewise linear network (convolutions, ReLUs, poolings) equals the sum of its input and of all biases,
each times its gradient (https://arxiv.org/abs/1905.00780, proposition 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from onnxcam.graph.layout import layout_of
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, attributes


@dataclass(frozen=True)
class Bias:
    """One bias.

    Attributes:
        value: the value that contains it, of rank 4.
        array: the constant, in the value's layout; broadcasts to the value.
        layout: `NCHW` or `NHWC`.
    """

    value: str
    array: np.ndarray
    layout: str


def biases(graph: Graph, picture: str, scores: str) -> list[Bias]:
    """Find the biases of spatial values between the picture and the scores, in graph order."""
    downstream = graph.downstream([picture])
    needed, _ = graph.upstream([scores], stop=[picture])
    additive = []
    for node in needed:
        value = node.output[0] if node.output else ""
        if value not in downstream or len(graph.shape(value) or ()) != 4:
            continue
        array = _bias(graph, node)
        if array is not None and array.any():
            layout = "NCHW" if node.op_type in _CHANNELS_FIRST else layout_of(graph, value)
            additive.append(Bias(value, array, layout))
    return additive


_CHANNELS_FIRST, _CONVOLUTIONS = having(Trait.CHANNELS_FIRST), having(Trait.CONVOLVES)


def _bias(graph: Graph, node: onnx.NodeProto) -> np.ndarray | None:
    """The constant that a node adds to a linear function of its input; None if it adds none."""
    if node.op_type in _CONVOLUTIONS:
        bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return None if bias is None else bias.reshape(1, -1, 1, 1)
    if node.op_type == "BatchNormalization":
        scale, bias, mean, variance = (graph.constant(name) for name in node.input[1:5])
        if scale is None or bias is None or mean is None or variance is None:
            return None
        factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        return np.asarray(bias - mean * factor, bias.dtype).reshape(1, -1, 1, 1)
    if node.op_type in ("Add", "Sub"):
        left, right = (graph.constant(name) for name in node.input)
        if (left is None) == (right is None):
            return None
        if right is None:
            return left
        return np.negative(right) if node.op_type == "Sub" else right
    return None
