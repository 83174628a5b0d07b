"""The additive constants of a network: biases, what a normalisation adds, constants added by themselves.

A network that is linear between its kinks, as one of convolutions, ReLUs and poolings is, equals the sum of its input
and of all these, each times the gradient it gets (https://arxiv.org/abs/1905.00780, proposition 1).
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
    """One of them.

    Attributes:
        value: the value it is part of, rank 4.
        array: what is added, in the value's layout; broadcasts to it.
        layout: `NCHW` or `NHWC`.
    """

    value: str
    array: np.ndarray
    layout: str


def biases(graph: Graph, picture: str, scores: str) -> list[Bias]:
    """Those between the picture and the scores that belong to places of the picture, in graph order."""
    between = graph.downstream([picture])
    needed, _ = graph.upstream([scores], stop=[picture])
    found = []
    for node in needed:
        value = node.output[0] if node.output else ""
        if value not in between or len(graph.shape(value) or ()) != 4:
            continue
        array = _added(graph, node)
        if array is not None and array.any():
            layout = "NCHW" if node.op_type in _CHANNELS_FIRST else layout_of(graph, value)
            found.append(Bias(value, array, layout))
    return found


_CHANNELS_FIRST, _CONVOLUTIONS = having(Trait.CHANNELS_FIRST), having(Trait.CONVOLVES)


def _added(graph: Graph, node: onnx.NodeProto) -> np.ndarray | None:
    """What a node adds to a linear function of its data."""
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
