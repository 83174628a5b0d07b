"""Trials made by hand: a classifier whose evidence lies in a known place."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcam.evaluation.trial import Trial

SIDE = 24
INSIDE = np.zeros((SIDE, SIDE), bool)
INSIDE[6:14, 8:18] = True
ELSEWHERE = np.zeros((SIDE, SIDE), bool)  # another object of the class
ELSEWHERE[17:22, 3:12] = True


def predict(pictures: np.ndarray) -> np.ndarray:
    """Class 1 is as probable as the known place is bright."""
    score = 6 * (pictures[:, :, INSIDE].mean(axis=(1, 2)) - 0.5)
    p = 1 / (1 + np.exp(-score))
    return np.stack([1 - p, p], axis=1).astype(np.float32)


def bright(pictures: np.ndarray) -> np.ndarray:
    """A map that answers to the known place alone."""
    return np.clip(pictures.mean(axis=1) * INSIDE, 0, 1).astype(np.float32)


def trial(maps: np.ndarray, count: int = 1, **changes: Any) -> Trial:
    """The same map of `count` pictures: bright in the known place, noise elsewhere."""
    rng = np.random.default_rng(5)
    pictures = rng.uniform(0, 0.3, (count, 3, SIDE, SIDE)).astype(np.float32)
    pictures[:, :, INSIDE] += 0.9
    stacked = np.repeat(maps[None].astype(np.float32), count, axis=0)
    return Trial(
        **{
            "predict": predict,
            "explain": bright,
            "pictures": pictures,
            "maps": stacked,
            "classes": np.ones(count, np.int64),
            "whole": predict(pictures)[:, 1].astype(np.float64),
            "places": list(range(count)),
            "boxes": [INSIDE] * count,
            "others": [[ELSEWHERE]] * count,
            "masking": lambda masks: np.repeat(INSIDE[None].astype(np.float32), count, axis=0),
            "originals": list(stacked),
        }
        | changes
    )
