"""The bounded queue between predictions and their explanation; every count changes under its one lock."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from onnxcam.monitor.accounting import RowCounts
from onnxcam.monitor.admission import Clock, Limits, RateLimiter, count_fitting
from onnxcam.monitor.predictions import Row

ON_FULL = ("drop_newest", "drop_oldest")


@dataclass(frozen=True)
class Capacity:
    """How many rows and bytes the queue takes, and which rows are dropped when it is full."""

    rows: int
    bytes: int
    on_full: str


class Candidates(NamedTuple):
    """Rows of one batch that are worth explaining: the bytes of each, and whether they are the baseline's sample."""

    sizes: Sequence[int]
    baseline: bool


class RowQueue:
    """A queue of rows for a worker. Only `take` blocks, and the lock is never held while data is copied."""

    def __init__(self, limits: Limits, capacity: Capacity, clock: Clock) -> None:
        self._limits = limits
        self._capacity = capacity
        self._clock = clock
        self._limiter = RateLimiter(limits)
        self._lock = threading.Lock()
        self._rows: deque[Row] = deque()
        self._counts = RowCounts()
        self._wake = threading.Event()
        self._accepting = True
        self.stopped = threading.Event()
        self.urgent = threading.Event()
        self._flushing = 0

    def fresh(self) -> RowQueue:
        """Return an empty queue with the same settings, for a forked child: the parent explains what is queued here."""
        return RowQueue(self._limits, self._capacity, self._clock)

    def admit(self, observed: int, confident: int, sampled_out: int, groups: Sequence[Candidates]) -> list[int]:
        """Apply token bucket, daily budget and capacity to one batch.

        Arguments:
            observed: rows of the batch; `confident` of them are neither uncertain nor sampled.
            sampled_out: uncertain rows that were not sampled.
            groups: the remaining rows.

        Returns:
            how many rows of each group to queue, from its first; the caller must `add` or `give_up` each of them.
        """
        monotonic, wall = self._clock.monotonic(), self._clock.time()
        dropped = dict.fromkeys(("rate", "budget", "queue", "bytes", "closed"), 0) | {"sample": sampled_out}
        counts, queued, size = [], 0, 0
        with self._lock:
            for sizes, baseline in groups:
                count = len(sizes)
                if not self._accepting:
                    dropped["closed"] += count
                    counts.append(0)
                    continue
                admission = self._limiter.admit(count, monotonic, wall, baseline=baseline)
                if self._capacity.on_full == "drop_oldest":
                    self._evict(sizes, admission.admitted, queued, size)
                room = max(0, self._capacity.rows - self._counts.queued - queued)
                within_rows = min(admission.admitted, room)
                fit = count_fitting(sizes, within_rows, self._capacity.bytes - self._counts.bytes - size)
                self._limiter.spend(fit, baseline=baseline)
                dropped["rate"] += admission.rate
                dropped["budget"] += admission.budget
                dropped["queue"] += admission.admitted - within_rows
                dropped["bytes"] += within_rows - fit
                queued += fit
                size += sum(sizes[:fit])
                counts.append(fit)
            self._counts.observe(observed, confident, dropped, queued, size)
        return counts

    def add(self, row: Row) -> bool:
        """Queue an admitted row; False if the monitor was closed in the meantime."""
        with self._lock:
            if not self._accepting:
                self._counts.drop("closed", row.size)
                return False
            self._rows.append(row)
        if not self._wake.is_set():
            self._wake.set()
        return True

    def give_up(self, reason: str, size: int) -> None:
        """Count an admitted row that could not be copied as dropped."""
        with self._lock:
            self._counts.drop(reason, size)

    def refuse(self, rows: int, reason: str) -> None:
        """Count a batch whose scores could not be evaluated as dropped."""
        with self._lock:
            self._counts.observe(rows, 0, {reason: rows}, 0, 0)

    def take(self, timeout: float) -> Row | None:
        """Take the oldest row; None if none arrives within `timeout` seconds, or once the queue is stopped."""
        for last in (False, True):
            with self._lock:
                if self.stopped.is_set():
                    return None
                if self._rows:
                    self._counts.start()
                    return self._rows.popleft()
                self._wake.clear()
            if last or timeout <= 0:
                return None
            self._wake.wait(timeout)
        return None

    def explain(self, row: Row) -> None:
        """Count a taken row as explained and written."""
        with self._lock:
            self._counts.explain(row.size, baseline=row.reason == "baseline")

    def discard(self, row: Row, reason: str) -> None:
        """Count a taken row as dropped."""
        with self._lock:
            self._counts.discard(reason, row.size)

    def fail(self, row: Row, cause: str) -> None:
        """Count a taken row as failed."""
        with self._lock:
            self._counts.fail(cause, row.size)

    def idle(self) -> bool:
        """Return whether no row is queued or being explained."""
        with self._lock:
            return self._counts.queued == 0 and self._counts.running == 0

    @contextlib.contextmanager
    def hurry(self) -> Iterator[None]:
        """Set `urgent` inside the block, where a caller waits for the queue to drain: the worker does not back off."""
        with self._lock:
            self._flushing += 1
            self.urgent.set()
        try:
            yield
        finally:
            with self._lock:
                self._flushing -= 1
                if not self._flushing and not self.stopped.is_set():
                    self.urgent.clear()

    def close(self) -> None:
        """Accept no further rows; queued rows stay queued."""
        with self._lock:
            self._accepting = False

    def stop(self) -> None:
        """Drop the queued rows and make `take` return None."""
        with self._lock:
            self._accepting = False
            while self._rows:
                self._counts.drop("closed", self._rows.popleft().size)
            self.stopped.set()
            self.urgent.set()
        self._wake.set()

    def counts(self) -> dict[str, Any]:
        """Return a consistent snapshot of the counts."""
        with self._lock:
            return self._counts.counts()

    def _evict(self, sizes: Sequence[int], count: int, queued: int, size: int) -> None:
        """Drop the oldest rows until as many of the new ones fit as the capacity allows at all."""
        count = count_fitting(sizes, min(count, self._capacity.rows), self._capacity.bytes)
        needed = sum(sizes[:count]) + size
        while self._rows and (
            self._counts.queued + queued + count > self._capacity.rows
            or self._counts.bytes + needed > self._capacity.bytes
        ):
            self._counts.drop("evicted", self._rows.popleft().size)
