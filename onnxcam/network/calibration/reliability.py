"""How far probabilities can be believed: reliability by bins, ECE, Brier score, likelihood, risk over coverage.

Of classes of which one is true, the confidence of the most likely one is compared with how often it is right; of
independent classes (`multilabel`), each class's probability with how often it is present.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcam.network.calibration.intervals import share_interval
from onnxcam.network.calibration.temperature import check_truth, tempered
from onnxcam.targets.readout import Readout

BINS = 15
_DRAWS, _SEED = 1000, 1234
_POINTS = 101  # of a curve
_LEAST = 1e-300  # a probability whose logarithm is taken


@dataclass(frozen=True)
class Bins:
    """Predictions in bins of equally many, by their probability; bins without any are left out.

    Attributes:
        counts: int64 `[bins]`.
        predicted: mean probability of each.
        observed: share that came true.
        low, high: 95 % interval of that share (Clopper and Pearson).
    """

    counts: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: sum of n_bin / n |observed - predicted|."""
        return float((self.counts * np.abs(self.observed - self.predicted)).sum() / max(1, self.counts.sum()))

    def describe(self) -> list[dict[str, Any]]:
        """The bins, for JSON."""
        columns = zip(self.counts, self.predicted, self.observed, self.low, self.high, strict=True)
        return [
            {"count": int(count), "predicted": float(p), "observed": float(share), "interval": [float(a), float(b)]}
            for count, p, share, a, b in columns
        ]


@dataclass(frozen=True)
class Reliability:
    """How far some probabilities can be believed.

    Attributes:
        n: number of pictures.
        bins: of equal mass.
        ece: expected calibration error of these bins. It is biased upwards: chance alone makes bins differ.
        ece_by_chance: mean and 95 % quantile of the ECE that perfectly calibrated probabilities of the same values
            would show on as many pictures.
        brier: mean over pictures of sum over classes (p - y)^2; of independent classes the mean over classes as well.
        nll: mean negative log-likelihood of the true classes, in nats.
        accuracy: share of predictions that are right; of independent classes at 0.5 each.
        aurc: area under the curve of risk over coverage: the mean share of wrong ones among the k surest, over all k.
        coverage, risk: that curve, at most 101 points.
    """

    n: int
    bins: Bins
    ece: float
    ece_by_chance: tuple[float, float]
    brier: float
    nll: float
    accuracy: float
    aurc: float
    coverage: np.ndarray
    risk: np.ndarray

    def describe(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "ece": self.ece,
            "ece_by_chance": {"mean": self.ece_by_chance[0], "quantile_95": self.ece_by_chance[1]},
            "brier": self.brier,
            "nll": self.nll,
            "aurc": self.aurc,
            "bins": self.bins.describe(),
            "risk_coverage": {"coverage": self.coverage.tolist(), "risk": self.risk.tolist()},
        }


def measure(
    scores: np.ndarray, truth: np.ndarray, readout: Readout, temperature: float = 1.0, bins: int = BINS
) -> Reliability:
    """Measure the probabilities at a temperature.

    Arguments:
        scores: the model's scores `[N, columns]`, finite.
        truth: true classes, as of `temperature.check_truth`.
        readout: the meaning of the scores.
        bins: how many.

    Raises:
        LabelsError, SettingError, InputError: as their names say.
    """
    p = tempered(scores, readout, temperature)
    classes = check_truth(truth, len(p), readout)
    present = classes if classes.ndim == 2 else np.eye(readout.size, dtype=bool)[classes]
    square = ((p - present) ** 2).sum(axis=1)
    if readout.independent:
        likely = np.where(present, p, 1 - p)
        nll = float(-np.log(np.maximum(likely, _LEAST)).sum(axis=1).mean())
        values, true = p.ravel(), present.ravel()
        surest, right = np.maximum(p, 1 - p).ravel(), ((p > 0.5) == present).ravel()
        square = square / readout.size
    else:
        nll = float(-np.log(np.maximum(p[present], _LEAST)).mean())
        surest = values = p.max(axis=1)
        right = true = present[np.arange(len(p)), p.argmax(axis=1)]
    table = equal_mass(values, true, bins)
    coverage, risk, area = risk_coverage(surest, ~right)
    return Reliability(
        len(p), table, table.error, _by_chance(values, bins), float(square.mean()), nll, float(right.mean()), area,
        coverage, risk,
    )  # fmt: skip


def equal_mass(values: np.ndarray, true: np.ndarray, bins: int = BINS) -> Bins:
    """Bins of equally many predictions, as of scikit-learn's `calibration_curve(strategy="quantile")`.

    Arguments:
        values: predicted probabilities `[N]`.
        true: whether each came true, bool `[N]`.
    """
    edges = np.percentile(values, 100 * np.linspace(0, 1, bins + 1))
    numbers = np.searchsorted(edges[1:-1], values)
    counts = np.bincount(numbers, minlength=bins)
    hits = np.bincount(numbers, true, bins)
    total = np.bincount(numbers, values, bins)
    some = counts > 0
    counts, hits, total = counts[some], hits[some], total[some]
    pairs = [share_interval(int(hit), int(count)) for hit, count in zip(hits, counts, strict=True)]
    low, high = np.array(pairs).reshape(-1, 2).T
    return Bins(counts, total / counts, hits / counts, low, high)


def risk_coverage(values: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The share of wrong predictions among the surest, over the share of all that these are; and the area below.

    Predictions of equal value are let through in random order; the curve is the mean over such orders.

    Arguments:
        values: how sure each is, `[N]`.
        wrong: bool `[N]`.

    Returns:
        coverage and risk, at most 101 points each; the mean of the risk over all N coverages.
    """
    n = len(values)
    _, group, counts = np.unique(-np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    errors = np.bincount(group, wrong, len(counts))
    # within a group of equal values errors come evenly
    cumulated = np.cumsum(np.repeat(errors / counts, counts))
    risk = cumulated / np.arange(1, n + 1)
    points = np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int))
    return (points + 1) / n, risk[points], float(risk.mean())


def _by_chance(values: np.ndarray, bins: int) -> tuple[float, float]:
    """Mean and 95 % quantile of the ECE of outcomes that are drawn with exactly these probabilities."""
    edges = np.percentile(values, 100 * np.linspace(0, 1, bins + 1))
    numbers = np.searchsorted(edges[1:-1], values)
    generator = np.random.default_rng(_SEED)
    total = np.bincount(numbers, values, bins)
    errors = [
        np.abs(np.bincount(numbers, generator.random(len(values)) < values, bins) - total).sum() / len(values)
        for _ in range(_DRAWS if len(values) <= 20_000 else _DRAWS // 10)
    ]
    return float(np.mean(errors)), float(np.quantile(errors, 0.95))
