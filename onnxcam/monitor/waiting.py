"""The bounded queue between predictions and their explanation; every count changes under its one lock."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from onnxcam.monitor.admission import Clock, Gates, Limits, fitting
from onnxcam.monitor.ledger import Ledger
from onnxcam.monitor.predictions import Row

ON_FULL = ("drop_newest", "drop_oldest")


@dataclass(frozen=True)
class Capacity:
    """How much may wait, and which rows go when that is too much."""

    rows: int
    bytes: int
    on_full: str


class Candidates(NamedTuple):
    """Rows of one batch that are worth explaining: the bytes of each, and whether they are the baseline's sample."""

    sizes: Sequence[int]
    baseline: bool


class Waiting:
    """Rows that wait for a worker. No method waits but `take`, and the lock is never held while anything is copied."""

    def __init__(self, limits: Limits, capacity: Capacity, clock: Clock) -> None:
        self._limits = limits
        self._capacity = capacity
        self._clock = clock
        self._gates = Gates(limits)
        self._lock = threading.Lock()
        self._rows: deque[Row] = deque()
        self._ledger = Ledger()
        self._wake = threading.Event()
        self._accepting = True
        self.stopped = threading.Event()
        self.hurried = threading.Event()
        self._hurrying = 0

    def fresh(self) -> Waiting:
        """An empty one with the same settings, for the child of a fork: what waits here is the parent's to explain."""
        return Waiting(self._limits, self._capacity, self._clock)

    def admit(self, seen: int, confident: int, sampled_out: int, lanes: Sequence[Candidates]) -> list[int]:
        """Decide over one batch: token bucket, daily budget, room in the queue.

        Arguments:
            seen: rows of the batch; `confident` of them are neither unsure nor sampled.
            sampled_out: unsure rows that the sample left out.
            lanes: the others.

        Returns:
            how many of each lane are to be queued, the first ones; each is owed a `put` or a `give_up`.
        """
        monotonic, wall = self._clock.monotonic(), self._clock.time()
        dropped = dict.fromkeys(("rate", "budget", "queue", "bytes", "closed"), 0) | {"sample": sampled_out}
        admitted, queued, size = [], 0, 0
        with self._lock:
            for sizes, baseline in lanes:
                count = len(sizes)
                if not self._accepting:
                    dropped["closed"] += count
                    admitted.append(0)
                    continue
                lane = self._gates.admit(count, monotonic, wall, baseline=baseline)
                if self._capacity.on_full == "drop_oldest":
                    self._evict(sizes, lane.admitted, queued, size)
                room = max(0, self._capacity.rows - self._ledger.queued - queued)
                few = min(lane.admitted, room)
                fit = fitting(sizes, few, self._capacity.bytes - self._ledger.bytes - size)
                self._gates.spend(fit, baseline=baseline)
                dropped["rate"] += lane.rate
                dropped["budget"] += lane.budget
                dropped["queue"] += lane.admitted - few
                dropped["bytes"] += few - fit
                queued += fit
                size += sum(sizes[:fit])
                admitted.append(fit)
            self._ledger.observe(seen, confident, dropped, queued, size)
        return admitted

    def put(self, row: Row) -> bool:
        """Queue an admitted row; False where the monitor was closed meanwhile."""
        with self._lock:
            if not self._accepting:
                self._ledger.drop("closed", row.size)
                return False
            self._rows.append(row)
        if not self._wake.is_set():
            self._wake.set()
        return True

    def give_up(self, reason: str, size: int) -> None:
        """An admitted row could not be copied."""
        with self._lock:
            self._ledger.drop(reason, size)

    def refuse(self, rows: int, reason: str) -> None:
        """Count a batch that could not even be judged."""
        with self._lock:
            self._ledger.observe(rows, 0, {reason: rows}, 0, 0)

    def take(self, timeout: float) -> Row | None:
        """The oldest row, now in hand; None where none came within `timeout` seconds, or once stopped."""
        for last in (False, True):
            with self._lock:
                if self.stopped.is_set():
                    return None
                if self._rows:
                    self._ledger.start()
                    return self._rows.popleft()
                self._wake.clear()
            if last or timeout <= 0:
                return None
            self._wake.wait(timeout)
        return None

    def explain(self, row: Row) -> None:
        """A row in hand is explained and written."""
        with self._lock:
            self._ledger.explain(row.size, baseline=row.reason == "baseline")

    def discard(self, row: Row, reason: str) -> None:
        """A row in hand is not worth explaining."""
        with self._lock:
            self._ledger.discard(reason, row.size)

    def fail(self, row: Row, cause: str) -> None:
        """A row in hand could not be explained or written."""
        with self._lock:
            self._ledger.fail(cause, row.size)

    def idle(self) -> bool:
        """Nothing waits and nothing is in hand."""
        with self._lock:
            return self._ledger.queued == 0 and self._ledger.running == 0

    @contextlib.contextmanager
    def hurry(self) -> Iterator[None]:
        """While within, somebody waits until nothing is left: `hurried` is set, and the worker takes no rest."""
        with self._lock:
            self._hurrying += 1
            self.hurried.set()
        try:
            yield
        finally:
            with self._lock:
                self._hurrying -= 1
                if not self._hurrying and not self.stopped.is_set():
                    self.hurried.clear()

    def close(self) -> None:
        """Accept nothing more; what waits still waits."""
        with self._lock:
            self._accepting = False

    def stop(self) -> None:
        """Drop what waits and let `take` return None."""
        with self._lock:
            self._accepting = False
            while self._rows:
                self._ledger.drop("closed", self._rows.popleft().size)
            self.stopped.set()
            self.hurried.set()
        self._wake.set()

    def counts(self) -> dict[str, Any]:
        """The ledger's counts, all of one moment."""
        with self._lock:
            return self._ledger.counts()

    def _evict(self, sizes: Sequence[int], wanted: int, queued: int, size: int) -> None:
        """Make room for as many of the new rows as can fit at all."""
        wanted = fitting(sizes, min(wanted, self._capacity.rows), self._capacity.bytes)
        needed = sum(sizes[:wanted]) + size
        while self._rows and (
            self._ledger.queued + queued + wanted > self._capacity.rows
            or self._ledger.bytes + needed > self._capacity.bytes
        ):
            self._ledger.drop("evicted", self._rows.popleft().size)
