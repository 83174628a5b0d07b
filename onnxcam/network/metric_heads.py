"""Heads that compare vectors: distances, of which the lowest is the nearest class, and cosines without a scale."""

from __future__ import annotations

import numpy as np
import onnx

from onnxcam.graph.constant_folding import ConstantFolder
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, attributes

_MOVES = having(Trait.PASSES | Trait.RESHAPES) | {"Transpose", "Cast"}
# steps that keep the order of numbers that are not negative, taken with constants that are not either
_RISES = _MOVES | {"Sqrt", "Clip", "Max", "Relu", "Mul", "Div", "Add", "Pow"}
_LENGTHS = frozenset({"ReduceL1", "ReduceL2", "ReduceSumSquare"})
_LONGEST, _STEPS = 1.001, 12  # of a vector of length 1; nodes that are looked through


def doubts(graph: Graph, value: str) -> tuple[str, ...]:
    """What is doubtful about the scores of classes `[N, K]` that no Softmax follows, as sentences."""
    if _is_distance(graph, value):
        return (
            f"the scores {value!r} are distances, of which the lowest is usually the nearest class, and the highest is "
            "taken for the best here: negate them in the file",
        )
    if _is_cosine(graph, value):
        return (
            f"the scores {value!r} are cosines, from -1 to 1, so that the probabilities shown, their softmax, are "
            "nearly even whatever the picture: multiply them in the file by the scale that the model was trained with",
        )
    return ()


def _is_distance(graph: Graph, value: str) -> bool:
    """Whether numbers rise with the length of a vector."""
    node, rooted = graph.producer.get(value), False  # the root of a sum that a product with a matrix may compute
    for _ in range(_STEPS):
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        rooted = rooted or node.op_type == "Sqrt"
        if node.op_type in _LENGTHS:
            return True
        if node.op_type in ("ReduceSum", "ReduceMean"):
            return _is_magnitude(graph, graph.producer.get(node.input[0]))
        varying = [name for name in node.input if name and not graph.is_constant(name)]
        if node.op_type not in _RISES or len(varying) != 1 or (node.op_type == "Div" and node.input[0] != varying[0]):
            return rooted
        if any(_is_negative(graph, name) for name in node.input if name not in ("", varying[0])):
            return False
        node = graph.producer.get(varying[0])
    return False


def _is_magnitude(graph: Graph, node: onnx.NodeProto | None) -> bool:
    """Whether a node squares numbers, or takes their absolute value."""
    if node is None:
        return False
    if node.op_type == "Pow":
        exponent = graph.constant(node.input[1])
        return exponent is not None and np.size(exponent) == 1 and float(np.ravel(exponent)[0]) == 2
    return node.op_type == "Abs" or (node.op_type == "Mul" and node.input[0] == node.input[1])


def _is_negative(graph: Graph, name: str) -> bool:
    array = graph.constant(name)
    return array is None or (array.dtype.kind == "f" and bool((array < 0).any()))


def _is_cosine(graph: Graph, value: str) -> bool:
    """Whether numbers are products of vectors of length 1 with constant ones that are not longer."""
    node = graph.producer.get(value)
    while node is not None and node.op_type in _MOVES:
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    attrs = attributes(node)
    biased = len(node.input) > 2 and bool(node.input[2])
    if biased or float(attrs.get("alpha", 1.0)) != 1 or not _is_normalised(graph, node.input[0]):
        return False
    weight = ConstantFolder(graph).value(node.input[1])
    if weight is None or weight.ndim != 2:
        return False
    lengths = np.linalg.norm(weight.astype(np.float64), axis=1 if attrs.get("transB", 0) else 0)
    return bool((lengths <= _LONGEST).all())


def _is_normalised(graph: Graph, value: str) -> bool:
    """Whether a vector was divided by its length."""
    node = graph.producer.get(value)
    while node is not None and node.op_type in _MOVES:
        node = graph.producer.get(node.input[0])
    if node is None:
        return False
    if node.op_type == "LpNormalization":
        return int(attributes(node).get("p", 2)) == 2
    if node.op_type not in ("Div", "Mul"):
        return False
    queue = [name for name in node.input if not graph.is_constant(name)]
    for _ in range(_STEPS):
        before = graph.producer.get(queue.pop()) if queue else None
        if before is None:
            continue
        if before.op_type == "ReduceL2":
            return True
        if before.op_type in ("ReduceSum", "ReduceSumSquare"):
            return before.op_type == "ReduceSumSquare" or _is_magnitude(graph, graph.producer.get(before.input[0]))
        if before.op_type in _RISES | {"Expand", "Reciprocal"}:
            queue += [name for name in before.input if name and not graph.is_constant(name)]
    return False
