"""Forms of the same numbers that keep the layout of ONNX Runtime's convolutions on a CPU.

That layout, of blocks of channels, begins at a convolution or a pool. A sum or a product keeps it only where all of its
operands have it, and a comparison never does: every activation would be reordered twice.

A step is 1 where a value lies beyond a bound and 0 elsewhere, a factor of a cotangent. A HardSigmoid so steep that no
float lies on its slope is such a step: in float32 it takes one pass where a comparison and a Cast take two, and it
keeps the layout (input gradient of MobileNetV2: 0.8 × the time).
"""

from __future__ import annotations

import math

import onnx

from onnxcam.graph.builder import Builder

# up to which power of two a bound is scaled, and a difference: the smallest normal float32 is 2^-126
_BOUND, _SLOPE = 100, 126
# OpenVINO reads a beta that is written as 0 as HardSigmoid's default of 0.5; this one rounds away next to any step
_NO_OFFSET = -(2.0**-126)


def blocked(op: Builder, value: str, like: str) -> str:
    """The value, a picture `[N, C, h, w]` of the shape of `like`, in the blocked layout: by a pool of single pixels."""
    sizes = [op.dim(like, axis) for axis in (1, 2, 3)]
    if len(op.graph.shape(like) or ()) != 4 or None in sizes or op.dtype != onnx.TensorProto.FLOAT:
        return value
    source, axes = op.spread_source(value)
    if axes != {2, 3}:
        return op.AveragePool(value, kernel_shape=[1, 1])
    # the one pixel, which is cheaper to bring there
    repeated = op.repeat(op.AveragePool(source, kernel_shape=[1, 1]), [size for size in sizes[1:] if size is not None])
    op.declare(repeated, like)
    return repeated


def between(op: Builder, dy: str, y: str, low: str | float | None, high: str | float | None) -> str:
    """dY where low < Y < high; a bound is a value, a number, or None for none."""
    # both steps come before the products: ONNX Runtime then takes them right before these, from one reading of Y,
    # and does not hold the second one from the forward pass on (0.95 × the time of MobileNetV2's input gradient)
    steps = [] if low is None else [above(op, y, low)]
    steps += [] if high is None else [below(op, y, high)]
    for step in steps:
        dy = op.Mul(dy, step)
    return dy


def above(op: Builder, y: str, bound: str | float) -> str:
    """1 where Y > bound, else 0, in the current element type."""
    if isinstance(bound, str) or op.dtype != onnx.TensorProto.FLOAT or not math.isfinite(bound):
        return op.cast(op.Greater(y, bound))
    slope = _slope(bound)
    return op.HardSigmoid(y, alpha=slope, beta=-bound * slope or _NO_OFFSET)


def below(op: Builder, y: str, bound: str | float) -> str:
    """1 where Y < bound, else 0, in the current element type."""
    if isinstance(bound, str) or op.dtype != onnx.TensorProto.FLOAT or not math.isfinite(bound):
        return op.cast(op.Less(y, bound))
    slope = _slope(bound)
    return op.HardSigmoid(y, alpha=-slope, beta=bound * slope or _NO_OFFSET)


def complement(op: Builder, y: str) -> str:
    """1 - Y, for Y between 0 and 1."""
    return op.HardSigmoid(y, alpha=-1.0, beta=1.0) if op.dtype == onnx.TensorProto.FLOAT else op.Sub(1.0, y)


def _slope(bound: float) -> float:
    """A power of two, so that products with it are exact: next to the bound Y·slope - bound·slope is at least 1.

    Only a denormal difference (below 2^-126, where bound is 0 or nearly so) comes out between 0 and 1.
    """
    exponent = math.frexp(bound)[1] if bound else -math.inf
    return 2.0 ** min(_SLOPE, _BOUND - exponent)
