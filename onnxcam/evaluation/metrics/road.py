"""ROAD: pixels are taken away and guessed again from those around them, so that their absence cannot be seen.

https://arxiv.org/abs/2202.00449.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np

from onnxcam.evaluation.imputation import impute
from onnxcam.evaluation.registry import HIGHER, LOWER, metric
from onnxcam.evaluation.sampling import Sample
from onnxcam.evaluation.trial import Pick, Trial, digest

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
NOISE = 0.01


@metric("road_morf", title="ROAD MoRF", better=LOWER, usual=False)
def road_morf(trial: Trial, *, noise: float = NOISE) -> np.ndarray:
    """mean_q [p_c(x without its most relevant pixels) - p_c(x)], q = 10 ... 90 % of them imputed from those around.
    https://arxiv.org/abs/2202.00449.

    The change of p when the most relevant pixels are replaced by what their neighbours predict.
    """
    return _mean(trial, "road_morf", *_change(trial, noise, relevant_first=True))


@metric("road_lerf", title="ROAD LeRF", better=HIGHER, usual=False)
def road_lerf(trial: Trial, *, noise: float = NOISE) -> np.ndarray:
    """mean_q [p_c(x without its least relevant pixels) - p_c(x)], q = 10 ... 90 % of them imputed from those around.
    https://arxiv.org/abs/2202.00449.

    The change of p when the least relevant pixels are replaced by what their neighbours predict.
    """
    return _mean(trial, "road_lerf", *_change(trial, noise, relevant_first=False))


@metric("road", title="ROAD", better=HIGHER)
def road(trial: Trial, *, noise: float = NOISE) -> np.ndarray:
    """(LeRF - MoRF) / 2.  https://arxiv.org/abs/2202.00449; combined as in pytorch-grad-cam.

    What is lost with the relevant pixels and not with the irrelevant ones.
    """
    least, of_least = _change(trial, noise, relevant_first=False)
    most, of_most = _change(trial, noise, relevant_first=True)
    both = None
    if of_least is not None and of_most is not None:  # the same points were drawn for both
        differences = (of_least.differences - of_most.differences) / 2
        both = replace(of_least, differences=differences, expected=(of_least.expected + of_most.expected) / 2)
    return _mean(trial, "road", (least - most) / 2, both)


def _mean(trial: Trial, name: str, changes: np.ndarray, sample: Sample | None) -> np.ndarray:
    if sample is not None:
        trial.samples[name] = sample
    return np.asarray(changes.mean(axis=1))


def _change(trial: Trial, noise: float, *, relevant_first: bool) -> tuple[np.ndarray, Sample | None]:
    """The changes at the percentiles, float64 `[N, percentiles]`, and what is left out of them."""
    key = f"road {'morf' if relevant_first else 'lerf'} {noise}"
    if key not in trial.cache:
        count = len(PERCENTILES)
        after, sample = trial.points("road", count, 1 / count, _measured(trial, noise, relevant_first))
        trial.cache[key] = after - trial.whole[:, None], sample
    return cast("tuple[np.ndarray, Sample | None]", trial.cache[key])


def _measured(trial: Trial, noise: float, relevant_first: bool) -> Pick:
    """The function from percentiles, by their places, to probabilities."""
    height, width = trial.maps.shape[1:]

    def compute(points: np.ndarray) -> np.ndarray:
        rows = np.repeat(np.arange(len(points)), points.shape[1])
        steps = points.ravel()
        # as many as lie below numpy's percentile remain
        remain = [math.ceil((height * width - 1) * percentile / 100) for percentile in PERCENTILES]

        def missing(place: int) -> np.ndarray:
            count, rank = remain[steps[place]], trial.rank[rows[place]]
            return np.asarray(rank < height * width - count if relevant_first else rank >= count)

        def picture(place: int) -> np.ndarray:
            row, percentile, mask = int(rows[place]), PERCENTILES[steps[place]], missing(place)
            imputed = impute(trial.pictures[row], mask)
            if noise:
                drawn = trial.rng(row, f"road {percentile} {relevant_first}")
                added = drawn.normal(scale=noise, size=(len(imputed), int(mask.sum()))).astype(np.float32)
                imputed.reshape(len(imputed), -1)[:, mask.ravel()] += added
            trial.tell()
            return imputed

        keys = [
            ("road", noise, PERCENTILES[step], relevant_first, digest(missing(place)))
            for place, step in enumerate(steps)
        ]
        values = trial.shared(keys, rows, lambda places: np.stack([picture(int(place)) for place in places]))
        return values.reshape(points.shape)

    return compute
