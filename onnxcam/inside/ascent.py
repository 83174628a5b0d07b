"""Gradient ascent: Adam on the parameters of a picture, whatever computes the value and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxcam.inside.parametrization import Canvas
from onnxcam.inside.penalty import Penalty
from onnxcam.inside.transformation import Transformation

# from a picture `[C, H, W]` of values 0 to 1: the value, and its gradient at the picture
Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]
Progress = Callable[[int, int], None]

FIRST, SECOND = 0.9, 0.999  # Adam's usual constants, https://arxiv.org/abs/1412.6980
SMALLEST = 1e-30  # keeps a gradient of zero from dividing by zero


class Adam:
    """Adam, upwards, on one array in place; its epsilon is the root mean square of the gradients.

        p += 2 · rate · m̂ / (sqrt v̂ + sqrt mean v̂)

    With the usual epsilon of 1e-8 every number moves by the learning rate at first, however small its gradient is:
    float noise decides the direction of many, and high frequencies fill the picture. Here a number whose gradient is of
    the usual size moves by the learning rate, and a smaller one less. On EfficientNet-Lite0 that reached 1.16 times as
    much (logit of "tabby" after 64 steps), and what another runtime rounds differently has less effect.

    Arguments:
        parameters: float32; `step` changes them.
        rate: the learning rate.
    """

    def __init__(self, parameters: np.ndarray, rate: float) -> None:
        self._parameters, self._rate = parameters, rate
        self._mean, self._square = np.zeros_like(parameters), np.zeros_like(parameters)
        self._work = np.empty_like(parameters)
        self._count = 0

    def step(self, gradient: np.ndarray) -> None:
        """Move the parameters along one gradient."""
        self._count += 1
        work = self._work
        self._mean *= np.float32(FIRST)
        np.multiply(gradient, np.float32(1 - FIRST), out=work)
        self._mean += work
        self._square *= np.float32(SECOND)
        np.multiply(gradient, gradient, out=work)
        work *= np.float32(1 - SECOND)
        self._square += work
        np.multiply(self._square, np.float32(1 / (1 - SECOND**self._count)), out=work)
        epsilon = np.sqrt(np.mean(work, dtype=np.float64)) + SMALLEST
        np.sqrt(work, out=work)
        work += np.float32(epsilon)
        np.divide(self._mean, work, out=work)
        work *= np.float32(2 * self._rate / (1 - FIRST**self._count))
        self._parameters += work


@dataclass(frozen=True, eq=False)
class Ascent:
    """What an ascent arrived at.

    Attributes:
        parameters: of the last step whose value was a number.
        best: of the step with the highest value, penalties subtracted.
        history: the value before each step, as it was transformed, float64 `[steps]`.
        interrupted: whether Ctrl-C ended it.
        failed: the step, counted from 0, whose value or gradient was not a number; None if there was none.
        gradients: whether any gradient was other than zero.
    """

    parameters: np.ndarray
    best: np.ndarray
    history: np.ndarray
    interrupted: bool
    failed: int | None
    gradients: bool


def ascend(
    evaluate: Evaluate,
    canvas: Canvas,
    start: np.ndarray,
    *,
    steps: int,
    rate: float,
    transformation: Transformation,
    penalty: Penalty,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Ascent:
    """Climb from parameters for a number of steps. Memory does not grow with them, but for one number a step.

    Ctrl-C ends the ascent and is no error, except before the first value.

    Arguments:
        evaluate: of a picture that has been transformed.
        start: parameters, unchanged.
        progress: called with (done, total); an exception it raises, other than KeyboardInterrupt, is passed on.
    """
    parameters = start.astype(np.float32).copy()
    adam = Adam(parameters, rate)
    history = np.full(steps, np.nan)
    best, best_value = parameters.copy(), -np.inf
    last = parameters.copy()
    done, interrupted, failed, moved = 0, False, None, False
    try:
        while done < steps:
            picture = canvas.picture(parameters)
            warp = transformation.draw(rng, (picture.shape[1], picture.shape[2]))
            value, gradient = evaluate(warp.apply(picture))
            cost, slope = penalty.value(picture)
            if not (np.isfinite(value) and np.isfinite(cost) and np.isfinite(gradient).all()):
                failed = done
                break
            gradient = warp.adjoint(gradient)
            moved = moved or bool(gradient.any())
            if slope is not None:
                gradient = gradient - slope
            change = canvas.adjoint(picture, gradient)
            history[done] = value
            np.copyto(last, parameters)
            if value - cost > best_value:
                best_value = value - cost
                np.copyto(best, parameters)
            done += 1
            adam.step(change)
            if progress is not None:
                progress(done, steps)
        else:
            np.copyto(last, parameters)
    except KeyboardInterrupt:
        if not done:
            raise
        interrupted = True
    return Ascent(last, best, history[:done].copy(), interrupted, failed, moved)
