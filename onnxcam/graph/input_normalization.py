"""What a graph does to the picture first: a normalisation of its own tells which range its input should have."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, attributes

_PASSING = having(Trait.PASSES)


def normalization(graph: Graph, picture: str, channels_last: bool) -> dict[str, list[float]] | None:
    """The `(x - mean) / std` with which the graph begins, one number or one per channel each; None without one.

    Found in Keras models that scale by themselves (Rescaling, Normalization), and where a BatchNormalization is first.

    Arguments:
        graph: a normalised model.
        picture: its input.
        channels_last: whether that is `[N, H, W, C]`.
    """
    # the value so far is scale * x + shift
    scale, shift = np.ones(1), np.zeros(1)
    value, found = picture, False
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
                break  # something else, or where the channels are is no longer known
            scale, shift, found = scale * step[0], shift * step[0] + step[1], True
            if node.op_type == "BatchNormalization":
                break  # what follows, its own gain too, no longer tells of the input
        value = node.output[0]
    if not found or not np.all(np.isfinite(scale)) or np.any(scale == 0):
        return None
    mean, std = np.broadcast_arrays(-shift / scale, 1 / np.abs(scale))
    return {"mean": [float(number) for number in mean], "std": [float(number) for number in std]}


def _affine(graph: Graph, node: Any, value: str, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """`a` and `b` of the node as `a * value + b`, `[1]` or one per channel; None where it is something else."""
    if node.op_type == "BatchNormalization":
        held = [graph.constant(name) for name in node.input[3:5]]
        if node.input[0] != value or axis != 1 or any(one is None for one in held):
            return None
        mean, variance = (np.asarray(one, np.float64) for one in held)
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
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Add":
        return one, number
    if node.op_type == "Sub":
        return (one, -number) if first else (-one, number)
    if node.op_type == "Mul":
        return number, zero
    return (1 / number, zero) if first and np.all(number != 0) else None


def _per_channel(constant: np.ndarray, axis: int) -> np.ndarray | None:
    """A constant that broadcasts over all but the channels, as `[1]` or `[C]`."""
    if constant.size == 1:
        return constant.reshape(1)
    shape = (1,) * (4 - constant.ndim) + constant.shape
    return constant.reshape(-1) if constant.ndim <= 4 and shape[axis] == constant.size else None
