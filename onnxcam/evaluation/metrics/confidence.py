"""What the model makes of the picture seen through its map."""

from __future__ import annotations

import numpy as np

from onnxcam.evaluation.registry import HIGHER, LOWER, metric
from onnxcam.evaluation.trial import Trial


@metric("average_drop", title="drop", better=LOWER)
def average_drop(trial: Trial) -> np.ndarray:
    """max(0, Y - O) / Y, with Y = p_c(x) and O = p_c(x * L).  https://arxiv.org/abs/1710.11063.

    The map L, from 0 to 1, multiplies the prepared picture, whose zero is the mean colour for the usual preprocessing.
    """
    return drop(trial.whole, trial.masked)


@metric("average_increase", title="increase", better=HIGHER)
def average_increase(trial: Trial) -> np.ndarray:
    """1 where p_c(x * L) > p_c(x), else 0.  https://arxiv.org/abs/1710.11063."""
    return (trial.masked > trial.whole).astype(np.float64)


def drop(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The part of a probability that is lost, 0 where it grows."""
    return np.asarray(np.maximum(0.0, before - after) / np.maximum(before, 1e-12))
