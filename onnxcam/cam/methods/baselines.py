"""Maps to compare others with: random weights, and the weights of a linear head themselves."""

from __future__ import annotations

import numpy as np

from onnxcam.cam.registry import layer_method
from onnxcam.cam.view import View
from onnxcam.errors import MethodError


@layer_method("randomcam", gradient=False, summed=True)
def randomcam(view: View) -> np.ndarray:
    """sum_c w * A with w drawn uniformly from -1 to 1: what a method has to be better than."""
    weights = view.rng.uniform(-1, 1, view.activations.shape[:2]).astype(np.float32)
    return np.asarray(weights[:, :, None, None] * view.activations)


@layer_method("cam", summed=True)
def cam(view: View) -> np.ndarray:
    """sum_c W * A, W the class's weights of the linear layer behind the pooling.  https://arxiv.org/abs/1512.04150.

    Only for a head of global average pooling and one linear layer: there the gradient at each place is W / (h w).
    """
    g = view.gradients
    size = np.abs(g).max(axis=(2, 3))
    level = bool((np.ptp(g, axis=(2, 3)) <= 1e-4 * size).all())
    if not (view.affine and view.objective.linear and level):
        raise MethodError(
            "method 'cam' reads the weights of a linear layer behind a global average pooling, and between this layer "
            "and the scores (or in what is explained) there is more than that; use gradcam, which is the same where "
            "both exist"
        )
    return np.asarray(g.sum(axis=(2, 3), keepdims=True) * view.activations)
