"""Attributions of the input from gradients: one number per value of the picture.

Each is computed by the formula of its paper, with the conventions of captum, whose numbers the tests compare with.
What is explained is the view's objective F, a class's logit unless something else was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxcam.cam.buffer import Buffer
from onnxcam.cam.normal_samples import NormalSamples
from onnxcam.cam.registry import attribution
from onnxcam.cam.resize import resize
from onnxcam.cam.view import View
from onnxcam.errors import MethodError

Rule = Callable[[int], tuple[np.ndarray, np.ndarray]]


@attribution("saliency", single="plain")
def saliency(view: View) -> np.ndarray:
    """dF / dx.  https://arxiv.org/abs/1312.6034 (section 3); signed, its map takes the absolute value."""
    return view.input.gradients


@attribution("inputxgradient", single="plain")
def inputxgradient(view: View) -> np.ndarray:
    """x * dF / dx.  https://arxiv.org/abs/1605.01713 (section 3.2 compares with it)."""
    return np.asarray(view.input.gradients * view.input.activations)


@attribution("guided_backprop", single="guided")
def guided_backprop(view: View) -> np.ndarray:
    """dF / dx with what is negative held back at every ReLU.  https://arxiv.org/abs/1412.6806 (section 3.4).

    As everywhere, the rule of `Relu` alone is replaced: Clip (ReLU6), HardSwish, SiLU or GELU keep their gradient, so
    that for a network without a ReLU this is the saliency.
    """
    return view.input.guided


@attribution("guided_gradcam", layered=True)
def guided_gradcam(view: View, interpolation: str = "nearest") -> np.ndarray:
    """guided_backprop * ReLU(gradcam), resized to the picture.  https://arxiv.org/abs/1610.02391 (section 3.2).

    Both factors grow with the scores: where their product leaves the range of float32, gradcam's is divided by its
    maximum first.

    Arguments:
        interpolation: `nearest` as captum's default, or `bilinear` as in the paper.
    """
    if interpolation not in ("nearest", "bilinear"):
        raise MethodError(f"interpolation={interpolation!r}; expected 'nearest' or 'bilinear'")
    cam = np.maximum(view.map("gradcam"), 0)
    if view.window is not None:
        cam = view.window.place(cam, view.shape, view.shape, interpolation)
    else:
        cam = resize(cam, view.shape, interpolation)
    guided, peak = view.input.guided, cam.max(axis=(1, 2), keepdims=True)
    size = np.abs(guided).max(axis=(1, 2, 3)).astype(np.float64)[:, None, None] * peak
    outside = (size > 0) & ((size < 1e-30) | (size > 1e30))
    return np.asarray(guided * np.where(outside, cam / np.maximum(peak, np.finfo(np.float32).tiny), cam)[:, None])


