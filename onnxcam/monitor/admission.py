"""Admission control: sampling, a token bucket and a daily budget decide which rows are explained.

Nothing here locks: the queue calls it under its own lock.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol

import numpy as np

from onnxcam.errors import SettingError

DAY = 86400.0
# one part in RESERVE of rate and budget is reserved for the sample of confident predictions
RESERVE = 10
_PERIODS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0, "day": DAY}
_NUMBER = r"(\d+\.?\d*|\.\d+)"


class Clock(Protocol):
    """The source of time for the monitor."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    def time(self) -> float:
        """Return seconds since 1970, UTC."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()

    def time(self) -> float:
        """Return seconds since 1970, UTC."""
        return time.time()


class Rate(NamedTuple):
    """`amount` rows in every `period` seconds."""

    amount: float
    period: float

    @property
    def per_second(self) -> float:
        """Rows per second, averaged over a period."""
        return self.amount / self.period


def parse_rate(text: str | float | None) -> Rate | None:
    """Parse a rate such as `2/s`, `30/min`, `500/h`, `5000/day`, or a number per second; None means no limit.

    Raises:
        SettingError: not a rate.
    """
    if text is None:
        return None
    if isinstance(text, (int, float)) and not isinstance(text, bool) and 0 < text < math.inf:
        return Rate(float(text), 1.0)
    match = re.fullmatch(rf"\s*{_NUMBER}\s*/\s*([a-z]+)\s*", text.lower()) if isinstance(text, str) else None
    if match is None or match[2] not in _PERIODS or float(match[1]) <= 0:
        raise SettingError(
            f"rate={text!r}; expected such as '2/s', '30/min', '500/h', '5000/day', or None for no limit"
        )
    return Rate(float(match[1]), _PERIODS[match[2]])


class TokenBucket:
    """A token bucket, full at first: it gains `rate` tokens per second up to `burst`."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = burst
        self._updated: float | None = None

    def level(self, now: float) -> float:
        """Return the tokens available at this monotonic time."""
        if self._updated is not None and now > self._updated:
            self.tokens = min(self.burst, self.tokens + (now - self._updated) * self.rate)
        self._updated = now if self._updated is None else max(self._updated, now)
        return self.tokens

    def take(self, count: float) -> None:
        """Spend tokens, at most as many as `level` returned."""
        self.tokens -= count


class DailyBudget:
    """At most `daily` rows per UTC day; a clock that is set back does not renew the budget."""

    def __init__(self, daily: int) -> None:
        self.daily = daily
        self.unspent = daily
        self._day = -math.inf

    def left(self, now: float) -> int:
        """Return the rows left at this wall-clock time."""
        day = now // DAY
        if day > self._day:
            self._day, self.unspent = day, self.daily
        return self.unspent

    def take(self, count: int) -> None:
        """Spend rows, at most as many as `left` returned."""
        self.unspent -= count


class Admission(NamedTuple):
    """How many candidates of one kind are admitted, and how many the rate and the budget turned away."""

    admitted: int
    rate: int
    budget: int


@dataclass(frozen=True)
class Limits:
    """Settings of `RateLimiter`; None means no limit."""

    rate: Rate | None
    burst: float | None
    daily_budget: int | None
    baseline: bool


class RateLimiter:
    """Token bucket and daily budget, shared by uncertain rows and the baseline's sample of confident rows.

    A tenth of both is reserved for the baseline, so that a flood of uncertain rows cannot silence it; beyond that the
    baseline competes like any other row. What the baseline does not use of its share is not lost: only the last token
    of the bucket, and the unspent part of the reserved budget, are withheld from other rows.
    """

    def __init__(self, limits: Limits) -> None:
        self._bucket = self._baseline_bucket = None
        self._budget = self._baseline_budget = None
        self._reserved_tokens = 0
        if limits.rate is not None:
            burst = limits.burst if limits.burst is not None else max(1.0, limits.rate.amount)
            self._bucket = TokenBucket(limits.rate.per_second, burst)
            if limits.baseline and burst >= 2:
                self._reserved_tokens = 1
                self._baseline_bucket = TokenBucket(limits.rate.per_second / RESERVE, max(1.0, burst / RESERVE))
        if limits.daily_budget is not None:
            self._budget = DailyBudget(limits.daily_budget)
            if limits.baseline and limits.daily_budget >= RESERVE:
                self._baseline_budget = DailyBudget(limits.daily_budget // RESERVE)

    def admit(self, count: int, monotonic: float, wall: float, *, baseline: bool = False) -> Admission:
        """Return how many of `count` rows may pass now; nothing is spent yet."""
        passed = count
        if self._bucket is not None:
            passed = min(passed, _floor(self._tokens(self._bucket, monotonic, baseline)))
        rate = count - passed
        if self._budget is not None:
            passed = min(passed, self._left(self._budget, wall, baseline))
        return Admission(passed, rate, count - rate - passed)

    def spend(self, count: int, *, baseline: bool = False) -> None:
        """Spend what `admit` granted, or less where the queue had no room for all of it."""
        if self._bucket is not None:
            self._bucket.take(count)
            if baseline and self._baseline_bucket is not None:
                self._baseline_bucket.take(min(count, _floor(self._baseline_bucket.tokens)))
        if self._budget is not None:
            self._budget.take(count)
            if baseline and self._baseline_budget is not None:
                self._baseline_budget.take(min(count, self._baseline_budget.unspent))

    def _tokens(self, bucket: TokenBucket, now: float, baseline: bool) -> float:
        free = bucket.level(now) - self._reserved_tokens
        if not baseline or self._baseline_bucket is None:
            return free
        return max(free, min(bucket.level(now), self._baseline_bucket.level(now)))

    def _left(self, budget: DailyBudget, now: float, baseline: bool) -> int:
        left = budget.left(now)
        if self._baseline_budget is None:
            return left
        reserved = self._baseline_budget.left(now)
        return left if baseline else max(0, left - reserved)


class Sampler:
    """Bernoulli sampling: each row is selected independently with one probability."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = Random(seed)

    def sample(self, rows: np.ndarray, probability: float) -> np.ndarray:
        """Return the row numbers that are selected."""
        if probability >= 1.0 or not len(rows):
            return rows
        if probability <= 0.0:
            return rows[:0]
        draw = self._random.random
        return rows[[draw() < probability for _ in range(len(rows))]]


def count_fitting(sizes: Sequence[int], rows: int, room: int) -> int:
    """Return how many of the first `rows` sizes fit into `room` bytes, in order."""
    count = 0
    for size in sizes[:rows]:
        room -= size
        if room < 0:
            break
        count += 1
    return count


def _floor(tokens: float) -> int:
    # a rounding error below a whole token must not lose a row, or a steady rate would fall short
    return max(0, math.floor(tokens + 1e-9))
