"""VJP rules of element-wise operators.

Where a rule can be written in the node's output Y it is: what the runtime fuses in the forward pass then stays whole.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from onnxcam.autodiff.passes.blocked_layout import above, between, complement
from onnxcam.autodiff.registry import Cotangents, Node, no_gradient, vjp
from onnxcam.graph.builder import Builder

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875  # the ONNX specification's defaults

no_gradient("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or", "Xor", "IsNaN", "IsInf")
no_gradient("Floor", "Ceil", "Round", "Sign", "Hardmax", "Bernoulli")  # 0 almost everywhere


@vjp("Relu")
def relu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where Y > 0."""
    return [op.Mul(dy, above(op, node.output, 0.0))]


@vjp("LeakyRelu")
def leaky_relu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where X > 0, else alpha dY."""
    alpha = node.attr("alpha", 0.01)
    positive = op.cast(op.Greater(node.output if alpha >= 0 else node.inputs[0], 0.0))
    if 0 <= alpha <= 1:
        return [op.Mul(dy, op.Max(positive, alpha))]
    return [op.Mul(dy, op.Add(op.Mul(positive, 1.0 - alpha), alpha))]


@vjp("PRelu")
def prelu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where X > 0, else slope dY; dslope = min(X, 0) dY."""
    x, slope = node.inputs
    dx = dslope = None
    if node.wants(0):
        passed = op.mask(dy, op.Greater(x, 0.0))
        dx = op.Add(passed, op.Mul(op.Sub(dy, passed), slope))
    if node.wants(1):
        dslope = op.sum_to(op.Mul(dy, op.Min(x, 0.0)), node.output, slope)
    return [dx, dslope]


@vjp("ThresholdedRelu")
def thresholded_relu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where X > alpha."""
    return [op.mask(dy, op.Greater(node.inputs[0], node.attr("alpha", 1.0)))]


@vjp("Elu")
def elu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where X > 0, else (Y + alpha) dY."""
    return [op.Mul(dy, _exponential_slope(op, node, node.attr("alpha", 1.0), 1.0))]


@vjp("Selu")
def selu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = gamma dY where X > 0, else (Y + gamma alpha) dY."""
    alpha, gamma = node.attr("alpha", SELU_ALPHA), node.attr("gamma", SELU_GAMMA)
    return [op.Mul(dy, _exponential_slope(op, node, alpha * gamma, gamma))]


def _exponential_slope(op: Builder, node: Node, scale: float, right: float) -> str:
    """`right` where X > 0, else Y + scale."""
    y = node.output
    if scale == right == 1.0:
        return op.Add(op.Min(y, 0.0), 1.0)
    return op.Add(op.mask(op.Add(y, scale - right), op.LessOrEqual(node.inputs[0], 0.0)), right)


@vjp("Celu")
def celu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = (min(Y, 0) / alpha + 1) dY."""
    return [op.Mul(dy, op.Add(op.Div(op.Min(node.output, 0.0), node.attr("alpha", 1.0)), 1.0))]


