"""A normalisation of the picture inside the graph, which tells the range of values that the input should have."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, attributes

_PASSING = having(Trait.PASSES)


def normalization(graph: Graph, picture: str, channels_last: bool) -> dict[str, list[float]] | None:
    """Find the `(x - mean) / std` with which the graph begins, one number or one per channel each; None without one.

    Keras models with a Rescaling or Normalization layer have one, and models that begin with a BatchNormalization.

    Arguments:
        graph: a graph from `onnxcam.graph.normalize`.
        picture: its input.
        channels_last: whether the input is `[N, H, W, C]`.
    """
    # invariant: value = scale * picture + shift
    scale, shift = np.ones(1), np.zeros(1)
    value, affine = picture, False
    axis = 3 if channels_last else 1
    while True:
        readers = graph.consumers.get(value, [])
        if len(readers) != 1 or readers[0].domain not in ("", "ai.onnx") or value in {o.name for o in graph.outputs}:
            break
        node = readers[0]
        if node.op_type == "Transpose":
            axis = list(attributes(node).get("perm", [3, 2, 1, 0])).index(axis)
        elif node.op_type not in _PASSING:
            step = _affine(graph, node, value, axis)
            if step is None:
                break  # another operator, or the channel axis is unknown
            scale, shift, affine = scale * step[0], shift * step[0] + step[1], True
            if node.op_type == "BatchNormalization":
                break  # whatever follows, the BatchNormalization's scale included, says nothing about the input
        value = node.output[0]
    if not affine or not np.all(np.isfinite(scale)) or np.any(scale == 0):
        return None
    mean, std = np.broadcast_arrays(-shift / scale, 1 / np.abs(scale))
    return {"mean": [float(number) for number in mean], "std": [float(number) for number in std]}


def _affine(graph: Graph, node: Any, value: str, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a node as `a * value + b`: `a` and `b`, `[1]` or one per channel; None if it is not of that form."""
    if node.op_type == "BatchNormalization":
        statistics = [graph.constant(name) for name in node.input[3:5]]
        if node.input[0] != value or axis != 1 or any(array is None for array in statistics):
            return None
        mean, variance = (np.asarray(array, np.float64) for array in statistics)
        a = 1 / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        return a, -mean * a
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    first = node.input[0] == value
    constant = graph.constant(node.input[1] if first else node.input[0])
    if constant is None or node.input[0] == node.input[1]:
        return None
    number = _per_channel(np.asarray(constant, np.float64), axis)
    if number is None:
        return None
    array, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Add":
        return array, number
    if node.op_type == "Sub":
        return (array, -number) if first else (-array, number)
    if node.op_type == "Mul":
        return number, zero
    return (1 / number, zero) if first and np.all(number != 0) else None


def _per_channel(constant: np.ndarray, axis: int) -> np.ndarray | None:
    """Return a constant that is uniform but for the channels as `[1]` or `[C]`; None for any other."""
    if constant.size == 1:
        return constant.reshape(1)
    shape = (1,) * (4 - constant.ndim) + constant.shape
    return constant.reshape(-1) if constant.ndim <= 4 and shape[axis] == constant.size else None
