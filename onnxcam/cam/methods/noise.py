"""Maps averaged over noisy copies of the picture."""

from __future__ import annotations

import numpy as np

from onnxcam.cam.methods.perturbation import positive
from onnxcam.cam.registry import layer_method
from onnxcam.cam.view import View


@layer_method("smoothgradcam++", long=True, summed=True)
def smoothgradcam_plus_plus(view: View, samples: int = 10, stdev: float = 0.15) -> np.ndarray:
    """sum_c w * A, w = sum_S alpha * ReLU(D1), alpha = D2 / (2 D2 + sum_S(A) * D3 + 1e-6).

    D1, D2, D3 are the means of dA, dA^2 and dA^3 over noisy pictures.  https://arxiv.org/abs/1908.01224 (eq. 7 to 9).
    `samples`: how many; `stdev`: of the noise, as a part of the picture's range.
    """
    positive(samples=samples, stdev=stdev)
    pictures, a = view.input.activations, view.activations
    spread = np.ptp(pictures, axis=(1, 2, 3)) * stdev
    first, second, third = (np.zeros(a.shape, np.float64) for _ in range(3))
    for done in range(samples):
        noise = view.rng.normal(0.0, 1.0, pictures.shape) * spread[:, None, None, None]
        g = view.at((pictures + noise).astype(np.float32)).gradients.astype(np.float64)
        first, second, third = first + g, second + g * g, third + g**3
        view.tell(done + 1, samples)
    first, second, third = first / samples, second / samples, third / samples
    # as in gradcam++: what keeps the divisor from zero vanishes beside gradients of any size
    size = np.sqrt(second.max(axis=(1, 2, 3), keepdims=True))
    small = 1e-6 * np.minimum(1.0, (size / 1e-3) ** 4)
    divisor = 2 * second + a.sum(axis=(2, 3), keepdims=True) * third + small
    alpha = second / np.where(divisor == 0, 1e-6, divisor)
    weights = (alpha * np.maximum(first, 0)).sum(axis=(2, 3), keepdims=True)
    return np.asarray(weights * a, np.float32)