@vjp("Sigmoid")
def sigmoid(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = Y (1 - Y) dY."""
    y = node.output
    return [op.Mul(dy, op.Mul(y, complement(op, y)))]


@vjp("HardSigmoid")
def hard_sigmoid(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = alpha dY where 0 < Y < 1."""
    y = node.output
    inside = op.And(op.Greater(y, 0.0), op.Less(y, 1.0))
    return [op.Mul(op.mask(dy, inside), node.attr("alpha", 0.2))]


@vjp("HardSwish")
def hard_swish(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = (hardsigmoid(X) + (X / 6 where |X| < 3)) dY."""
    x = node.inputs[0]
    gate = op.HardSigmoid(x, alpha=1 / 6, beta=0.5)
    ramp = op.Mul(op.mask(x, op.Less(op.Abs(x), 3.0)), 1 / 6)
    return [op.Mul(dy, op.Add(gate, ramp))]


@vjp("Gelu")
def gelu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = (Phi(X) + X phi(X)) dY, with Phi the normal distribution; for "tanh" the derivative of its approximation."""
    x = node.inputs[0]
    square = op.Mul(x, x)
    if node.attr("approximate", "none") == "tanh":
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        t = op.Tanh(op.Mul(x, op.Add(op.Mul(square, scale * cubic), scale)))
        inner = op.Mul(x, op.Add(op.Mul(square, 1.5 * scale * cubic), 0.5 * scale))
        slope = op.Add(op.Add(op.Mul(t, 0.5), 0.5), op.Mul(inner, op.Sub(1.0, op.Mul(t, t))))
    else:
        cumulative = op.Add(op.Mul(op.Erf(op.Mul(x, math.sqrt(0.5))), 0.5), 0.5)
        density = op.Mul(op.Exp(op.Mul(square, -0.5)), 1 / math.sqrt(2 * math.pi))
        slope = op.Add(cumulative, op.Mul(x, density))
    return [op.Mul(dy, slope)]


@vjp("Mish")
def mish(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = (t + X s (1 - t²)) dY, with s = sigmoid(X) and t = tanh(softplus(X)) = q / (2 - q), q = s (2 - s)."""
    x = node.inputs[0]
    s = op.Sigmoid(x)
    q = op.Mul(s, op.Sub(2.0, s))
    t = op.Div(q, op.Sub(2.0, q))
    return [op.Mul(dy, op.Add(t, op.Mul(op.Mul(x, s), op.Sub(1.0, op.Mul(t, t)))))]


@vjp("Swish", since=24)
def swish(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = (s + alpha Y (1 - s)) dY with s = sigmoid(alpha X)."""
    alpha = node.attr("alpha", 1.0)
    s = op.Sigmoid(op.Mul(node.inputs[0], alpha) if alpha != 1 else node.inputs[0])
    rest = op.Mul(node.output, op.Sub(1.0, s))
    return [op.Mul(dy, op.Add(s, op.Mul(rest, alpha) if alpha != 1 else rest))]


@vjp("Shrink")
def shrink(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where |X| > lambd."""
    return [op.mask(dy, op.Greater(op.Abs(node.inputs[0]), node.attr("lambd", 0.5)))]


@vjp("Tanh")
def tanh(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = (1 - Y²) dY."""
    y = node.output
    return [op.Mul(dy, op.Sub(1.0, op.Mul(y, y)))]


@vjp("Erf")
def erf(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = 2 / sqrt(pi) exp(-X²) dY."""
    x = node.inputs[0]
    return [op.Mul(dy, op.Mul(op.Exp(op.Neg(op.Mul(x, x))), 2 / math.sqrt(math.pi)))]


@vjp("Softplus")
def softplus(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = sigmoid(X) dY."""
    return [op.Mul(dy, op.Sigmoid(node.inputs[0]))]


@vjp("Softsign")
def softsign(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / (1 + |X|)²."""
    grown = op.Add(op.Abs(node.inputs[0]), 1.0)
    return [op.Div(dy, op.Mul(grown, grown))]


@vjp("Clip")
def clip(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where min < Y < max; dmin = dY where X < min < max, dmax = dY where X > max or min > max."""
    x, y, low, high = node.inputs[0], node.output, node.input(1), node.input(2)
    dx = between(op, dy, y, _bound(node, 1), _bound(node, 2)) if node.wants(0) else None
    dlow = dhigh = None
    if low and node.wants(1):
        under = op.Less(x, low)
        dlow = op.sum_to(op.mask(dy, op.And(under, op.Less(low, high)) if high else under), y, low)
    if high and node.wants(2):
        over = op.Greater(x, high)
        dhigh = op.sum_to(op.mask(dy, op.Or(over, op.Greater(low, high)) if low else over), y, high)
    return [dx, dlow, dhigh]


def _bound(node: Node, index: int) -> str | float | None:
    """A bound of Clip as a number where it is a constant, None where no finite number passes it."""
    bound = node.constant(index)
    if bound is None:
        return node.input(index)
    infinite = np.abs(bound) >= np.finfo(bound.dtype).max  # what exporters write for a missing bound
    if infinite.all() and bool((bound < 0).all()) == (index == 1):
        return None
    return float(bound.item()) if bound.size == 1 else node.input(index)


@vjp("Add", "Sum", broadcast=True)
def add(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY for every X."""
    return [dy] * len(node.inputs)


@vjp("Mean", broadcast=True)
def mean(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / n for each of the n X."""
    return [op.Mul(dy, 1.0 / len(node.inputs))] * len(node.inputs)


@vjp("Sub", broadcast=True)
def sub(op: Builder, node: Node, dy: str) -> Cotangents:
    """dA = dY, dB = -dY."""
    return [dy, op.Neg(dy) if node.wants(1) else None]


@vjp("Mul", broadcast=True)
def mul(op: Builder, node: Node, dy: str) -> Cotangents:
    """dA = B dY, dB = A dY."""
    a, b = node.inputs
    return [op.Mul(dy, b) if node.wants(0) else None, op.Mul(dy, a) if node.wants(1) else None]


@vjp("Div", broadcast=True)
def div(op: Builder, node: Node, dy: str) -> Cotangents:
    """dA = dY / B, dB = -Y dY / B."""
    da = op.Div(dy, node.inputs[1])
    return [da, op.Neg(op.Mul(da, node.output)) if node.wants(1) else None]


@vjp("Mod", broadcast=True)
def mod(op: Builder, node: Node, dy: str) -> Cotangents:
    """dA = dY, dB = -(A - Y) / B dY, a whole number."""
    a, b = node.inputs
    return [dy, op.Mul(dy, op.Round(op.Div(op.Sub(node.output, a), b))) if node.wants(1) else None]


@vjp("Pow", broadcast=True)
def power(op: Builder, node: Node, dy: str) -> Cotangents:
    """dA = B A^(B - 1) dY, 0 where B = 0; dB = log(A) Y dY, 0 where A = 0."""
    a, b = node.inputs
    da = db = None
    if node.wants(0):
        fixed = node.constant(1)
        if fixed is not None and fixed.size == 1:
            da = _fixed_power(op, node, dy, float(fixed.item()))
        else:
            exponent = op.cast(b)
            slope = op.Mul(exponent, op.Pow(a, op.Sub(exponent, 1.0)))
            da = op.Mul(dy, op.Where(op.Equal(exponent, 0.0), 0.0, slope))
    if node.wants(1):
        log = op.Log(op.Where(op.Equal(a, 0.0), 1.0, a))
        db = op.CastLike(op.Mul(op.Mul(dy, node.output), log), b)
    return [da, db]


def _fixed_power(op: Builder, node: Node, dy: str, exponent: float) -> str:
    """The gradient of X^exponent without Pow where it can be had: that is the slowest kernel of all."""
    x, y = node.inputs[0], node.output
    if exponent == 0:
        return op.Mul(dy, 0.0)
    if exponent == 1:
        return dy
    if exponent == 2:
        return op.Mul(dy, op.Mul(x, 2.0))
    if exponent == 3:
        return op.Mul(dy, op.Mul(op.Mul(x, x), 3.0))
    if exponent == 0.5:
        return op.Mul(op.Div(dy, y), 0.5)
    if exponent < 0:
        return op.Mul(op.Div(op.Mul(dy, y), x), exponent)
    return op.Mul(dy, op.Mul(op.Pow(x, exponent - 1.0), exponent))


@vjp("Sqrt")
def sqrt(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / (2 Y)."""
    return [op.Mul(op.Div(dy, node.output), 0.5)]


@vjp("Exp")
def exp(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = Y dY."""
    return [op.Mul(dy, node.output)]


@vjp("Log")
def log(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / X."""
    return [op.Div(dy, node.inputs[0])]


@vjp("Neg")
def neg(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = -dY."""
    return [op.Neg(dy)]


@vjp("Abs")
def absolute(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = sign(X) dY."""
    return [op.Mul(dy, op.Sign(node.inputs[0]))]


@vjp("Reciprocal")
def reciprocal(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = -Y² dY."""
    y = node.output
    return [op.Neg(op.Mul(dy, op.Mul(y, y)))]


@vjp("Sin")
def sin(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = cos(X) dY."""
    return [op.Mul(dy, op.Cos(node.inputs[0]))]


@vjp("Cos")
def cos(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = -sin(X) dY."""
    return [op.Neg(op.Mul(dy, op.Sin(node.inputs[0])))]


@vjp("Tan")
def tan(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = (1 + Y²) dY."""
    y = node.output
    return [op.Mul(dy, op.Add(op.Mul(y, y), 1.0))]


@vjp("Asin", "Acos")
def arc(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / sqrt(1 - X²), negated for the arc cosine."""
    x = node.inputs[0]
    dx = op.Div(dy, op.Sqrt(op.Sub(1.0, op.Mul(x, x))))
    return [dx if node.op_type == "Asin" else op.Neg(dx)]


@vjp("Atan", "Atanh")
def arctangent(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / (1 + X²); for the hyperbolic one dY / (1 - X²)."""
    square = op.Mul(node.inputs[0], node.inputs[0])
    return [op.Div(dy, op.Add(square, 1.0) if node.op_type == "Atan" else op.Sub(1.0, square))]


@vjp("Asinh", "Acosh")
def hyperbolic_arc(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / sqrt(X² + 1); for the arc of the cosine dY / sqrt(X² - 1)."""
    square = op.Mul(node.inputs[0], node.inputs[0])
    return [op.Div(dy, op.Sqrt(op.Add(square, 1.0 if node.op_type == "Asinh" else -1.0)))]


@vjp("Sinh", "Cosh")
def hyperbolic(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = cosh(X) dY; for the cosine sinh(X) dY."""
    x = node.inputs[0]
    return [op.Mul(dy, op.Cosh(x) if node.op_type == "Sinh" else op.Sinh(x))]


@vjp("Max", "Min", broadcast=True)
def extremum(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where X = Y, shared equally among the inputs that tie."""
    if len(node.inputs) == 1:
        return [dy]
    hits = [op.cast(op.Equal(x, node.output)) for x in node.inputs]
    ties = op.Add(*hits) if len(hits) == 2 else op.Sum(*hits)
    share = op.Div(dy, ties)
    return [op.Mul(share, hit) if node.wants(i) else None for i, hit in enumerate(hits)]


@vjp("Where", broadcast=True)
def where(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where the condition holds, dY' = dY where it does not."""
    condition = node.inputs[0]
    return [
        None,
        op.mask(dy, condition) if node.wants(1) else None,
        op.mask(dy, op.Not(condition)) if node.wants(2) else None,
    ]


@vjp("Identity")
def identity(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY."""
    return [dy]


@vjp("Dropout")
def dropout(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY: at inference nothing is dropped."""
    training = node.constant(2)
    if node.input(2) and (training is None or training.any()):
        raise node.refuse("it is in training mode, or may be at run time; export the model for inference")
    return [dy]


@vjp("Cast", "CastLike")
def cast(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY in the element type of X."""
    if node.graph.dtype(node.inputs[0]) == onnx.TensorProto.INT32:  # a sum of products, whose cotangent is a float
        return [dy]
    return [op.CastLike(dy, node.inputs[0]) if node.wants(0) else None]
