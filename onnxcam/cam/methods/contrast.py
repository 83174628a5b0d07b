"""Grad-CAM of what distinguishes a class from its rivals."""

from __future__ import annotations

import numpy as np

from onnxcam.cam.registry import layer_method
from onnxcam.cam.view import View
from onnxcam.errors import MethodError
from onnxcam.targets import objectives


@layer_method("finercam", summed=True)
def finercam(view: View, alpha: float = 1.0, rivals: int = 3) -> np.ndarray:
    """Grad-CAM of sum_d p_d (y_c - alpha y_d) / sum_d p_d, d the classes nearest to c in score.

    https://arxiv.org/abs/2501.11309. `rivals`: how many of them; `alpha`: how much they count.
    """
    if any(view.objective.describe(row)[0] != objectives.LOGIT for row in range(len(view.scores))):
        raise MethodError(
            "method 'finercam' finds a class's rivals itself; name the class alone, or use gradcam for a contrast, a "
            "probability or a weighted sum"
        )
    objective = objectives.finer(view.objective.classes, view.scores, view.readout, alpha, rivals)
    weights = view.under(objective).gradients.mean(axis=(2, 3), keepdims=True)
    return np.asarray(weights * view.activations)
