"""What tells the prepared pictures of two classifiers apart, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxcam.explain.explainer import Explainer
from onnxcam.network.layout import Layout

SAME = 1e-3  # relative distance of tensors that are one
_EXPLAINED = 0.05  # of the difference left by a change of colours: the change is the reason


def describe_inputs(old: Explainer, new: Explainer, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Name what differs between the prepared tensors of the same pictures.

    Arguments:
        old, new: the classifiers.
        rows: a tensor for each of them, in its own layout.
    """
    pairs = [_canonical(old, new, row) for row in rows]
    first, second = ([pair[side].astype(np.float64) for pair in pairs] for side in (0, 1))
    if first[0].shape != second[0].shape:
        sizes = ["x".join(str(side) for side in one[0].shape[::-1]) for one in (first, second)]
        return f"sizes {sizes[0]} and {sizes[1]}, width x height x channels"
    a, b = (np.stack([one.reshape(len(one), -1) for one in side], axis=1) for side in (first, second))
    channels = len(a)
    a, b = a.reshape(channels, -1), b.reshape(channels, -1)
    if channels == 3 and _distance(b[::-1], a) <= SAME:
        return "the colours are in the other order, RGB and BGR"
    plain, turned = _fitted(a, b), _fitted(a[::-1], b)
    if channels == 3 and turned is not None and (plain is None or turned[0] < plain[0] / 2) and turned[0] <= _EXPLAINED:
        return f"the colours are in the other order, RGB and BGR, and their values are {_affine(turned)}"
    if plain is not None and plain[0] <= _EXPLAINED:
        return f"the new values are {_affine(plain)}"
    named = _fields(old, new)
    return f"they differ in {named}" if named else "not by a change of scale: another resizing, crop or rotation"


def apart(old: Explainer, new: Explainer, row: tuple[np.ndarray, np.ndarray]) -> float:
    """The relative distance of a picture's two prepared tensors; infinite where their sizes differ."""
    first, second = (one.astype(np.float64) for one in _canonical(old, new, row))
    return _distance(second, first) if first.shape == second.shape else math.inf


def _canonical(old: Explainer, new: Explainer, row: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The tensors `[C, H, W]`."""
    first, second = (
        Layout.of(one.manifest["input"]).to_canonical(tensor[:1])[0]
        for one, tensor in zip((old, new), row, strict=True)
    )
    return first, second


def _distance(b: np.ndarray, a: np.ndarray) -> float:
    return float(np.linalg.norm(b - a)) / max(float(np.linalg.norm(a)), 1e-12)


def _fitted(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray] | None:
    """What is left of b, relative to its own deviation, after the best scale and shift of each channel of a."""
    first, second = a.mean(axis=1), b.mean(axis=1)
    x, y = a - first[:, None], b - second[:, None]
    power, deviation = (x**2).sum(axis=1), float(np.linalg.norm(y))
    if not power.all() or not deviation:
        return None
    scale = (x * y).sum(axis=1) / power
    return float(np.linalg.norm(y - scale[:, None] * x)) / deviation, scale, second - scale * first


def _affine(fitted: tuple[float, np.ndarray, np.ndarray]) -> str:
    _, scale, shift = fitted
    return f"the old times {_numbers(scale)} plus {_numbers(shift)}"


def _numbers(values: np.ndarray) -> str:
    same = float(np.ptp(values)) <= 1e-3 * float(np.abs(values).max())
    return f"{values[0]:.4g}" if same else str([float(f"{value:.4g}") for value in values])


def _fields(old: Explainer, new: Explainer) -> str:
    """The settings of the two preprocessings that differ."""
    if old.preprocess is None or new.preprocess is None:
        return ""
    a, b = old.preprocess.to_dict(), new.preprocess.to_dict()
    return ", ".join(f"{key} ({a.get(key)} and {b.get(key)})" for key in sorted({*a, *b}) if a.get(key) != b.get(key))
