"""Maps by the first principal component over the places of a layer.

The sign of a component is arbitrary; here it is the one with which the map correlates with the mean over channels.
"""

from __future__ import annotations

import numpy as np

from onnxcam.cam.components import signed
from onnxcam.cam.registry import layer_method
from onnxcam.cam.view import View


@layer_method("eigencam", gradient=False, component=True)
def eigencam(view: View) -> np.ndarray:
    """R V_0, R the rows A_S of the hw places minus their mean, V_0 its first right singular vector; whatever the class.

    https://arxiv.org/abs/2008.00299
    """
    return view.first_component(view.activations)


@layer_method("eigengradcam", component=True)
def eigengradcam(view: View) -> np.ndarray:
    """As eigencam, of dA * A.  From pytorch-grad-cam."""
    return view.first_component(view.gradients * view.activations)


@layer_method("segeigencam")
def segeigencam(view: View) -> np.ndarray:
    """As eigencam, of abs(dA) * A, negated where abs(min) > abs(max).  https://doi.org/10.3390/app15137562 (eq. 13)."""
    maps = view.first_component(np.abs(view.gradients) * view.activations)
    low, high = np.abs(maps.min(axis=(1, 2))), np.abs(maps.max(axis=(1, 2)))
    return np.where((low > high)[:, None, None], -maps, maps)


@layer_method("kpcacam", gradient=False)
def kpcacam(view: View, gamma: float = 0.0) -> np.ndarray:
    """The first kernel principal component of the places, kernel tanh(gamma x.y + 1); whatever the class.

    https://arxiv.org/abs/2410.00267. `gamma`: 0 for 1 / C.
    """
    return np.stack([_kernel_component(*pair, gamma) for pair in zip(view.gram(), view.activations, strict=True)])


def _kernel_component(products: np.ndarray, one: np.ndarray, gamma: float) -> np.ndarray:
    kernel = np.tanh((gamma or 1.0 / len(one)) * products + 1.0)
    mean = kernel.mean(axis=0)
    centred = kernel - mean[None] - mean[:, None] + mean.mean()
    values, vectors = np.linalg.eigh(centred)
    if values[-1] <= 1e-12 * len(values):  # all places are the same: what is left is rounding
        return np.zeros(one.shape[1:], np.float32)
    return signed(vectors[:, -1] * np.sqrt(max(values[-1], 0.0)), one)
