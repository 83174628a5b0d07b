"""A network so small that its gradients are written by hand: scores = mean(x · w over channels) · head."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import parser

_W = np.asarray([[1, 2], [-1, 0.5]])
_HEAD = np.asarray([[1, -1, 2], [0.5, 3, -2]])


def linear(size: int) -> onnx.ModelProto:
    """Return the network for pictures of two channels; its layer is `y`."""
    return parser.parse_model(f"""
<ir_version: 10, opset_import: ["": 20]>
g (float[N, 2, {size}, {size}] input) => (float[N, 3] logits)
<float[2, 2, 1, 1] w = {{1, 2, -1, 0.5}}, int64[2] axes = {{2, 3}}, float[2, 3] head = {{1, -1, 2, 0.5, 3, -2}}> {{
    y = Conv (input, w)
    m = ReduceMean <keepdims = 0> (y, axes)
    logits = MatMul (m, head)
}}
""")


class Reference:
    """The network in NumPy, off by `fault` in its gradients: a `parity.Reference`."""

    def __init__(self, batch: np.ndarray, fault: float | np.ndarray = 0.0) -> None:
        y = np.einsum("oc,nchw->nohw", _W, batch)
        self.scores = y.mean((2, 3)) @ _HEAD
        self.outputs = [self.scores]
        self.activations = [y]
        self._fault = fault

    def gradients(self, targets: np.ndarray) -> list[np.ndarray]:
        (y,) = self.activations
        per_class = _HEAD[:, targets].T[:, :, None, None] / (y.shape[2] * y.shape[3])
        return [np.broadcast_to(per_class, y.shape) * (1 + self._fault)]
