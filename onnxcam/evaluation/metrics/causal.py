"""Deleting what matters must hurt the prediction soon; inserting it must bring the prediction about soon."""

from __future__ import annotations

import numpy as np

from onnxcam.errors import InputError
from onnxcam.evaluation.registry import HIGHER, LOWER, metric
from onnxcam.evaluation.trial import Trial
from onnxcam.image.opencv import import_cv2

STEPS = 32


@metric("insertion", title="insertion", better=HIGHER)
def insertion(trial: Trial, *, steps: int = STEPS, baseline: str = "blur") -> np.ndarray:
    """int_0^1 p_c(q) dq, where q is the part of the picture shown, most important pixels first, the rest blurred.
    https://arxiv.org/abs/1806.07421.

    The area under p as pixels are shown, most important first, over a blurred picture. The blur is the
    authors' (11 x 11, sigma 5 for 224 pixels), scaled with the picture; the integral by trapezoids.
    """
    start = background(trial.pictures, baseline)
    curve = _curve(trial, start, trial.pictures, steps)
    trial.curve("insertion", curve)
    return area(curve)


@metric("deletion", title="deletion", better=LOWER)
def deletion(trial: Trial, *, steps: int = STEPS, baseline: str = "zero") -> np.ndarray:
    """int_0^1 p_c(q) dq, where q is the part of the picture taken away, most important pixels first, zero in its place.
    https://arxiv.org/abs/1806.07421.

    The area under p as pixels are set to zero, most important first.
    """
    curve = _curve(trial, trial.pictures, background(trial.pictures, baseline), steps)
    trial.curve("deletion", curve)
    return area(curve)


def background(pictures: np.ndarray, baseline: str) -> np.ndarray:
    """What stands for an absent pixel, float32 `[N, C, H, W]`: `zero`, or the picture under a `blur`."""
    if baseline == "zero":
        return np.zeros_like(pictures)
    if baseline != "blur":
        raise InputError(f"baseline={baseline!r}; expected 'zero' or 'blur'")
    scale = min(pictures.shape[2:]) / 224
    side = max(3, 2 * round(5.5 * scale - 0.5) + 1)
    cv2 = import_cv2()
    backgrounds = np.empty_like(pictures)
    for picture, blurred in zip(pictures, backgrounds, strict=True):
        for channel, out in zip(picture, blurred, strict=True):
            out[:] = cv2.GaussianBlur(
                channel, (side, side), sigmaX=max(0.5, 5 * scale), borderType=cv2.BORDER_REFLECT_101
            )
    return backgrounds


def area(curve: np.ndarray) -> np.ndarray:
    """The integral over 0..1 of curves `[N, points]` with equally spaced points, by trapezoids."""
    return np.asarray((curve[:, 1:] + curve[:, :-1]).mean(axis=1) / 2)


def _curve(trial: Trial, before: np.ndarray, after: np.ndarray, steps: int) -> np.ndarray:
    """p_c as `before` turns into `after` pixel by pixel, float64 `[N, steps + 1]`."""
    pixels = trial.maps[0].size
    steps = max(1, min(steps, pixels))
    counts = np.rint(np.linspace(0, pixels, steps + 1)).astype(np.int64)
    rank = np.empty_like(trial.order)
    np.put_along_axis(rank, trial.order, np.arange(pixels)[None], axis=1)
    rank = rank.reshape(trial.maps.shape)

    def make(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows, step = np.divmod(np.arange(start, stop), steps + 1)
        done = rank[rows] < counts[step][:, None, None]
        return np.where(done[:, None], after[rows], before[rows]), rows

    return trial.probabilities(len(trial) * (steps + 1), make).reshape(len(trial), steps + 1)