@attribution("integrated_gradients", long=True)
def integrated_gradients(view: View, steps: int = 50, baseline: Any = 0.0, rule: str = "gausslegendre") -> np.ndarray:
    """(x - x') * integral of dF / dx along the straight line from x' to x.  https://arxiv.org/abs/1703.01365 (eq. 1).

    Arguments:
        steps: points of the line where the gradient is taken.
        baseline: x', in the units of the model's input: a number, one per channel, or an array `[C, H, W]` or
            `[N, C, H, W]`.
        rule: where the points lie and what they count, as captum has it: `gausslegendre`, `riemann_left`,
            `riemann_middle`, `riemann_right` or `riemann_trapezoid`.
    """
    if rule not in RULES:
        raise MethodError(f"rule={rule!r}; expected one of {', '.join(RULES)}")
    least = 1 if rule == "gausslegendre" else 2
    places, weights = RULES[rule](whole("steps", steps, least))
    whole_picture = view.input
    x = whole_picture.activations
    start = broadcast("baseline", baseline, x)
    way = x - start
    total = np.zeros(x.shape)
    parts, shares = places.astype(np.float32), weights.astype(np.float32)
    buffer, product, from_zero = Buffer(x.shape[1:]), np.empty(x.shape[1:], np.float32), not start.any()

    def make(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        rows, at = np.divmod(np.arange(first, last), steps)
        points = buffer.rows(last - first)
        for point, row, part in zip(points, rows, parts[at], strict=True):
            np.multiply(way[row], part, out=point)
            if not from_zero:
                point += start[row]
        return points, rows

    for first, last, gradients in whole_picture.differentiate(len(x) * steps, make):
        rows, at = np.divmod(np.arange(first, last), steps)
        for gradient, row, share in zip(gradients, rows, shares[at], strict=True):
            total[row] += np.multiply(gradient, share, out=product)
    return np.asarray(way * total, np.float32)


@attribution("smoothgrad", long=True)
def smoothgrad(view: View, samples: int = 25, stdev: float | None = None, absolute: bool = False) -> np.ndarray:
    """mean over noise e of dF / dx at x + e, e ~ N(0, stdev²).  https://arxiv.org/abs/1706.03825 (section 3).

    Every picture of a batch gets the same noise: its map does not depend on what else is in the batch.

    Arguments:
        samples: how many noisy copies.
        stdev: of the noise, in the units of the model's input as in captum; None for 0.15 of the picture's own range
            (maximum minus minimum), in the middle of what the paper advises.
        absolute: average absolute gradients, as captum's NoiseTunnel does over a Saliency with its default `abs=True`.
    """
    samples = whole("samples", samples, 1)
    if stdev is not None and not (np.isfinite(stdev) and stdev >= 0):
        raise MethodError(f"stdev={stdev!r}; expected a number of at least 0, or None")
    x = view.input.activations
    rows = len(x)
    span = x.max(axis=(1, 2, 3)) - x.min(axis=(1, 2, 3)) if stdev is None else None
    scale = np.full(rows, stdev, np.float32) if span is None else np.float32(0.15) * span
    total = np.zeros(x.shape)
    noise, buffer = NormalSamples(view.rng, x.shape[1:]), Buffer(x.shape[1:])

    def make(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        sample, row = np.divmod(np.arange(first, last), rows)
        noisy = buffer.rows(last - first)
        for one, s, r in zip(noisy, sample.tolist(), row.tolist(), strict=True):
            np.multiply(noise.sample(s), scale[r], out=one)
            one += x[r]
        return noisy, row

    for first, last, gradients in view.input.differentiate(rows * samples, make):
        for gradient, row in zip(gradients, range(first, last), strict=True):
            total[row % rows] += np.abs(gradient) if absolute else gradient
    return np.asarray(total / samples, np.float32)


@attribution("fullgrad")
def fullgrad(view: View) -> np.ndarray:
    """psi(x * dF/dx) + sum over layers and channels of psi(b * dF/db).  https://arxiv.org/abs/1905.00780 (eq. 5).

    psi takes the absolute value, brings each channel to 0..1 (minimum and maximum, as pytorch-grad-cam does) and
    resizes to the picture. b are the additive constants: biases of convolutions, what a BatchNormalization adds,
    constants added by themselves; those of linear layers belong to no place. Made for networks of convolutions. A
    saliency and no attribution: nothing in it is negative, and a pixel's number is shared equally by its channels.
    """
    total = np.zeros((len(view.scores), *view.shape))
    for first, last, parts in view.contributions():
        for part in parts:
            size = np.abs(part)
            size -= size.min(axis=(2, 3), keepdims=True)
            peak = size.max(axis=(2, 3), keepdims=True)
            # pytorch-grad-cam's 1e-7, less where all of a layer is small: the scores may be of any size
            small = np.float32(1e-7) * np.minimum(1, peak.max(axis=1, keepdims=True))
            size /= np.maximum(peak + small, np.finfo(np.float32).tiny)
            # resizing is linear: the sum of the channels may come first
            total[first:last] += resize(size.sum(axis=1), view.shape, "bilinear")
    channels = view.input.activations.shape[1]
    return np.repeat(np.asarray(total / channels, np.float32)[:, None], channels, axis=1)


def _legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    places, weights = np.polynomial.legendre.leggauss(steps)
    return 0.5 * (1 + places), 0.5 * weights


def _riemann(offset: float) -> Rule:
    return lambda steps: ((np.arange(steps) + offset) / steps, np.full(steps, 1 / steps))


def _trapezoid(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """As captum has it: the weights are those of `steps` intervals, though there is one less."""
    weights = np.full(steps, 1 / steps)
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, steps), weights


RULES: dict[str, Rule] = {
    "gausslegendre": _legendre,
    "riemann_left": _riemann(0.0),
    "riemann_middle": _riemann(0.5),
    "riemann_right": _riemann(1.0),
    "riemann_trapezoid": _trapezoid,
}


def whole(name: str, value: Any, least: int) -> int:
    """An option that counts something.

    Raises:
        MethodError: no whole number, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise MethodError(f"{name}={value!r}; expected a whole number of at least {least}")
    return int(value)


def broadcast(name: str, value: Any, x: np.ndarray) -> np.ndarray:
    """An option that replaces pictures `[N, C, H, W]`: a number, one per channel, `[C, H, W]` or `[N, C, H, W]`.

    Raises:
        MethodError: it does not fit, or is not finite.
    """
    array = np.asarray(value, np.float32)
    if array.ndim == 1 and len(array) == x.shape[1]:
        array = array[:, None, None]
    try:
        pictures = np.broadcast_to(array, x.shape)
    except ValueError:
        pictures = None
    if pictures is None or array.ndim in (1, 2) or not np.isfinite(array).all():
        raise MethodError(
            f"{name} of shape {list(array.shape)}; expected a finite number, {x.shape[1]} of them (one per channel), "
            f"or an array {list(x.shape[1:])} or {list(x.shape)}"
        )
    return np.asarray(pictures)
