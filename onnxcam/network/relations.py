"""How the numbers of one value of a graph follow from those of another. Pure NumPy."""

from __future__ import annotations

import numpy as np

from onnxcam.network.score_facts import ScoreFacts

SIGMOID, SOFTMAX = "Sigmoid", "Softmax"
LOG_SIGMOID, LOG_SOFTMAX = "LogSigmoid", "LogSoftmax"
LOGARITHMS = (LOG_SIGMOID, LOG_SOFTMAX)
_BOUND = 0.95  # the share of its bound that the highest of many random values of a class reaches
_WHOLE, _EQUAL = 1e-3, 1e-5  # by which a bound, or a factor, differs from a whole number at most, relative


def compare(probabilities: np.ndarray, logits: np.ndarray, tolerance: float) -> tuple[str, float] | None:
    """By which operator, and multiplied by what, numbers follow from others; None if by none."""
    if probabilities.shape != logits.shape or not np.isfinite(logits).all() or not np.isfinite(probabilities).all():
        return None
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-logits))
    for scale in (1.0, 100.0):
        if np.abs(probabilities / scale - sigmoid).max() <= tolerance:
            return SIGMOID, scale
    if _close(probabilities, -np.logaddexp(0, -logits), tolerance):
        return LOG_SIGMOID, 1.0
    if logits.shape[1] < 2:
        return None
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if _close(probabilities, log_softmax, tolerance):
        return LOG_SOFTMAX, 1.0
    sums = probabilities.sum(axis=1)
    total = float(np.median(sums))
    if total > 0 and np.abs(probabilities / total - np.exp(log_softmax)).max() <= tolerance:
        return SOFTMAX, 1.0 if abs(total - 1) <= 1e-3 else total
    return None


def _close(values: np.ndarray, logarithms: np.ndarray, tolerance: float) -> bool:
    """Whether values are logarithms, which may be large, within a share of the largest."""
    return bool(np.abs(values - logarithms).max() <= tolerance * max(1.0, float(np.abs(logarithms).max())))


def factor(before: np.ndarray, after: np.ndarray, tolerance: float) -> float | None:
    """The positive number by which values were multiplied, None if they were not.

    Arguments:
        tolerance: by which they differ at most, before the multiplication.
    """
    square = float((before * before).sum())
    if before.shape != after.shape or not square > 0:
        return None
    ratio = float((before * after).sum()) / square
    if not ratio > 0 or np.abs(after / ratio - before).max() > tolerance:
        return None
    whole = float(np.rint(ratio))
    return whole if abs(ratio - whole) <= _EQUAL * ratio else ratio


def bound(table: np.ndarray) -> float | None:
    """The whole number that the values of every class come close to and do not exceed, None without one.

    Arguments:
        table: `[rows, K]` of random values, not negative.
    """
    highest = float(table.max())
    whole = float(np.rint(highest))
    if whole < 1 or abs(highest - whole) > _WHOLE * whole:
        return None
    return whole if (table.max(axis=0) >= _BOUND * whole).all() and (table.min(axis=0) <= whole / 2).all() else None


def is_distribution(facts: ScoreFacts) -> bool:
    """Whether rows are probabilities of one class each, or a multiple of them that one class can have alone.

    Two softmaxes side by side sum to 2, and no value is above 1.
    """
    total = facts.total
    if facts.columns < 2 or facts.lowest < 0 or total is None:
        return False
    return total in (1.0, 100.0) or facts.highest > 0.9 * total


def is_sorted(table: np.ndarray) -> bool:
    """Whether every row is in order from its highest value down, or from its lowest up."""
    steps = np.diff(table, axis=1)
    return bool(steps.any()) and (bool((steps <= 0).all()) or bool((steps >= 0).all()))
