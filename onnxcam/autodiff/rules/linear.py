"""VJP rules of matrix products and of softmax."""

from __future__ import annotations

from collections import Counter

from onnxcam.autodiff.registry import Cotangents, Node, vjp
from onnxcam.graph.builder import Builder


@vjp("Gemm")
def gemm(op: Builder, node: Node, dy: str) -> Cotangents:
    """With Y = alpha A' B' + beta C: dA' = alpha dY B'ᵀ, dB' = alpha A'ᵀ dY, dC = beta dY.

    Transposition is left to Gemm's flags, so that no weight is ever copied.
    """
    a, b, alpha = node.inputs[0], node.inputs[1], node.attr("alpha", 1.0)
    trans_a, trans_b = node.attr("transA", 0), node.attr("transB", 0)
    da = db = dc = None
    if node.wants(0):
        if trans_a:
            da = op.Gemm(b, dy, alpha=alpha, transA=trans_b, transB=1)
        else:
            da = op.Gemm(dy, b, alpha=alpha, transB=1 - trans_b)
    if node.wants(1):
        if trans_b:
            db = op.Gemm(dy, a, alpha=alpha, transA=1, transB=trans_a)
        else:
            db = op.Gemm(a, dy, alpha=alpha, transA=1 - trans_a)
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
        da = op.MatMul(dy, op.Unsqueeze(b, [0]) if rank_b == 1 else _transposed(op, b, rank_b))
        if rank_a == 1:
            da = op.ReduceSum(da, list(range(rank - 1)), keepdims=0)
        elif rank_b > 1:
            da = op.sum_to(da, node.output, a, keep=2)
    if node.wants(1):
        db = op.MatMul(op.Unsqueeze(a, [1]) if rank_a == 1 else _transposed(op, a, rank_a), dy)
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
        da = op.Gemm(rows, b, transB=1)
        da = op.reshape_like(da, a) if batched else da
    if node.wants(1):
        db = op.Gemm(op.Flatten(a, axis=-1) if batched else a, rows, transA=1)
    return [da, db]


def _transposed(op: Builder, matrix: str, rank: int) -> str:
    """The last two axes swapped; the runtime fuses this into its MatMul."""
    return op.Transpose(matrix, perm=[*range(rank - 2), rank - 1, rank - 2])


@vjp("Einsum")
def einsum(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the einsum of dY with the other operands onto X's subscripts, repeated along those found nowhere else."""
    terms, result = _subscripts(node)
    found: list[str | None] = []
    for index, (term, x) in enumerate(zip(terms, node.inputs, strict=True)):
        if not node.wants(index):
            found.append(None)
            continue
        others = [(t, v) for k, (t, v) in enumerate(zip(terms, node.inputs, strict=True)) if k != index]
        reached = set(result).union(*(t for t, _ in others))
        kept = "".join(letter for letter in term if letter in reached)
        equation = ",".join([result, *(t for t, _ in others)]) + "->" + kept
        dx = op.Einsum(dy, *(v for _, v in others), equation=equation)
        lonely = [axis for axis, letter in enumerate(term) if letter not in reached]
        found.append(op.Expand(op.Unsqueeze(dx, lonely), op.shape(x)) if lonely else dx)
    return found


def _subscripts(node: Node) -> tuple[list[str], str]:
    """The subscripts of each operand and of the result."""
    equation = "".join(str(node.attr("equation")).split())
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if "." in equation or any(len(set(term)) < len(term) for term in (*terms, result)):
        raise node.refuse(f"equation {equation!r} has an ellipsis or a subscript repeated in one operand")
    if not arrow:
        counts = Counter(left.replace(",", ""))
        result = "".join(sorted(letter for letter, count in counts.items() if count == 1))
    sizes: dict[str, int] = {}
    for term, x in zip(terms, node.inputs, strict=True):
        for letter, dim in zip(term, node.shape(x) or (), strict=False):
            if isinstance(dim, int) and sizes.setdefault(letter, dim) != dim:
                raise node.refuse(f"equation {equation!r} broadcasts subscript {letter!r}")
    return terms, result


@vjp("Softmax")
def softmax(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = Y (dY - sum(Y dY))."""
    y, axis = node.output, node.attr("axis", -1)
    weighted = op.Mul(dy, y)
    return [op.Sub(weighted, op.Mul(y, op.ReduceSum(weighted, [axis], keepdims=1)))]


@vjp("LogSoftmax")
def log_softmax(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY - exp(Y) sum(dY)."""
    return [op.Sub(dy, op.Mul(op.Exp(node.output), op.ReduceSum(dy, [node.attr("axis", -1)], keepdims=1)))]
