"""VJP rules of matrix products, determinants, rotations and softmax."""

from __future__ import annotations

import string
from collections import Counter

import numpy as np

from onnxcam.autodiff.passes.shared_weights import negated
from onnxcam.autodiff.registry import Cotangents, Node, vjp
from onnxcam.graph.builder import Builder

MATRIX = (-2, -1)


@vjp("Gemm")
def gemm(op: Builder, node: Node, dy: str) -> Cotangents:
    """With Y = alpha A' B' + beta C: dA' = alpha dY B'ᵀ, dB' = alpha A'ᵀ dY, dC = beta dY.

    Transposition is left to Gemm's flags, so that no weight is ever copied.
    """
    a, b, alpha = node.inputs[0], node.inputs[1], node.attr("alpha", 1.0)
    trans_a, trans_b = node.attr("transA", 0), node.attr("transB", 0)
    da = db = dc = None
    if node.wants(0):
        weights, sign = negated(op, b, MATRIX)
        if trans_a:
            da = op.Gemm(weights, dy, alpha=sign * alpha, transA=trans_b, transB=1)
        else:
            da = op.Gemm(dy, weights, alpha=sign * alpha, transB=1 - trans_b)
    if node.wants(1):
        weights, sign = negated(op, a, MATRIX)
        if trans_b:
            db = op.Gemm(dy, weights, alpha=sign * alpha, transA=1, transB=trans_a)
        else:
            db = op.Gemm(weights, dy, alpha=sign * alpha, transA=1 - trans_a)
    if node.wants(2):
        beta = node.attr("beta", 1.0)
        dc = op.sum_to(dy if beta == 1 else op.Mul(dy, beta), node.output, node.inputs[2])
    return [da, db, dc]


@vjp("MatMul")
def matmul(op: Builder, node: Node, dy: str) -> Cotangents:
    """dA = dY Bᵀ, dB = Aᵀ dY, summed over the batch axes that were broadcast."""
    a, b = node.inputs
    rank_a, rank_b = node.rank(a), node.rank(b)
    if rank_b == 2 and rank_a >= 2:
        return _matmul_by_matrix(op, node, dy)
    # a vector is a matrix of one row (A) or of one column (B)
    rank = max(rank_a, rank_b, 2)
    lost = [-2] * (rank_a == 1) + [-1] * (rank_b == 1)
    dy = op.Unsqueeze(dy, lost) if lost else dy
    da = db = None
    if node.wants(0):
        weights, sign = negated(op, b, MATRIX) if rank_b > 1 else (b, 1.0)
        da = op.MatMul(dy, op.Unsqueeze(b, [0]) if rank_b == 1 else _transposed(op, weights, rank_b))
        da = da if sign > 0 else op.Neg(da)
        if rank_a == 1:
            da = op.ReduceSum(da, list(range(rank - 1)), keepdims=0)
        elif rank_b > 1:
            da = op.sum_to(da, node.output, a, keep=2)
    if node.wants(1):
        weights, sign = negated(op, a, MATRIX) if rank_a > 1 else (a, 1.0)
        db = op.MatMul(op.Unsqueeze(a, [1]) if rank_a == 1 else _transposed(op, weights, rank_a), dy)
        db = db if sign > 0 else op.Neg(db)
        if rank_b == 1:
            db = op.ReduceSum(db, [*range(rank - 2), rank - 1], keepdims=0)
        elif rank_a > 1:
            db = op.sum_to(db, node.output, b, keep=2)
    return [da, db]


def _matmul_by_matrix(op: Builder, node: Node, dy: str) -> Cotangents:
    """The same for a matrix B, usually weights: one Gemm over all rows, never slower than a transposed copy of B."""
    a, b = node.inputs
    batched = node.rank(a) > 2
    rows = op.Flatten(dy, axis=-1) if batched else dy
    da = db = None
    if node.wants(0):
        weights, sign = negated(op, b, MATRIX)
        da = op.Gemm(rows, weights, alpha=None if sign > 0 else sign, transB=1)
        da = op.reshape_like(da, a) if batched else da
    if node.wants(1):
        db = op.Gemm(op.Flatten(a, axis=-1) if batched else a, rows, transA=1)
    return [da, db]


def _transposed(op: Builder, matrix: str, rank: int) -> str:
    """The last two axes swapped; the runtime fuses this into its MatMul."""
    return op.Transpose(matrix, perm=[*range(rank - 2), rank - 1, rank - 2])


