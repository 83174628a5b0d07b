"""Steps: 1 where a value lies beyond a bound, 0 elsewhere, as factors of a cotangent.

A HardSigmoid so steep that no float lies on its slope is such a step. In float32 it takes one pass where a comparison
and a Cast take two, and it can be computed in the blocked layout that ONNX Runtime's convolutions have on a CPU
(`Greater` cannot: every activation would be reordered twice). Input gradient of MobileNetV2: 0.8 × the time.
"""

from __future__ import annotations

import math

import onnx

from onnxcam.graph.builder import Builder

# up to which power of two a bound is scaled, and a difference: the smallest normal float32 is 2^-126
_BOUND, _SLOPE = 100, 126


def above(op: Builder, y: str, bound: float) -> str:
    """1 where Y > bound, else 0, in the current element type."""
    if op.dtype != onnx.TensorProto.FLOAT or not math.isfinite(bound):
        return op.cast(op.Greater(y, bound))
    slope = _slope(bound)
    return op.HardSigmoid(y, alpha=slope, beta=-bound * slope)


def below(op: Builder, y: str, bound: float) -> str:
    """1 where Y < bound, else 0, in the current element type."""
    if op.dtype != onnx.TensorProto.FLOAT or not math.isfinite(bound):
        return op.cast(op.Less(y, bound))
    slope = _slope(bound)
    return op.HardSigmoid(y, alpha=-slope, beta=bound * slope)


def _slope(bound: float) -> float:
    """A power of two, so that products with it are exact: next to the bound Y·slope - bound·slope is at least 1.

    Only a denormal difference (below 2^-126, where bound is 0 or nearly so) comes out between 0 and 1.
    """
    exponent = math.frexp(bound)[1] if bound else -math.inf
    return 2.0 ** min(_SLOPE, _BOUND - exponent)
