"""What tells the prepared pictures of two classifiers apart, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcam.explain.explainer import Explainer
from onnxcam.network.layout import Layout

_SAME = 1e-3  # relative distance of tensors that are one
_EXPLAINED = 0.05  # of the difference left by a change of colours: the change is the reason


def describe_inputs(old: Explainer, new: Explainer, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """Name what differs between the prepared tensors of the same pictures.

    Arguments:
        old, new: the classifiers.
        rows: a tensor for each of them, in its own layout.
    """
    layouts = [Layout.of(one.manifest["input"]) for one in (old, new)]
    pairs = [(layouts[0].to_canonical(a[:1])[0], layouts[1].to_canonical(b[:1])[0]) for a, b in rows]
    first, second = ([pair[side].astype(np.float64) for pair in pairs] for side in (0, 1))
    if first[0].shape != second[0].shape:
        sizes = ["x".join(str(side) for side in one[0].shape[::-1]) for one in (first, second)]
        return f"sizes {sizes[0]} and {sizes[1]}, width x height x channels"
    a, b = (np.stack([one.reshape(len(one), -1) for one in side], axis=1) for side in (first, second))
    channels = len(a)
    a, b = a.reshape(channels, -1), b.reshape(channels, -1)
    if channels == 3 and _distance(b[::-1], a) <= _SAME:
        return "the colours are in the other order, RGB and BGR"
    plain, turned = _fitted(a, b), _fitted(a[::-1], b)
    if channels == 3 and turned is not None and (plain is None or turned[0] < plain[0] / 2) and turned[0] <= _EXPLAINED:
        return f"the colours are in the other order, RGB and BGR, and their values are {_affine(turned)}"
    if plain is not None and plain[0] <= _EXPLAINED:
        return f"the new values are {_affine(plain)}"
    named = _fields(old, new)
    return f"they differ in {named}" if named else "not by a change of scale: another resizing, crop or rotation"


def _distance(b: np.ndarray, a: np.ndarray) -> float:
    return float(np.linalg.norm(b - a) / max(np.linalg.norm(a), 1e-12))


def _fitted(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray] | None:
    """What is left of b, relative to its own deviation, after the best scale and shift of each channel of a."""
    means = a.mean(axis=1, keepdims=True), b.mean(axis=1, keepdims=True)
    centred = a - means[0], b - means[1]
    power = (centred[0] ** 2).sum(axis=1)
    if not power.all():
        return None
    scale = (centred[0] * centred[1]).sum(axis=1) / power
    left = centred[1] - scale[:, None] * centred[0]
    deviation = np.linalg.norm(centred[1])
    if not deviation:
        return None
    return float(np.linalg.norm(left) / deviation), scale, (means[1][:, 0] - scale * means[0][:, 0])


def _affine(fitted: tuple[float, np.ndarray, np.ndarray]) -> str:
    _, scale, shift = fitted
    return f"the old times {_numbers(scale)} plus {_numbers(shift)}"


def _numbers(values: np.ndarray) -> str:
    return (
        f"{values[0]:.4g}"
        if np.ptp(values) <= 1e-3 * np.abs(values).max()
        else str([float(f"{v:.4g}") for v in values])
    )


def _fields(old: Explainer, new: Explainer) -> str:
    """The settings of the two preprocessings that differ."""
    if old.preprocess is None or new.preprocess is None:
        return ""
    a, b = old.preprocess.to_dict(), new.preprocess.to_dict()
    return ", ".join(f"{key} ({a.get(key)} and {b.get(key)})" for key in sorted({*a, *b}) if a.get(key) != b.get(key))
