"""VJP rules of reductions. Each is written in a form of Y and dY that broadcasts to X's shape."""

from __future__ import annotations

from onnxcam.autodiff.registry import Cotangents, Node, no_gradient, vjp
from onnxcam.graph.builder import Builder

no_gradient("ArgMax", "ArgMin")


@vjp("ReduceSum")
def reduce_sum(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY."""
    if _is_identity(node):
        return [dy]
    return [op.Expand(_with_axes(op, node, dy), op.shape(node.inputs[0]))]


@vjp("ReduceMean")
def reduce_mean(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / n: divided before it is spread, so that global pooling costs one copy."""
    if _is_identity(node):
        return [dy]
    x = node.inputs[0]
    axes = _axes(node)
    if axes is None:
        share = _with_axes(op, node, op.Div(dy, op.Div(op.cast(op.Size(x)), op.cast(op.Size(node.output)))))
    else:
        share = _with_axes(op, node, op.divide(dy, x, axes))
    if axes is None or node.shape(node.output) == ():
        return [op.Expand(share, op.shape(x))]
    return [op.spread(share, x, [axis % node.rank(x) for axis in axes])]


@vjp("ReduceMax", "ReduceMin")
def reduce_extremum(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where X = Y, shared equally among the elements that tie."""
    if _is_identity(node):
        return [dy]
    hits = op.cast(op.Equal(node.inputs[0], _with_axes(op, node, node.output)))
    ties = op.ReduceSum(hits, node.input(1), keepdims=1)
    dy = _with_axes(op, node, dy)
    return [op.Mul(hits, op.Div(dy, ties))]


@vjp("ReduceL1")
def reduce_l1(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = sign(X) dY."""
    return [op.Mul(op.Sign(node.inputs[0]), _reduced(op, node, dy))]


@vjp("ReduceL2")
def reduce_l2(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = X / Y dY, 0 where Y = 0."""
    y = node.output
    norm = op.Add(y, op.cast(op.Equal(y, 0.0)))
    return [op.Mul(node.inputs[0], _reduced(op, node, op.Div(dy, norm)))]


@vjp("ReduceSumSquare")
def reduce_sum_square(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = 2 X dY."""
    return [op.Mul(node.inputs[0], _reduced(op, node, op.Mul(dy, 2.0)))]


@vjp("ReduceLogSum")
def reduce_log_sum(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / exp(Y)."""
    return [op.Expand(_reduced(op, node, op.Div(dy, op.Exp(node.output))), op.shape(node.inputs[0]))]


@vjp("ReduceLogSumExp")
def reduce_log_sum_exp(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = exp(X - Y) dY."""
    weights = op.Exp(op.Sub(node.inputs[0], _reduced(op, node, node.output)))
    return [op.Mul(weights, _with_axes(op, node, dy))]


@vjp("ReduceProd")
def reduce_prod(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the product of the others times dY, also where some X are 0."""
    if _is_identity(node):
        return [dy]
    x, axes = node.inputs[0], node.input(1)
    zero = op.cast(op.Equal(x, 0.0))
    others = op.Add(x, zero)  # zeros count as ones
    product = op.ReduceProd(others, axes, keepdims=1)
    # with no zero every element has a gradient; with one, only that one; with more, none
    alone = op.Equal(zero, op.ReduceSum(zero, axes, keepdims=1))
    return [op.mask(op.Div(op.Mul(product, _with_axes(op, node, dy)), others), alone)]


def _axes(node: Node) -> list[int] | None:
    """The reduced axes, None if they are only known at run time."""
    rank = node.rank(node.inputs[0])
    if not node.input(1):
        return list(range(rank))
    axes = node.constant(1)
    return None if axes is None else [int(axis) for axis in axes] or list(range(rank))


def _is_identity(node: Node) -> bool:
    """Whether nothing is reduced: no axes, and noop_with_empty_axes set."""
    if not node.attr("noop_with_empty_axes", 0):
        return False
    axes = node.constant(1)
    if node.input(1) and axes is None:
        raise node.refuse("whether it reduces anything is only known at run time (noop_with_empty_axes)")
    return axes is None or axes.size == 0


def _reduced(op: Builder, node: Node, value: str) -> str:
    """`_with_axes` for operators that do more than reduce: runtimes disagree on what they do without axes."""
    if _is_identity(node):
        raise node.refuse("it has no axes and noop_with_empty_axes is set")
    return _with_axes(op, node, value)


def _with_axes(op: Builder, node: Node, value: str) -> str:
    """A value of Y's shape with the reduced axes back as ones; a scalar broadcasts as it is."""
    if node.attr("keepdims", 1) or node.shape(node.output) == ():
        return value
    axes = _axes(node)
    return op.Unsqueeze(value, node.inputs[1] if axes is None else axes)
