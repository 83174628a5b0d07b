"""Weights that the forward pass applies and the backward pass applies transposed.

OpenVINO (2026.4.1, on a CPU) keeps packed weights by their numbers and dimensions. Where transposing leaves the
dimensions as they are, it applies the untransposed weights in both passes, and gradients are silently wrong. The
negative of the weights is another constant, exact and folded at load (of quantized weights, computed at each run),
whose sign the other factor takes back.
"""

from __future__ import annotations

from onnxcam.graph.builder import Builder


def negated(op: Builder, weights: str, axes: tuple[int, int], group: int = 1) -> tuple[str, float]:
    """The weights under a name and with numbers that the forward pass does not use, and the sign they have.

    Arguments:
        axes: the two axes that are exchanged; weights of different sizes along them are returned as they are.
        group: of a grouped convolution, whose axis 0 holds that many times as many as one group has.
    """
    shape = op.static(weights) or ()
    if len(shape) < 2 or shape[axes[0]] != shape[axes[1]] * group or shape[axes[1]] == 1:
        return weights, 1.0
    return (op.Neg(weights), -1.0) if op.graph.is_constant(weights) else (weights, 1.0)
