"""Maps from the second derivative."""

from __future__ import annotations

import numpy as np

from onnxcam.cam.registry import layer_method
from onnxcam.cam.view import View
from onnxcam.errors import MethodError


@layer_method("shapleycam", summed=True)
def shapleycam(view: View) -> np.ndarray:
    """sum_c mean_S(dA - H A / 2) * A, H the second derivative at the layer.  https://arxiv.org/abs/2501.06261 (eq. 11).

    The same as Grad-CAM where the scores are piecewise linear in the layer.
    """
    if not view.objective.linear:
        raise MethodError("method 'shapleycam' explains logits, or sums of them; use gradcam for a probability")
    weights = (view.gradients - 0.5 * view.curvature()).mean(axis=(2, 3), keepdims=True)
    return np.asarray(weights * view.activations)
