"""Deleting what matters must hurt the prediction soon; inserting it must bring the prediction about soon."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from onnxcam.errors import InputError
from onnxcam.evaluation.registry import HIGHER, LOWER, metric
from onnxcam.evaluation.trial import Trial, digest
from onnxcam.image.opencv import import_cv2

STEPS = 32


@metric("insertion", title="insertion", better=HIGHER)
def insertion(trial: Trial, *, steps: int = STEPS, baseline: str = "blur") -> np.ndarray:
    """int_0^1 p_c(q) dq, where q is the part of the picture shown, most important pixels first, the rest blurred.
    https://arxiv.org/abs/1806.07421.

    The area under p as pixels are shown, most important first, over a blurred picture. The blur is the
    authors' (11 x 11, sigma 5 for 224 pixels), scaled with the picture; the integral by trapezoids.
    """
    return _area(trial, "insertion", steps, baseline)


@metric("deletion", title="deletion", better=LOWER)
def deletion(trial: Trial, *, steps: int = STEPS, baseline: str = "zero") -> np.ndarray:
    """int_0^1 p_c(q) dq, where q is the part of the picture taken away, most important pixels first, zero in its place.
    https://arxiv.org/abs/1806.07421.

    The area under p as pixels are set to zero, most important first.
    """
    return _area(trial, "deletion", steps, baseline)


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


def _area(trial: Trial, name: str, steps: int, baseline: str) -> np.ndarray:
    """The area under p_c as pixels are shown (insertion) or taken away (deletion), float64 `[N]`."""
    if baseline not in trial.runs.backgrounds:
        trial.runs.backgrounds[baseline] = background(trial.pictures, baseline)
    absent = trial.runs.backgrounds[baseline]
    pixels = trial.maps[0].size
    steps = max(1, min(steps, pixels))
    counts = np.rint(np.linspace(0, pixels, steps + 1)).astype(np.int64)

    def compute(points: np.ndarray) -> np.ndarray:
        rows = np.repeat(np.arange(len(points)), points.shape[1])
        changed = counts[points.ravel()]

        def hidden(place: int) -> np.ndarray:
            first = trial.rank[rows[place]] < changed[place]
            return np.asarray(first if name == "deletion" else ~first)

        def key(place: int) -> Hashable:
            mask = hidden(place)
            return (baseline, digest(mask)) if mask.any() else "picture"

        def make(places: np.ndarray) -> np.ndarray:
            of_rows = [(hidden(place), rows[place]) for place in places]
            return np.stack([np.where(mask, absent[row], trial.pictures[row]) for mask, row in of_rows])

        values = trial.shared([key(place) for place in range(len(rows))], rows, make)
        return values.reshape(points.shape)

    curve, sample = trial.points(name, steps + 1, 1 / steps, compute)
    if sample is not None:
        trial.samples[name] = sample
    trial.curve(name, curve)
    return area(curve)
