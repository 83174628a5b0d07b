"""Which rows are explained: sampling, a token bucket, a daily budget, and how full the queue may be.

Nothing here locks: the monitor calls it under its own lock.
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
# one part in so many of rate and budget is kept for the sample of confident predictions
RESERVE = 10
_PERIODS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0, "day": DAY}
_NUMBER = r"(\d+\.?\d*|\.\d+)"


class Clock(Protocol):
    """Where the monitor takes the time from."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def time(self) -> float:
        """Seconds since 1970, UTC."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()


class Rate(NamedTuple):
    """`amount` in every `period` seconds."""

    amount: float
    period: float

    @property
    def per_second(self) -> float:
        """Rows a second in the long run."""
        return self.amount / self.period


def parse_rate(text: str | float | None) -> Rate | None:
    """A rate from `2/s`, `30/min`, `500/h`, `5000/day`, or a number a second; None is no limit.

    Raises:
        SettingError: it is none of these.
    """
    if text is None:
        return None
    if isinstance(text, (int, float)) and not isinstance(text, bool) and 0 < text < math.inf:
        return Rate(float(text), 1.0)
    found = re.fullmatch(rf"\s*{_NUMBER}\s*/\s*([a-z]+)\s*", text.lower()) if isinstance(text, str) else None
    if found is None or found[2] not in _PERIODS or float(found[1]) <= 0:
        raise SettingError(
            f"rate={text!r}; expected such as '2/s', '30/min', '500/h', '5000/day', or None for no limit"
        )
    return Rate(float(found[1]), _PERIODS[found[2]])


class Bucket:
    """A token bucket: `rate` tokens a second, at most `burst` of them saved up, full at first."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = burst
        self._at: float | None = None

    def level(self, now: float) -> float:
        """Tokens there are at this monotonic time."""
        if self._at is not None and now > self._at:
            self.tokens = min(self.burst, self.tokens + (now - self._at) * self.rate)
        self._at = now if self._at is None else max(self._at, now)
        return self.tokens

    def take(self, count: float) -> None:
        """Spend tokens, as many as `level` showed at most."""
        self.tokens -= count


class Budget:
    """So many a day, days being those of UTC; a clock set back does not open a day again."""

    def __init__(self, daily: int) -> None:
        self.daily = daily
        self.unspent = daily
        self._day = -math.inf

    def left(self, now: float) -> int:
        """What remains at this wall-clock time."""
        day = now // DAY
        if day > self._day:
            self._day, self.unspent = day, self.daily
        return self.unspent

    def take(self, count: int) -> None:
        """Spend, as many as `left` showed at most."""
        self.unspent -= count


class Lane(NamedTuple):
    """How many of one lane's rows go on, and the gates at which the rest stopped."""

    admitted: int
    rate: int
    budget: int


@dataclass(frozen=True)
class Limits:
    """Settings of `Gates`; None is no limit."""

    rate: Rate | None
    burst: float | None
    daily_budget: int | None
    baseline: bool


class Gates:
    """Token bucket and daily budget, shared by unsure rows and the baseline's sample of confident ones.

    A tenth of both is the baseline's own, so that a flood of unsure rows cannot silence it; for what it takes beyond
    that it competes like any other row. What it leaves of its share is not lost: only the last token of the bucket
    (and the part of the budget it has not used yet) is kept back for it.
    """

    def __init__(self, limits: Limits) -> None:
        self._bucket = self._own_bucket = None
        self._budget = self._own_budget = None
        self._kept = 0
        if limits.rate is not None:
            burst = limits.burst if limits.burst is not None else max(1.0, limits.rate.amount)
            self._bucket = Bucket(limits.rate.per_second, burst)
            if limits.baseline and burst >= 2:
                self._kept = 1
                self._own_bucket = Bucket(limits.rate.per_second / RESERVE, max(1.0, burst / RESERVE))
        if limits.daily_budget is not None:
            self._budget = Budget(limits.daily_budget)
            if limits.baseline and limits.daily_budget >= RESERVE:
                self._own_budget = Budget(limits.daily_budget // RESERVE)

    def admit(self, count: int, monotonic: float, wall: float, *, baseline: bool = False) -> Lane:
        """How many of `count` rows may pass now; nothing is spent yet."""
        passed = count
        if self._bucket is not None:
            passed = min(passed, _floor(self._tokens(self._bucket, monotonic, baseline)))
        rate = count - passed
        if self._budget is not None:
            passed = min(passed, self._left(self._budget, wall, baseline))
        return Lane(passed, rate, count - rate - passed)

    def spend(self, count: int, *, baseline: bool = False) -> None:
        """Take what `admit` granted; fewer where the queue had no room for all."""
        if self._bucket is not None:
            self._bucket.take(count)
            if baseline and self._own_bucket is not None:
                self._own_bucket.take(min(count, _floor(self._own_bucket.tokens)))
        if self._budget is not None:
            self._budget.take(count)
            if baseline and self._own_budget is not None:
                self._own_budget.take(min(count, self._own_budget.unspent))

    def _tokens(self, bucket: Bucket, now: float, baseline: bool) -> float:
        free = bucket.level(now) - self._kept
        if not baseline or self._own_bucket is None:
            return free
        return max(free, min(bucket.level(now), self._own_bucket.level(now)))

    def _left(self, budget: Budget, now: float, baseline: bool) -> int:
        left = budget.left(now)
        if self._own_budget is None:
            return left
        own = self._own_budget.left(now)
        return left if baseline else max(0, left - own)


class Sampler:
    """Keeps each row with a probability, independently."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = Random(seed)

    def keep(self, rows: np.ndarray, probability: float) -> np.ndarray:
        """Those of the row numbers that are kept."""
        if probability >= 1.0 or not len(rows):
            return rows
        if probability <= 0.0:
            return rows[:0]
        draw = self._random.random
        return rows[[draw() < probability for _ in range(len(rows))]]


def fitting(sizes: Sequence[int], rows: int, room: int) -> int:
    """How many of the first `rows` sizes fit into `room` bytes, one after another."""
    count = 0
    for size in sizes[:rows]:
        room -= size
        if room < 0:
            break
        count += 1
    return count


def _floor(tokens: float) -> int:
    # a token that rounding left a hair short is a whole one, else a steady rate would lose rows
    return max(0, math.floor(tokens + 1e-9))