@vjp("Einsum")
def einsum(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the einsum of dY with the other operands onto X's subscripts, repeated along those that occur nowhere else.

    A subscript that X itself repeats (a diagonal) gets a new letter and an identity matrix that ties the two.
    """
    terms, result = _subscripts(node)
    spare = [letter for letter in string.ascii_letters if all(letter not in term for term in terms)]
    gradients: list[str | None] = []
    for index, (term, x) in enumerate(zip(terms, node.inputs, strict=True)):
        if not node.wants(index):
            gradients.append(None)
            continue
        factors, sign = [(result, dy)], 1.0
        for other, (letters, value) in enumerate(zip(terms, node.inputs, strict=True)):
            if other != index:
                weights, factor = negated(op, value, MATRIX)
                factors.append((letters, weights))
                sign *= factor
        apart = ""
        for axis, letter in enumerate(term):
            if letter in apart:
                size = op.size(x, axis)
                factors.append((letter + spare[0], op.EyeLike(op.filled(0.0, op.Concat(size, size, axis=0)))))
                letter = spare.pop(0)
            apart += letter
        reached = set("".join(t for t, _ in factors))
        target = "".join(letter for letter in apart if letter in reached)
        equation = ",".join(t for t, _ in factors) + "->" + target
        dx = op.Einsum(*(v for _, v in factors), equation=equation)
        dx = dx if sign > 0 else op.Neg(dx)
        lonely = [axis for axis, letter in enumerate(apart) if letter not in reached]
        gradients.append(op.Expand(op.Unsqueeze(dx, lonely), op.shape(x)) if lonely else dx)
    return gradients


def _subscripts(node: Node) -> tuple[list[str], str]:
    """The subscripts of each operand and of the result, one letter per axis."""
    equation = "".join(str(node.attr("equation")).split())
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    # the axes an ellipsis stands for are counted from the last
    extra = [
        node.rank(x) - len(term.replace("...", "")) if "..." in term else 0
        for term, x in zip(terms, node.inputs, strict=True)
    ]
    stands = "".join(free[: max(extra)])
    terms = [t.replace("...", stands[len(stands) - n :]) for t, n in zip(terms, extra, strict=True)]
    if arrow:
        result = result.replace("...", stands)
    else:
        counts = Counter("".join(terms))
        result = stands + "".join(sorted(k for k, count in counts.items() if count == 1 and k not in stands))
    sizes: dict[str, int] = {}
    for term, x in zip(terms, node.inputs, strict=True):
        for letter, dim in zip(term, node.shape(x) or (), strict=False):
            if isinstance(dim, int) and sizes.setdefault(letter, dim) != dim:
                raise node.refuse(f"equation {equation!r} broadcasts subscript {letter!r}")
    if len(set(extra) - {0}) > 1 or ("..." in equation and arrow and stands and stands not in result):
        raise node.refuse(f"equation {equation!r} broadcasts or sums over its ellipsis")
    return terms, result


@vjp("Det")
def det(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX[i, j] = (-1)^(i+j) · the determinant of X without row i and column j · dY; also where X has no inverse."""
    x, rank = node.inputs[0], node.rank(node.inputs[0])
    size = op.dim(x, -1) or op.dim(x, -2)
    if size is None:
        raise node.refuse("the size of its matrices is unknown")
    dy = op.Unsqueeze(dy, [rank - 2, rank - 1])
    if size == 1:
        return [dy]
    others = np.asarray([[k for k in range(size) if k != left] for left in range(size)])
    minors = op.Gather(op.Gather(x, others, axis=rank - 2), others, axis=rank)  # [.., i, rows, j, columns]
    minors = op.Transpose(minors, perm=[*range(rank - 2), rank - 2, rank, rank - 1, rank + 1])
    signs = (-1.0) ** np.add.outer(np.arange(size), np.arange(size))
    return [op.Mul(op.Mul(op.Det(minors), op.cast(op.constant(signs))), dy)]


@vjp("RotaryEmbedding", since=23)
def rotary_embedding(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY turned back: the same with the sines negated."""
    if node.wants(1) or node.wants(2):
        raise node.refuse("a gradient is needed for its cosines or sines")
    _x, cosines, sines = node.inputs[:3]
    attrs = {name: node.attr(name) for name in ("interleaved", "num_heads", "rotary_embedding_dim")}
    return [op.RotaryEmbedding(dy, cosines, op.Neg(sines), node.input(3), **attrs)]


@vjp("Softmax")
def softmax(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = Y (dY - sum(Y dY)), 0 in rows of -inf alone, whose NaN is replaced behind it."""
    y, axis = node.output, node.attr("axis", -1)
    if _replaced(node, y):
        y = op.Where(op.IsNaN(y), 0.0, y)
    weighted = op.Mul(dy, y)
    return [op.Sub(weighted, op.Mul(y, op.ReduceSum(weighted, [axis], keepdims=1)))]


def _replaced(node: Node, value: str) -> bool:
    """Whether a Where takes the value or something else, as attention does for a query whose keys are all masked."""
    readers = node.graph.consumers.get(value, [])
    return any(
        reader.op_type == "Where" or (reader.op_type in ("Cast", "Identity") and _replaced(node, reader.output[0]))
        for reader in readers
    )


@vjp("LogSoftmax")
def log_softmax(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY - exp(Y) sum(dY)."""
    return [op.Sub(dy, op.Mul(op.Exp(node.output), op.ReduceSum(dy, [node.attr("axis", -1)], keepdims=1)))]
