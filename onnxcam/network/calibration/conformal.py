"""Prediction sets by split conformal prediction: LAC, APS and RAPS.

Papers compare a nonconformity score E of each class with its quantile q over the calibration pictures. Here its
complement 1 - E, the conformity, is compared with 1 - q: where a network is confident, E lies so close to 1 that a
cumulated sum loses it, and the probability mass that is left over does not.

    lac   E = 1 - p(class)                                    https://arxiv.org/abs/1609.00451
    aps   E = mass of the class and of all more likely ones   https://arxiv.org/abs/2006.02544
    raps  E = that of aps + lambda max(0, rank - k)           https://arxiv.org/abs/2009.14193

A class is in the set where E <= q. Nothing is drawn at random: with `draws` u (MAPIE, the papers) u p(class) is taken
from E, without them E holds the whole of p(class), and the sets are a little larger. A set may be empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcam.errors import SettingError
from onnxcam.network.calibration.intervals import check_alpha, miscovered, smallest
from onnxcam.network.calibration.temperature import class_probabilities, class_scores
from onnxcam.targets.readout import Readout

LAC, APS, RAPS = "lac", "aps", "raps"
SCORES = (LAC, APS, RAPS)
# values of lambda that the RAPS paper tries
PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)
# relative difference up to which a conformity counts as equal to its quantile
TIE = 1e-9


@dataclass(frozen=True)
class Rule:
    """How classes are ordered and cut off.

    Attributes:
        score: `lac`, `aps` or `raps`.
        temperature: of the probabilities that sets are made from.
        penalty: lambda of `raps`, for each rank beyond `k`.
        k: of `raps`, the number of ranks without a penalty.
        never_empty: whether the most likely class is in every set.
    """

    score: str = LAC
    temperature: float = 1.0
    penalty: float = 0.0
    k: int = 0
    never_empty: bool = False

    def penalties(self, size: int) -> np.ndarray:
        """lambda max(0, rank - k) of ranks 1 to `size`, float64 `[size]`."""
        ranks = np.arange(1, size + 1)
        return self.penalty * np.maximum(0, ranks - self.k) if self.score == RAPS else np.zeros(size)

    def limits(self, threshold: float, size: int, margin: float) -> np.ndarray:
        """The mass that less likely classes need to have for a rank to be inside, float64 `[size]`.

        Arguments:
            threshold: 1 - q.
            margin: relative difference up to which a mass counts as equal to its limit.
        """
        penalties = self.penalties(size)
        limits = threshold + penalties
        # a penalty hides the last digits of a small threshold
        return np.asarray(limits - margin * np.abs(limits) - 4 * np.finfo(np.float64).eps * penalties)


def conformity(scores: np.ndarray, readout: Readout, rule: Rule, draws: np.ndarray | None = None) -> np.ndarray:
    """1 - E of each class, float64 `[N, size]`.

    Arguments:
        scores: the model's scores `[N, columns]`.
        readout: their meaning.
        draws: u of each picture, from 0 to 1, `[N]`, for the randomised scores of the papers.

    Raises:
        SettingError: an unknown score, or one that does not apply to these scores.
    """
    check_score(rule.score, readout)
    values = class_scores(scores, readout)
    p = class_probabilities(values, readout, rule.temperature)
    if rule.score == LAC:
        return p
    order, left = _ranked(values, p, draws)
    result = np.empty_like(left)
    np.put_along_axis(result, order, left - rule.penalties(readout.size), axis=1)
    return result


def _ranked(values: np.ndarray, p: np.ndarray, draws: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Classes from the most likely one, and the mass that is left to less likely ones than each of these."""
    order = np.argsort(-values, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    left = np.zeros_like(ranked)
    left[:, :-1] = np.cumsum(ranked[:, :0:-1], axis=1)[:, ::-1]  # from the least likely one: no digits are lost
    return order, left if draws is None else left + np.asarray(draws, np.float64)[:, None] * ranked


def check_score(score: str, readout: Readout) -> None:
    """Refuse a score that does not exist or does not apply.

    Raises:
        SettingError: as said.
    """
    if score not in SCORES:
        raise SettingError(f"score={score!r}; expected one of {', '.join(SCORES)}")
    if readout.independent and score != LAC:
        raise SettingError(
            f"score={score!r} adds up the probabilities of classes of which one is true, and those of this model are "
            "independent (kind 'multilabel'); use 'lac'"
        )


def true_conformity(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The conformity of each picture's true class; of several true classes the least, of none +inf; float64 `[N]`.

    Arguments:
        values: of `conformity`.
        truth: of `temperature.check_truth`.
    """
    if truth.ndim == 2:
        return np.asarray(np.where(truth, values, np.inf).min(axis=1))
    return np.asarray(values[np.arange(len(values)), truth])


def threshold(true_values: np.ndarray, alpha: float) -> float:
    """1 - q: q is the ceil((n + 1)(1 - alpha))-th smallest nonconformity score of n pictures.

    Arguments:
        true_values: of `true_conformity`.

    Raises:
        SettingError: alpha is no share, or fewer pictures than `intervals.smallest(alpha)`.
    """
    check_alpha(alpha)
    n = len(true_values)
    short = miscovered(n, alpha)
    if short < 1:
        raise SettingError(
            f"{n:,} calibration pictures are too few for alpha={alpha:g}: at least {smallest(alpha):,} are needed, or "
            "a larger alpha"
        )
    return float(np.partition(true_values, short - 1)[short - 1])


def sets(
    scores: np.ndarray,
    readout: Readout,
    rule: Rule,
    threshold: float,
    draws: np.ndarray | None = None,
    *,
    margin: float = TIE,
) -> np.ndarray:
    """The classes of each prediction set, bool `[N, size]`.

    Classes with equal scores enter together. A row with a score that is NaN has an empty set.

    Arguments:
        scores, readout, draws: as in `conformity`.
        threshold: 1 - q, of `threshold`.
        margin: relative difference up to which a conformity counts as equal to its quantile.
    """
    check_score(rule.score, readout)
    values = class_scores(scores, readout)
    p = class_probabilities(values, readout, rule.temperature)
    if rule.score == LAC:
        inside = p >= threshold - margin * abs(threshold)
    else:
        order, left = _ranked(values, p, draws)
        ranked = np.take_along_axis(values, order, axis=1)
        within = left >= rule.limits(threshold, readout.size, margin)
        inside = values >= np.where(within, ranked, np.inf).min(axis=1, keepdims=True)
    if rule.never_empty:
        inside |= values == values.max(axis=1, keepdims=True)
    return np.asarray(inside)


def covered(inside: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Whether each set contains its picture's true class, or all of them; bool `[N]`."""
    if truth.ndim == 2:
        return np.asarray((inside | ~truth).all(axis=1))
    return np.asarray(inside[np.arange(len(inside)), truth])


def mean_size(inside: np.ndarray) -> float:
    """The mean number of classes in a set; an empty one counts as one class, as it decides nothing."""
    return float(np.maximum(1, inside.sum(axis=1)).mean())


def choose(
    scores: np.ndarray,
    truth: np.ndarray,
    readout: Readout,
    alpha: float,
    rule: Rule,
    *,
    penalties: Sequence[float] | None = None,
    k: int | None = None,
    temperatures: Sequence[float] | None = None,
) -> Rule:
    """Choose what a rule leaves open, on pictures that the quantile is not taken of.

    k is the ceil((m + 1)(1 - alpha))-th smallest rank of the true class among the m pictures; lambda and temperature
    are those with the smallest `mean_size` at the quantile of the same pictures, the first of equals.

    Arguments:
        penalties: lambdas to try; None for the rule's own.
        k: the number of ranks without a penalty; None to choose it.
        temperatures: to try; None for the rule's own.

    Raises:
        SettingError: too few pictures for alpha.
    """
    values = class_scores(scores, readout)
    if rule.score == RAPS and k is None:
        ranks = (values > values[np.arange(len(values)), truth][:, None]).sum(axis=1) + 1
        k = int(-threshold(-ranks.astype(np.float64), alpha))
    trials = [
        replace(rule, penalty=penalty, k=rule.k if k is None else k, temperature=temperature)
        for temperature in (temperatures or [rule.temperature])
        for penalty in (penalties or [rule.penalty])
    ]
    sizes = []
    for trial in trials:
        limit = threshold(true_conformity(conformity(scores, readout, trial), truth), alpha)
        sizes.append(mean_size(sets(scores, readout, trial, limit)))
    return trials[int(np.argmin(np.round(sizes, 9)))]
