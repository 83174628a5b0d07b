"""CAMs made from activations and gradients at one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcam.cam.registry import cam_method

if TYPE_CHECKING:  # it imports onnx, which explaining from a file does without
    from onnxcam.graph.builder import Builder


@cam_method("gradcam")
def gradcam(op: Builder, a: str, da: str) -> str:
    """sum_c mean_S(dA) * A.  https://arxiv.org/abs/1610.02391 (eq. 1 and 2)."""
    weights = op.ReduceMean(da, [2, 3], keepdims=1)
    return channel_sum(op, op.Mul(weights, a))


@cam_method("hirescam")
def hirescam(op: Builder, a: str, da: str) -> str:
    """sum_c dA * A.  https://arxiv.org/abs/2011.08891 (eq. 3); the paper has no ReLU, common practice has."""
    return channel_sum(op, op.Mul(da, a))


def channel_sum(op: Builder, x: str) -> str:
    """`[N, C, h, w]` to `[N, h, w]`."""
    return op.ReduceSum(x, [1], keepdims=0)
