"""Grad-CAM of what tells a class from its rivals."""

from __future__ import annotations

import numpy as np

from onnxcam.cam import objectives
from onnxcam.cam.registry import layer_method
from onnxcam.cam.view import View


@layer_method("finercam", summed=True)
def finercam(view: View, alpha: float = 1.0, rivals: int = 3) -> np.ndarray:
    """Grad-CAM of sum_d p_d (y_c - alpha y_d) / sum_d p_d, d the classes nearest to c in score.

    https://arxiv.org/abs/2501.11309. `rivals`: how many of them; `alpha`: how much they count.
    """
    objective = objectives.finer(view.objective.classes, view.scores, view.kind, alpha, rivals)
    weights = view.under(objective).gradients.mean(axis=(2, 3), keepdims=True)
    return np.asarray(weights * view.activations)
