"""ROAD: pixels are taken away and guessed again from those around them, so that their absence cannot be seen.

https://arxiv.org/abs/2202.00449.
"""

from __future__ import annotations

import math

import numpy as np

from onnxcam.evaluation.imputation import impute
from onnxcam.evaluation.registry import HIGHER, LOWER, metric
from onnxcam.evaluation.trial import Trial

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
NOISE = 0.01


@metric("road_morf", title="ROAD MoRF", better=LOWER, usual=False)
def road_morf(trial: Trial, *, noise: float = NOISE) -> np.ndarray:
    """mean_q [p_c(x without its most relevant pixels) - p_c(x)], q = 10 ... 90 % of them imputed from those around.
    https://arxiv.org/abs/2202.00449.

    The change of p when the most relevant pixels are replaced by what their neighbours predict.
    """
    return _change(trial, noise, relevant_first=True)


@metric("road_lerf", title="ROAD LeRF", better=HIGHER, usual=False)
def road_lerf(trial: Trial, *, noise: float = NOISE) -> np.ndarray:
    """mean_q [p_c(x without its least relevant pixels) - p_c(x)], q = 10 ... 90 % of them imputed from those around.
    https://arxiv.org/abs/2202.00449.

    The change of p when the least relevant pixels are replaced by what their neighbours predict.
    """
    return _change(trial, noise, relevant_first=False)


@metric("road", title="ROAD", better=HIGHER)
def road(trial: Trial, *, noise: float = NOISE) -> np.ndarray:
    """(LeRF - MoRF) / 2.  https://arxiv.org/abs/2202.00449; combined as in pytorch-grad-cam.

    What is lost with the relevant pixels and not with the irrelevant ones.
    """
    morf = _change(trial, noise, relevant_first=True)
    return np.asarray((_change(trial, noise, relevant_first=False) - morf) / 2)


def _change(trial: Trial, noise: float, *, relevant_first: bool) -> np.ndarray:
    key = f"road {'morf' if relevant_first else 'lerf'} {noise}"
    if key not in trial.cache:
        trial.cache[key] = _measured(trial, noise, relevant_first)
    return trial.cache[key]


def _measured(trial: Trial, noise: float, relevant_first: bool) -> np.ndarray:
    """The mean change over the percentiles, float64 `[N]`."""
    steps = len(PERCENTILES)
    height, width = trial.maps.shape[1:]
    order = trial.order if relevant_first else trial.order[:, ::-1]

    def make(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows, step = np.divmod(np.arange(start, stop), steps)
        pictures = []
        for row, place in zip(rows, step, strict=True):
            # as many as lie below numpy's percentile are kept
            count = math.ceil((height * width - 1) * PERCENTILES[place] / 100)
            missing = np.zeros(height * width, bool)
            missing[order[row, : height * width - count]] = True
            picture = impute(trial.pictures[row], missing.reshape(height, width))
            if noise:
                drawn = trial.rng(int(row), f"road {PERCENTILES[place]} {relevant_first}")
                added = drawn.normal(scale=noise, size=(len(picture), int(missing.sum())))
                picture.reshape(len(picture), -1)[:, missing] += added.astype(np.float32)
            pictures.append(picture)
            trial.tell()
        return np.stack(pictures), rows

    after = trial.probabilities(len(trial) * steps, make).reshape(len(trial), steps)
    return np.asarray(after.mean(axis=1) - trial.whole)
