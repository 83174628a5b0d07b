"""Admission control: sampling, a token bucket and a daily budget decide which rows are explained.

Nothing here is changed in place, but for the sampler's random numbers: the queue replaces all of it in one step.
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


class TokenBucket(NamedTuple):
    """A token bucket: it gains `rate` tokens per second up to `burst`. Never changed: `take` returns a new one."""

    rate: float
    burst: float
    tokens: float
    updated: float | None = None

    @classmethod
    def full(cls, rate: float, burst: float) -> TokenBucket:
        """Return a full bucket."""
        return cls(rate, burst, burst)

    def level(self, now: float) -> float:
        """Return the tokens available at this monotonic time."""
        if self.updated is None or now <= self.updated:
            return self.tokens
        return min(self.burst, self.tokens + (now - self.updated) * self.rate)

    def take(self, count: float, now: float) -> TokenBucket:
        """Spend tokens, at most as many as `level` returned."""
        updated = now if self.updated is None else max(self.updated, now)
        return TokenBucket(self.rate, self.burst, self.level(now) - count, updated)


class DailyBudget(NamedTuple):
    """At most `daily` rows per day. Never changed: `take` returns a new one.

    The first day ends at midnight UTC; every further one is 24 hours on the monotonic clock: a wall clock that is set
    forward or back neither renews nor withholds the budget.
    """

    daily: int
    unspent: int
    end: float  # of the day, monotonic

    @classmethod
    def of(cls, daily: int, monotonic: float, wall: float) -> DailyBudget:
        """Return an unspent budget; the wall clock tells when the first day ends."""
        return cls(daily, daily, monotonic + DAY - wall % DAY)

    def left(self, now: float) -> int:
        """Return the rows left at this monotonic time."""
        return self.unspent if now < self.end else self.daily

    def take(self, count: int, now: float) -> DailyBudget:
        """Spend rows, at most as many as `left` returned."""
        days = 0 if now < self.end else (now - self.end) // DAY + 1
        return DailyBudget(self.daily, self.left(now) - count, self.end + days * DAY)


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


class RateLimiter(NamedTuple):
    """Token bucket and daily budget, shared by uncertain rows and the baseline's sample of confident rows.

    A tenth of both is reserved for the baseline, so that a flood of uncertain rows cannot silence it; beyond that the
    baseline competes like any other row. What the baseline does not use of its share is not lost: only the last token
    of the bucket, and the unspent part of the reserved budget, are withheld from other rows.

    Never changed: `spend` returns a new one.
    """

    bucket: TokenBucket | None = None
    baseline_bucket: TokenBucket | None = None
    budget: DailyBudget | None = None
    baseline_budget: DailyBudget | None = None
    reserved_tokens: int = 0

    @classmethod
    def of(cls, limits: Limits, monotonic: float, wall: float) -> RateLimiter:
        """Return a limiter with nothing spent; the wall clock tells when the first day ends."""
        bucket = baseline_bucket = budget = baseline_budget = None
        reserved_tokens = 0
        if limits.rate is not None:
            burst = limits.burst if limits.burst is not None else max(1.0, limits.rate.amount)
            bucket = TokenBucket.full(limits.rate.per_second, burst)
            if limits.baseline and burst >= 2:
                reserved_tokens = 1
                baseline_bucket = TokenBucket.full(limits.rate.per_second / RESERVE, max(1.0, burst / RESERVE))
        if limits.daily_budget is not None:
            budget = DailyBudget.of(limits.daily_budget, monotonic, wall)
            if limits.baseline and limits.daily_budget >= RESERVE:
                baseline_budget = DailyBudget.of(limits.daily_budget // RESERVE, monotonic, wall)
        return cls(bucket, baseline_bucket, budget, baseline_budget, reserved_tokens)

    def admit(self, count: int, monotonic: float, *, baseline: bool = False) -> Admission:
        """Return how many of `count` rows may pass now; nothing is spent yet."""
        passed = count
        if self.bucket is not None:
            passed = min(passed, _floor(self._tokens(self.bucket, monotonic, baseline)))
        rate = count - passed
        if self.budget is not None:
            passed = min(passed, self._left(self.budget, monotonic, baseline))
        return Admission(passed, rate, count - rate - passed)

    def spend(self, count: int, monotonic: float, *, baseline: bool = False) -> RateLimiter:
        """Spend what `admit` granted, or less where the queue had no room for all of it."""
        bucket, baseline_bucket, budget, baseline_budget, reserved_tokens = self
        if bucket is not None:
            bucket = bucket.take(count, monotonic)
            if baseline and baseline_bucket is not None:
                share = min(count, _floor(baseline_bucket.level(monotonic)))
                baseline_bucket = baseline_bucket.take(share, monotonic)
        if budget is not None:
            budget = budget.take(count, monotonic)
            if baseline and baseline_budget is not None:
                share = min(count, baseline_budget.left(monotonic))
                baseline_budget = baseline_budget.take(share, monotonic)
        return RateLimiter(bucket, baseline_bucket, budget, baseline_budget, reserved_tokens)

    def _tokens(self, bucket: TokenBucket, now: float, baseline: bool) -> float:
        level = bucket.level(now)
        free = level - self.reserved_tokens
        if not baseline or self.baseline_bucket is None:
            return free
        return max(free, min(level, self.baseline_bucket.level(now)))

    def _left(self, budget: DailyBudget, now: float, baseline: bool) -> int:
        left = budget.left(now)
        if self.baseline_budget is None:
            return left
        reserved = self.baseline_budget.left(now)
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
