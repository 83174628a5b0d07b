"""CAMs made from activations and gradients at one layer: plain operators, so that a file can hold them.

Each function gives the terms `[N, C, h, w]` whose sum over channels is the map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcam.cam.registry import cam_method

if TYPE_CHECKING:  # it imports onnx, which explaining from a file does without
    from onnxcam.graph.builder import Builder

_SPACE = [2, 3]
_TINY = 1.2e-38  # the smallest normal float32: a divisor instead of zero


@cam_method("gradcam", summed=True)
def gradcam(op: Builder, a: str, da: str) -> str:
    """sum_c mean_S(dA) * A.  https://arxiv.org/abs/1610.02391 (eq. 1 and 2)."""
    return op.Mul(op.mean(da, _SPACE), a)


@cam_method("hirescam", summed=True)
def hirescam(op: Builder, a: str, da: str) -> str:
    """sum_c dA * A.  https://arxiv.org/abs/2011.08891 (eq. 3); the paper has no ReLU, common practice has."""
    return op.Mul(da, a)


@cam_method("elementwise", summed=True)
def elementwise(op: Builder, a: str, da: str) -> str:
    """sum_c ReLU(dA * A): HiResCAM without what speaks against the class.  From pytorch-grad-cam."""
    return op.Relu(op.Mul(da, a))


@cam_method("gradcam++", summed=True)
def gradcam_plus_plus(op: Builder, a: str, da: str) -> str:
    """sum_c w * A, w = sum_S alpha * ReLU(dA), alpha = dA^2 / (2 dA^2 + sum_S(A) * dA^3 + 1e-6).

    https://arxiv.org/abs/1710.11063 (eq. 11 and 19, the score taken as an exponential of the logit). The 1e-6 is
    pytorch-grad-cam's; where no |dA| reaches s = 1e-3 it is 1e-6 (max |dA| / s)^4, so that it vanishes beside dA^2.
    """
    # dA = g * size: powers of g neither overflow nor vanish, whatever the size of the scores
    size = op.Max(op.ReduceMax(op.Abs(da), [1, 2, 3], keepdims=1), _TINY)
    g = op.Div(da, size)
    relative = op.Mul(size, 1e3)
    small = op.Min(op.Div(op.Div(1.0, relative), relative), op.Mul(relative, relative))
    squared = op.Mul(g, g)
    total = op.Mul(op.ReduceSum(a, _SPACE, keepdims=1), size)
    divisor = op.Add(op.Add(op.Mul(squared, 2.0), op.Mul(total, op.Mul(squared, g))), small)
    # where activations may be negative it can be zero, and one infinite weight would empty the whole map
    divisor = op.Where(op.Equal(divisor, 0.0), 1e-6, divisor)
    weights = op.ReduceSum(op.Mul(op.Div(squared, divisor), op.Relu(g)), _SPACE, keepdims=1)
    return op.Mul(op.Mul(weights, size), a)


@cam_method("xgradcam", summed=True)
def xgradcam(op: Builder, a: str, da: str) -> str:
    """sum_c w * A, w = sum_S(dA * A / (sum_S(A) + 1e-7)).  https://arxiv.org/abs/2008.02312 (eq. 8).

    The 1e-7 is pytorch-grad-cam's, times the largest sum_S |A| where that is below 1.
    """
    largest = op.ReduceMax(op.ReduceSum(op.Abs(a), _SPACE, keepdims=1), [1], keepdims=1)
    small = op.Max(op.Mul(op.Min(largest, 1.0), 1e-7), _TINY)
    total = op.Add(op.ReduceSum(a, _SPACE, keepdims=1), small)
    weights = op.ReduceSum(op.Div(op.Mul(da, a), total), _SPACE, keepdims=1)
    return op.Mul(weights, a)


@cam_method("layercam", summed=True)
def layercam(op: Builder, a: str, da: str) -> str:
    """sum_c ReLU(dA) * A.  https://ieeexplore.ieee.org/document/9462463 (eq. 4 and 5)."""
    return op.Mul(op.Relu(da), a)


@cam_method("activationmap", gradient=False)
def activationmap(op: Builder, a: str, da: str) -> str:
    """mean_c A: where the layer is active at all, whatever the class. A baseline."""
    return op.ReduceMean(a, [1], keepdims=0)


@cam_method("fem", gradient=False, summed=True)
def fem(op: Builder, a: str, da: str) -> str:
    """sum_c w * A, w the part of S where A > mean_S(A) + 2 std_S(A), whatever the class.

    Feature Explanation Method, https://hal.science/hal-02963298.
    """
    mean = op.ReduceMean(a, _SPACE, keepdims=1)
    centred = op.Sub(a, mean)
    # in parts of the largest: squares neither overflow nor vanish, whatever the size of the activations
    size = op.Max(op.ReduceMax(op.Abs(centred), _SPACE, keepdims=1), _TINY)
    part = op.Div(centred, size)
    deviation = op.Mul(op.Sqrt(op.ReduceMean(op.Mul(part, part), _SPACE, keepdims=1)), size)
    rare = op.Greater(a, op.Add(mean, op.Mul(deviation, 2.0)))
    return op.Mul(op.ReduceMean(op.cast(rare), _SPACE, keepdims=1), a)
