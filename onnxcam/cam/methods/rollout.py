"""Maps of transformers from their attention."""

from __future__ import annotations

import numpy as np

from onnxcam.cam.registry import layer_method
from onnxcam.cam.view import View


@layer_method("rollout", gradient=False)
def rollout(view: View) -> np.ndarray:
    """Product over blocks of (mean over heads of attention + 1) / 2, rows summing to 1; whatever the class.

    https://arxiv.org/abs/2005.00928 (eq. 1). What the class token takes from each patch; without one the
    mean over tokens.
    """
    attentions = view.attentions()
    total = np.eye(attentions[0].shape[-1])
    for attention in attentions:
        mixed = attention.mean(axis=1, dtype=np.float64) + np.eye(total.shape[-1])
        total = (mixed / mixed.sum(axis=-1, keepdims=True)) @ total
    return _folded(view, total[:, 0] if view.tokens[1] else total.mean(axis=1))


@layer_method("legrad")
def legrad(view: View) -> np.ndarray:
    """sum over blocks of the mean over heads and rows of ReLU(d y_l / d attention_l), y_l the score read at block l.

    https://arxiv.org/abs/2404.03214 (eq. 5 to 8): the score of every block is what the model's own head says of that
    block's output.
    """
    return _folded(view, sum(np.maximum(g, 0).mean(axis=(1, 2)) for g in view.attention_gradients()))


def _folded(view: View, values: np.ndarray) -> np.ndarray:
    """Numbers of tokens `[N, T]` as maps, without the tokens before the patches."""
    (height, width), prefix = view.tokens
    return np.asarray(values[:, prefix:].reshape(len(values), height, width), np.float32)
