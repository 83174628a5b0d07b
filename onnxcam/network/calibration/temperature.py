"""One temperature for the scores: the T that gives the true classes the highest likelihood.

The mean negative log-likelihood of softmax(s / T) is convex in 1 / T, so its one minimum is where the derivative
changes sign: found in float64 to the last bits (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxcam.errors import InputError, LabelsError, SettingError
from onnxcam.targets.readout import Readout

# bounds of a temperature: beyond them probabilities are one class's alone, or equal, in float32
LOWEST, HIGHEST = 1e-3, 1e3
_ROWS = 1024


@dataclass(frozen=True)
class Temperature:
    """A temperature, and what it changes.

    Attributes:
        value: T, between `LOWEST` and `HIGHEST`.
        before, after: mean negative log-likelihood of the true classes, in nats, at 1 and at T.
        bound: `lowest` or `highest` where the optimum is not between the bounds: scores that separate the classes
            perfectly want T = 0, scores that say nothing about them want T = infinity; else None.
    """

    value: float
    before: float
    after: float
    bound: str | None = None


def class_scores(scores: np.ndarray, readout: Readout) -> np.ndarray:
    """One score for each class, float64 `[N, size]`, whose softmax (of independent classes: sigmoid) is p.

    Arguments:
        scores: the model's scores `[N, columns]`, as `Explainer.run` returns them.
        readout: their meaning.

    Raises:
        SettingError: the scores are quantities.
        InputError: not as many columns as the readout has.
    """
    if readout.tabulated:
        raise SettingError(
            f"this model's scores are those of many candidates or cells (kind {readout.kind!r}): no picture has "
            "a class whose probability could be calibrated"
        )
    if readout.numeric:
        raise SettingError(
            f"this model's score is a quantity (kind {readout.kind!r}): there are no probabilities to calibrate, and "
            "no classes to make sets of"
        )
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or values.shape[1] != readout.columns:
        raise InputError(f"got scores of shape {list(values.shape)}; expected [N, {readout.columns}]")
    return np.concatenate([values - values, values], axis=1) if readout.signed else values


def tempered(scores: np.ndarray, readout: Readout, temperature: float = 1.0) -> np.ndarray:
    """Probabilities at a temperature, float64 `[N, size]`, from the model's scores `[N, columns]`.

    softmax(s / T); of a `probabilities` model softmax(log p / T), of independent classes sigmoid(s / T).
    """
    return class_probabilities(class_scores(scores, readout), readout, temperature)


def class_probabilities(values: np.ndarray, readout: Readout, temperature: float = 1.0) -> np.ndarray:
    """As `tempered`, from one score for each class."""
    with np.errstate(invalid="ignore", over="ignore"):
        if readout.independent:
            scaled = values / temperature
            raised = np.exp(-np.abs(scaled))
            return np.asarray(np.where(scaled >= 0, 1.0, raised) / (1.0 + raised))
        raised = np.exp((values - values.max(axis=1, keepdims=True)) / temperature)
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def check_truth(truth: np.ndarray, rows: int, readout: Readout) -> np.ndarray:
    """True classes as they are read here: int64 `[N]`, of independent classes bool `[N, size]`.

    Arguments:
        truth: indices, or of independent classes a row of zeros and ones for each picture (indices name one class).

    Raises:
        LabelsError: another number of rows, or no class of the model.
    """
    array = np.asarray(truth)
    if len(array) != rows or array.ndim not in (1, 2) or (array.ndim == 2 and not readout.independent):
        raise LabelsError(
            f"got true classes of shape {list(array.shape)} for {rows} pictures; expected one index for each picture"
            + (" or one row of zeros and ones" if readout.independent else "")
        )
    if array.ndim == 2:
        if array.shape[1] != readout.size or not np.isin(array, (0, 1)).all():
            raise LabelsError(
                f"got true classes of shape {list(array.shape)}; expected zeros and ones for {readout.size} classes"
            )
        return array.astype(bool)
    if array.dtype.kind not in "iu":
        raise LabelsError(f"got true classes of type {array.dtype}; expected indices")
    wrong = sorted({int(index) for index in array if not 0 <= index < readout.size})
    if wrong:
        raise LabelsError(f"the true class {wrong[0]} is none of the model's: expected 0 to {readout.size - 1}")
    indices = array.astype(np.int64)
    return indices[:, None] == np.arange(readout.size) if readout.independent else indices


def fit_temperature(scores: np.ndarray, truth: np.ndarray, readout: Readout) -> Temperature:
    """The temperature with the least mean negative log-likelihood.

    Of independent classes it is one for all of them, so that their order stays: the likelihood of every class's being
    present or absent, summed over the classes.

    Arguments:
        scores: `[N, columns]`, finite but for classes that are masked with -inf.
        truth: as of `check_truth`.

    Raises:
        SettingError, LabelsError: as their names say.
        InputError: no pictures, scores that are not finite, or a true class whose probability is 0.
    """
    values = class_scores(scores, readout)
    classes = check_truth(truth, len(values), readout)
    check_finite(values)
    likelihood = _independent(values, classes) if readout.independent else _exclusive(values, classes)
    low, high = 1 / HIGHEST, 1 / LOWEST
    bound = None
    if likelihood(low)[1] >= 0:
        inverse, bound = low, "highest"
    elif likelihood(high)[1] <= 0:
        inverse, bound = high, "lowest"
    else:
        inverse = _root(lambda beta: likelihood(beta)[1:], low, high)
    return Temperature(1 / inverse, likelihood(1.0)[0], likelihood(inverse)[0], bound)


def check_finite(values: np.ndarray) -> None:
    """Refuse scores that cannot be calibrated.

    Raises:
        InputError: no rows, NaN, +inf, or a row of -inf alone.
    """
    if not len(values):
        raise InputError("there are no scores to calibrate; give at least one picture")
    wrong = np.isnan(values).any(axis=1) | np.isposinf(values).any(axis=1) | np.isneginf(values).all(axis=1)
    if wrong.any():
        raise InputError(
            f"the scores of {int(wrong.sum())} of {len(values)} pictures are not finite (the first is number "
            f"{int(wrong.argmax())}): no temperature or set can be fitted to them"
        )


_Likelihood = Callable[[float], tuple[float, float, float]]


def _exclusive(values: np.ndarray, classes: np.ndarray) -> _Likelihood:
    """Mean negative log-likelihood at 1 / T, and its first and second derivative, of a softmax."""
    highest = values.max(axis=1)
    true_gap = values[np.arange(len(values)), classes] - highest
    if np.isneginf(true_gap).any():
        raise InputError(
            f"the true class of picture number {int(np.isneginf(true_gap).argmax())} has the probability 0 (a score of "
            "-inf): check the true classes, or leave the picture out"
        )

    def part(beta: float, rows: slice) -> np.ndarray:
        gaps = values[rows] - highest[rows, None]
        raised = np.exp(beta * gaps)
        total = raised.sum(axis=1)
        finite = np.where(np.isfinite(gaps), gaps, 0.0)
        raised *= finite
        mean = raised.sum(axis=1) / total
        raised *= finite
        square = raised.sum(axis=1) / total
        value = np.log(total) - beta * true_gap[rows]
        return np.array([value.sum(), (mean - true_gap[rows]).sum(), (square - mean * mean).sum()])

    return _mean(part, len(values))


def _independent(values: np.ndarray, present: np.ndarray) -> _Likelihood:
    """The same of sigmoids: log(1 + exp(-s)) of classes that are present, log(1 + exp(s)) of the others."""
    masked = np.isneginf(values)
    if (masked & present).any():
        raise InputError("a true class has the probability 0 (a score of -inf): check the true classes")

    def part(beta: float, rows: slice) -> np.ndarray:
        signed = np.where(masked[rows], -np.inf, np.where(present[rows], -values[rows], values[rows]))
        finite = np.where(masked[rows], 0.0, signed)
        scaled = beta * signed
        raised = np.exp(-np.abs(scaled))
        p = np.where(scaled >= 0, 1.0, raised) / (1.0 + raised)
        value = np.logaddexp(0.0, scaled)
        return np.array([value.sum(), (p * finite).sum(), (p * (1 - p) * finite * finite).sum()])

    return _mean(part, len(values))


def _mean(part: Callable[[float, slice], np.ndarray], n: int) -> _Likelihood:
    """The mean over rows of what `part` sums, a few rows at a time: of many classes not all fit into memory again."""

    def at(beta: float) -> tuple[float, float, float]:
        sums = sum(part(beta, slice(start, start + _ROWS)) for start in range(0, n, _ROWS))
        value, slope, curve = np.asarray(sums) / n
        return float(value), float(slope), float(curve)

    return at


def _root(derivatives: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """The zero of an increasing function between two bounds: Newton's steps, bisection where they leave the bracket."""
    point = min(max(1.0, low), high)
    for _ in range(200):
        slope, curve = derivatives(point)
        if slope == 0:
            return point
        low, high = (low, point) if slope > 0 else (point, high)
        following = point - slope / curve if curve > 0 else low
        if not low < following < high:
            following = (low * high) ** 0.5 if high > 4 * low else (low + high) / 2
        if abs(following - point) <= 1e-13 * point or high - low <= 1e-15 * high:
            return following
        point = following
    return point
