"""Which predictions may be let through so that at most a share of them is wrong: selective prediction with a guarantee.

Geifman and El-Yaniv, Selective classification for deep neural networks, https://arxiv.org/abs/1705.08500, pose the
problem and bound the risk by the binomial tail. Here thresholds are tested as in Angelopoulos et al., Learn then Test,
https://arxiv.org/abs/2110.01052, by fixed sequence testing with several starts (the fallback procedure of Wiens and
Dmitrienko): candidate thresholds are fixed beforehand, in falling order; each start brings an equal part of the level
1 - confidence, and a threshold that passes hands what it was tested at to the next. The probability that any threshold
which passes has a higher risk than stated is at most 1 - confidence, whatever the distribution of the pictures and
however the risk depends on the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcam.errors import SettingError
from onnxcam.network.calibration.intervals import beta_cdf, share_interval

STARTS = (0.9999, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5)
_STEP, _LOWEST = 0.05, 0.02  # of candidates between the starts, in log-odds; the last candidate


@dataclass(frozen=True)
class Guarantee:
    """A threshold, and what it guarantees.

    Attributes:
        max: the largest share of wrong predictions among those let through.
        confidence: the probability, over draws of the pictures, with which that holds.
        by: the quantity that is compared.
        threshold: predictions are let through at or above it.
        n, accepted, errors: pictures, those of them that it lets through, and the wrong ones among these.
    """

    max: float
    confidence: float
    by: str
    threshold: float
    n: int
    accepted: int
    errors: int

    @property
    def coverage(self) -> float:
        """The share of pictures that is let through."""
        return self.accepted / self.n

    def describe(self) -> dict[str, Any]:
        """The manifest's `calibration.risk`."""
        low, high = share_interval(self.accepted, self.n)
        return {
            "max": self.max,
            "confidence": self.confidence,
            "by": self.by,
            "threshold": self.threshold,
            "coverage": self.coverage,
            "coverage_interval": [low, high],
            "n": self.n,
            "accepted": self.accepted,
            "errors": self.errors,
        }


def fewest(max_risk: float, confidence: float) -> int:
    """How many predictions without an error it takes at a start: the smallest m with (1 - max_risk)^m <= its level."""
    level = (1 - confidence) / len(STARTS)
    return math.ceil(math.log(level) / math.log1p(-max_risk) - 1e-9)


def guarantee(
    values: np.ndarray, wrong: np.ndarray, max_risk: float, confidence: float = 0.95, by: str = "confidence"
) -> Guarantee:
    """Find the threshold that lets most predictions through with at most a share `max_risk` of them wrong.

    Arguments:
        values: of the quantity, 0 to 1, `[N]`; larger is surer. It must not have been fitted to these pictures.
        wrong: bool `[N]`, which predictions are wrong.
        max_risk: the share, above 0 and below 1.
        confidence: the probability with which it holds, above 0 and below 1.
        by: name of the quantity.

    Raises:
        SettingError: too few pictures, or too many errors, to show it at any threshold.
    """
    for name, value in (("max_risk", max_risk), ("confidence", confidence)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise SettingError(f"{name}={value!r}; expected a share above 0 and below 1, such as 0.01 or 0.95")
    values, wrong = np.asarray(values, np.float64), np.asarray(wrong, bool)
    needed = fewest(max_risk, confidence)
    promise = f"at most {_percent(max_risk)} wrong with {_percent(confidence)} confidence"
    if len(values) < needed:
        raise SettingError(
            f"{promise} takes {needed:,} predictions that are let through without an error, or more with a few; got "
            f"{len(values):,} pictures: add some, or allow a larger risk"
        )
    best: Guarantee | None = None
    nearest = (1.0, 1.0, 0, 0)
    level = 0.0
    for threshold, start in _candidates():
        passing = values >= threshold
        accepted, errors = int(passing.sum()), int((passing & wrong).sum())
        level += (1 - confidence) / len(STARTS) if start else 0.0
        if level == 0.0 or accepted == 0:
            level = 0.0
            continue
        evidence = 1.0 if errors > max_risk * accepted else _at_most(errors, accepted, max_risk)
        if evidence <= level:
            best = Guarantee(max_risk, confidence, by, threshold, len(values), accepted, errors)
        else:
            level = 0.0
        nearest = min(nearest, (evidence, errors / accepted, accepted, errors))
    if best is None:
        accepted, errors = nearest[2:]
        raise SettingError(
            f"{promise} cannot be shown at any threshold: at the most promising one, {errors:,} of the {accepted:,} "
            f"that are let through are wrong; it takes {needed:,} without an error, or more with a few: add pictures, "
            "or allow a larger risk"
        )
    return best


def _candidates() -> list[tuple[float, bool]]:
    """Thresholds in falling order, and whether each is a start; rounded, so that they read well."""
    high, low = (math.log(c / (1 - c)) for c in (STARTS[0], _LOWEST))
    between = [1 / (1 + math.exp(-(high - _STEP * step))) for step in range(int((high - low) / _STEP) + 1)]
    every = {round(c, 6) for c in between} | set(STARTS)
    return [(c, c in STARTS) for c in sorted(every, reverse=True)]


def _at_most(count: int, trials: int, share: float) -> float:
    """The probability of at most `count` of `trials`, which are independent and have a probability of `share` each."""
    return 1.0 if count >= trials else beta_cdf(1 - share, trials - count, count + 1)


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"
