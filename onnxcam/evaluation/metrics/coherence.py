"""ADCC and its parts: a map should not change when its own picture is seen through it, and should be small."""

from __future__ import annotations

import numpy as np

from onnxcam.evaluation.metrics.confidence import drop
from onnxcam.evaluation.registry import HIGHER, LOWER, metric
from onnxcam.evaluation.trial import Trial


@metric("coherency", title="coherency", better=HIGHER, usual=False)
def coherency(trial: Trial) -> np.ndarray:
    """(1 + Pearson correlation of L(x * L) and L(x)) / 2.  https://arxiv.org/abs/2104.10252.

    Whether the map stays when the picture is seen through it; a map that is the same everywhere correlates with
    nothing and gives 1/2.
    """
    if "coherency" not in trial.cache:
        again = trial.explain(trial.pictures * trial.maps[:, None])
        trial.cache["coherency"] = (1 + pearson(again, trial.maps)) / 2
        trial.tell()
    return np.asarray(trial.cache["coherency"])


@metric("complexity", title="complexity", better=LOWER, usual=False)
def complexity(trial: Trial) -> np.ndarray:
    """||L||_1 / (H W).  https://arxiv.org/abs/2104.10252.

    The mean of the map: how much of the picture it covers.
    """
    return np.asarray(trial.maps.mean(axis=(1, 2), dtype=np.float64))


@metric("adcc", title="ADCC", better=HIGHER)
def adcc(trial: Trial) -> np.ndarray:
    """3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)).  https://arxiv.org/abs/2104.10252.

    The harmonic mean of coherency, simplicity and what is left of p, per picture.
    """
    parts = np.stack([coherency(trial), 1 - complexity(trial), 1 - drop(trial.whole, trial.masked)])
    parts = np.clip(parts, 0, None)
    worst = parts.min(axis=0)
    harmonic_mean = len(parts) / (1 / np.maximum(parts, 1e-12)).sum(axis=0)
    return np.where(worst > 0, harmonic_mean, 0.0)


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The correlation of each row of `[N, ...]` with the other's, float64 `[N]`; 0 where one of them is constant."""
    a = first.reshape(len(first), -1).astype(np.float64)
    b = second.reshape(len(second), -1).astype(np.float64)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    correlation = np.zeros(len(a))
    np.divide((a * b).sum(axis=1), scale, out=correlation, where=scale > 1e-12)
    return correlation
