"""What the model makes of the picture seen through its map."""

from __future__ import annotations

import numpy as np

from onnxcam.evaluation.registry import HIGHER, LOWER, metric
from onnxcam.evaluation.trial import Trial


@metric("average_drop", title="drop", better=LOWER)
def average_drop(trial: Trial) -> np.ndarray:
    """max(0, Y - O) / Y, with Y = p_c(x) and O = p_c(x * L).  https://arxiv.org/abs/1710.11063.

    The share of p that is lost when the picture is multiplied by its map.
    """
    return drop(trial.whole, trial.masked)


@metric("average_increase", title="increase", better=HIGHER)
def average_increase(trial: Trial) -> np.ndarray:
    """1 where p_c(x * L) > p_c(x), else 0.  https://arxiv.org/abs/1710.11063.

    How often p grows when the picture is multiplied by its map.
    """
    return (trial.masked > trial.whole).astype(np.float64)


def drop(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The part of a probability that is lost, 0 where it grows."""
    return np.asarray(np.maximum(0.0, before - after) / np.maximum(before, 1e-12))
