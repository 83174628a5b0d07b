"""Whether prediction sets cover as many true classes as calibrated: a test that may be looked at after every feedback.

With n calibration pictures of which l = floor((n + 1) alpha) lie beyond the quantile, the true coverage is distributed
as Beta(n + 1 - l, l); so the chance that the next set misses, after m misses in t, is (l + m) / (n + 1 + t). Against
this stands a mixture of larger (or smaller) shares of misses. The ratio of both likelihoods is a martingale while
nothing has changed, and by Ville's inequality it ever exceeds 2 / rate on either side with a probability of at most
rate / 2, however often it is looked at (Shafer 2021, https://doi.org/10.1111/rssa.12647; for conformal prediction
https://arxiv.org/abs/1204.3251).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcam.network.calibration.intervals import miscovered, observed_coverage_interval

RATE = 0.01  # of false alarms, over all looks together
BELOW, ABOVE = "below", "above"
TOP, ALLOWED = "top", "allowed"  # what a set has that would be empty: the most likely class, or nothing
_SHARES = 24  # of each mixture
_BAND = 20_000  # pictures up to which the band is computed exactly
_CHUNK = 4096


@dataclass(frozen=True)
class Coverage:
    """The coverage of sets on pictures whose true class became known.

    Attributes:
        pictures, covered: their number, and those whose set has the true class.
        alpha, n: of the calibration: the share of sets that may miss, and its pictures.
        band: shares between which 95 % of coverages on so many pictures lie, while nothing has changed; for one look.
        alarm: `below` or `above` once the coverage has left what chance and the calibration allow; else None.
        since: number of pictures after which it had.
        evidence: how much likelier the pictures are if the coverage is lower, and if it is higher: the largest so far.
        rate: the probability of any alarm, ever, while nothing has changed, is at most this.
        at_least: whether sets may cover more than they were calibrated for, as those that are never empty: then only
            `below` is an alarm, and the band ends at 1.
    """

    pictures: int
    covered: int
    alpha: float
    n: int
    band: tuple[float, float] | None
    alarm: str | None
    since: int | None
    evidence: tuple[float, float]
    rate: float
    at_least: bool = False

    @property
    def coverage(self) -> float | None:
        """The share of sets with the true class; None without pictures."""
        return self.covered / self.pictures if self.pictures else None

    def describe(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "pictures": self.pictures,
            "covered": self.covered,
            "coverage": self.coverage,
            "expected": 1 - self.alpha,
            "at_least": self.at_least,
            "calibration_pictures": self.n,
            "band": None if self.band is None else list(self.band),
            "alarm": self.alarm,
            "alarm_after": self.since,
            "evidence": {BELOW: self.evidence[0], ABOVE: self.evidence[1]},
            "false_alarm_rate": self.rate,
        }

    def sentence(self) -> str:
        """The coverage, and what it says."""
        if self.coverage is None:
            return "coverage: no feedback yet"
        band = "" if self.band is None else f"; 95 % band {100 * self.band[0]:.1f} to {100 * self.band[1]:.1f} %"
        text = (
            f"coverage {100 * self.coverage:.1f} % of {self.pictures:,} pictures, calibrated for "
            f"{'at least ' if self.at_least else ''}{100 * (1 - self.alpha):g} %{band}"
        )
        if self.alarm is None:
            return f"{text}: no change is shown"
        what = "sets miss the true class too often" if self.alarm == BELOW else "sets are larger than they need to be"
        return (
            f"{text}: {self.alarm} its band since picture {self.since:,} ({what}; calibrate the file anew), a false "
            f"alarm with a probability of at most {100 * self.rate:g} %"
        )


def check(missed: np.ndarray, alpha: float, n: int, rate: float = RATE, *, at_least: bool = False) -> Coverage:
    """Test the coverage on pictures in their order, which must not depend on whether sets miss.

    Arguments:
        missed: bool `[T]`, whether each set missed the true class.
        alpha, n: of the calibration.
        rate: of false alarms.
        at_least: whether sets may cover more than calibrated for although nothing has changed, as those that are never
            empty do. Then only `below` is an alarm: fewer misses never are evidence for it.
    """
    missed = np.asarray(missed, bool)
    total, short = len(missed), miscovered(n, alpha)
    share = short / (n + 1)
    steps = (np.arange(_SHARES) + 0.5) / _SHARES
    mixtures = (share + (1 - share) * steps**2, share * steps)
    crossed: list[int | None] = [None, None]
    largest = [0.0, 0.0]
    misses = 0
    usual = 0.0
    for start in range(0, total, _CHUNK):
        part = missed[start : start + _CHUNK]
        before = misses + np.cumsum(part) - part
        times = start + np.arange(len(part))
        chance = (short + before) / (n + 1 + times)
        logs = usual + np.cumsum(np.log(np.where(part, chance, 1 - chance)))
        after = (misses + np.cumsum(part))[:, None]
        for side, shares in enumerate(mixtures):
            each = after * np.log(shares) + ((times + 1)[:, None] - after) * np.log1p(-shares)
            top = each.max(axis=1)
            evidence = top + np.log(np.exp(each - top[:, None]).mean(axis=1)) - logs
            largest[side] = max(largest[side], float(evidence.max()))
            beyond = np.flatnonzero(evidence >= math.log(2 / rate))
            if crossed[side] is None and len(beyond):
                crossed[side] = start + int(beyond[0]) + 1
        misses, usual = misses + int(part.sum()), float(logs[-1])
    alarms = [(picture, name) for picture, name in zip(crossed, (BELOW, ABOVE), strict=True) if picture is not None]
    if at_least:
        alarms = [alarm for alarm in alarms if alarm[1] == BELOW]
    since, alarm = min(alarms) if alarms else (None, None)
    band = observed_coverage_interval(n, alpha, total) if 0 < total <= _BAND else None
    if at_least and band is not None:
        band = band[0], 1.0
    low, high = (math.exp(min(value, 700.0)) for value in largest)
    return Coverage(total, total - misses, alpha, n, band, alarm, since, (low, high), rate, at_least)
