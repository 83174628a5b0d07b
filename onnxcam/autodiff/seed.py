"""Where the reverse sweep starts: the cotangent of one class score per row."""

from __future__ import annotations

import numpy as np
import onnx

from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph, attributes
from onnxcam.targets.readout import Readout


def unrounded(graph: Graph, scores: str) -> str:
    """The scores before a quantization that ends the model: the highest score often saturates, and a saturated score
    has no gradient."""
    node = graph.producer.get(scores)
    while node is not None and node.op_type == "DequantizeLinear":
        source = graph.producer.get(node.input[0])
        if source is None or source.op_type != "QuantizeLinear" or not graph.is_float(source.input[0]):
            break
        scores = source.input[0]
        node = graph.producer.get(scores)
    return scores


def score_cotangent(op: Builder, readout: Readout, flat: str, target: str | int) -> tuple[str, str]:
    """The value to sweep back from, and its cotangent, for the score of one class per row.

    Arguments:
        readout: the scores of the model.
        flat: the same as `[N, columns]`.
        target: one class for all rows, or a value, int64 `[N]` or `[1]`, whose negatives mean the row's best class (the
            lowest index on ties).
    """
    start = unrounded(op.graph, readout.value)
    if readout.signed:
        return binary_cotangent(op, start, flat, _classes(op, flat, target, binary=True))
    return class_cotangent(op, start, flat, _classes(op, flat, target, binary=False), readout.size)


def chosen_cotangent(op: Builder, readout: Readout, target: str) -> tuple[str, str]:
    """`score_cotangent` for non-negative classes, one per row: the scores themselves are not needed."""
    start = unrounded(op.graph, readout.value)
    if readout.signed:
        return binary_cotangent(op, start, None, target)
    return class_cotangent(op, start, None, target, readout.size)


def _classes(op: Builder, flat: str, target: str | int, *, binary: bool) -> str:
    """The class of each row, int64 `[N]` or `[1]`."""
    if isinstance(target, int):
        return op.operand([target])
    if binary:
        best = op.Cast(op.Greater(op.Reshape(flat, [-1]), 0.0), to=onnx.TensorProto.INT64)
    else:
        best = op.ArgMax(flat, axis=1, keepdims=0)
    return op.Where(op.Less(target, 0), best, target)


def class_cotangent(op: Builder, scores: str, flat: str | None, target: str, classes: int) -> tuple[str, str]:
    """The value to sweep back from, and its cotangent, for d scores[n, target[n]].

    Where the scores come straight from a linear layer, its gradient for one class is a row of its weights: a Gather of
    one row instead of a product with the whole matrix, which for small networks would cost as much as that layer.

    Arguments:
        scores: the differentiated value, `[N,K]` or `[N,K,1,1]`.
        flat: the same as `[N,K]`; None where `target` has N classes.
        target: class per row, int64 `[N]` or `[1]`.
        classes: K.
    """
    linear = _linear(op.graph, scores)
    if linear is not None:
        features, weights, axis = linear
        rows = op.Gather(weights, target, axis=axis)
        rows = rows if axis == 0 else op.Transpose(rows, perm=[1, 0])
        return features, rows if flat is None else op.Expand(rows, op.Shape(features))
    hot = op.cast(op.Equal(op.Unsqueeze(target, [1]), np.arange(classes, dtype=np.int64)[None]))
    cotangent = hot if flat is None else op.Expand(hot, op.Shape(flat))
    return scores, _shaped(op, cotangent, scores)


def binary_cotangent(op: Builder, scores: str, flat: str | None, target: str) -> tuple[str, str]:
    """As `class_cotangent` for a single logit s: class 1 is explained by +s, class 0 by -s."""
    sign = op.Sub(op.Mul(op.cast(op.Unsqueeze(target, [1])), 2.0), 1.0)
    cotangent = sign if flat is None else op.Expand(sign, op.Shape(flat))
    return scores, _shaped(op, cotangent, scores)


def _shaped(op: Builder, cotangent: str, scores: str) -> str:
    """`[N,K]` in the shape of the scores."""
    return cotangent if len(op.graph.shape(scores) or ()) == 2 else op.reshape_like(cotangent, scores)


def _linear(graph: Graph, scores: str) -> tuple[str, str, int] | None:
    """(input, weights, axis of the classes) of the plain linear layer that computes the scores, None without one."""
    node = graph.producer.get(scores)
    if node is not None and node.op_type == "Add":
        varying = [name for name in node.input if not graph.is_constant(name)]
        if len(varying) != 1 or graph.shape(varying[0]) != graph.shape(scores):
            return None
        node = graph.producer.get(varying[0])
    if node is None or not _plain(graph, node):
        return None
    transposed = node.op_type == "Gemm" and attributes(node).get("transB", 0)
    return node.input[0], node.input[1], 0 if transposed else 1


def _plain(graph: Graph, node: onnx.NodeProto) -> bool:
    """x W (+ constant) with rank-2 x that varies and a constant W."""
    if node.op_type not in ("Gemm", "MatMul") or not graph.is_constant(node.input[1]):
        return False
    attrs = attributes(node)
    if attrs.get("alpha", 1.0) != 1.0 or attrs.get("transA", 0):
        return False
    if len(node.input) > 2 and node.input[2] and not graph.is_constant(node.input[2]):
        return False
    ranks = [graph.shape(name) for name in node.input[:2]]
    return all(shape is not None and len(shape) == 2 for shape in ranks)
