"""The bounded queue between predictions and their explanation; it changes in single steps and never locks."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from onnxcam.monitor.accounting import RowCounts
from onnxcam.monitor.admission import Clock, Limits, RateLimiter, count_fitting
from onnxcam.monitor.atomic import Cell, Event, Receipt
from onnxcam.monitor.predictions import Row

ON_FULL = ("drop_newest", "drop_oldest")
_DROPPED = dict.fromkeys(("rate", "budget", "queue", "bytes", "closed", "sample"), 0)


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


class Ticket:
    """The rows of one call to the monitor, which are counted in one step, and the room that is reserved for them.

    Attributes:
        observed: how many rows, None until that is known; `confident` of them are neither uncertain nor sampled,
            others are `dropped` by reason.
        rows, bytes: the room that is reserved, if any. It is free again when the rows are counted, and when nothing
            refers to the ticket any more: an exception may end a call anywhere.
        receipt: of the last change to the queue for these rows.
    """

    __slots__ = ("__weakref__", "bytes", "confident", "dropped", "observed", "receipt", "rows")

    def __init__(self) -> None:
        self.observed: int | None = None
        self.confident = self.rows = self.bytes = 0
        self.dropped: dict[str, int] = {}
        self.receipt = Receipt()

    @property
    def counted(self) -> bool:
        """Whether the rows are counted, rather than room reserved for them at most."""
        version = self.receipt.version
        return version is not None and version.in_effect and all(ref() is not self for ref in version.value.reserved)


class Fifo(NamedTuple):
    """A queue that is never changed: `push` and `pop` return new ones. Nested pairs, oldest first and newest first."""

    front: Any = None
    back: Any = None

    def push(self, row: Row) -> Fifo:
        """Return a queue with one more row."""
        return Fifo(self.front, (row, self.back))

    def pop(self) -> tuple[Row, Fifo]:
        """Return the oldest row, and a queue without it."""
        front, back = self
        if front is None:
            while back is not None:
                row, back = back
                front = (row, front)
        return front[0], Fifo(front[1], back)

    def __bool__(self) -> bool:
        return self.front is not None or self.back is not None


class State(NamedTuple):
    """Everything about the queue that changes."""

    counts: RowCounts
    limiter: RateLimiter
    rows: Fifo = Fifo()
    running: tuple[Row, ...] = ()
    reserved: tuple[weakref.ref[Ticket], ...] = ()
    accepting: bool = True


class RowQueue:
    """A queue of rows for a worker. Only `take` blocks, and every method may interrupt every other."""

    def __init__(self, limits: Limits, capacity: Capacity, clock: Clock) -> None:
        self._limits = limits
        self._capacity = capacity
        self._clock = clock
        limiter = RateLimiter.of(limits, clock.monotonic(), clock.time())
        self._state = Cell(State(RowCounts(), limiter))
        self._wake = Event()
        self._finishing = False
        self.stopped = Event()
        self.urgent = Event()

    def fresh(self) -> RowQueue:
        """Return an empty queue with the same settings, for a forked child: the parent explains what is queued here."""
        return RowQueue(self._limits, self._capacity, self._clock)

    def admit(self, ticket: Ticket, sampled_out: int, groups: Sequence[Candidates]) -> list[int]:
        """Apply token bucket, daily budget and capacity to one batch; a batch of which no row passes is counted.

        Arguments:
            ticket: of the batch, its rows and the confident ones counted.
            sampled_out: uncertain rows that were not sampled.
            groups: the remaining rows.

        Returns:
            how many rows of each group to queue, from its first. Room for them is reserved; `add` or `refuse` them.
        """
        now = self._clock.monotonic()
        observed, numbers = ticket.observed or 0, [0]

        def change(state: State) -> State:
            numbers.clear()
            dropped = {**_DROPPED, "sample": sampled_out}
            reserved, rows, size = _reserved(state)
            rows_before, size_before = rows, size
            for sizes, baseline in groups:
                if not sizes or not state.accepting:
                    dropped["closed"] += len(sizes)
                    numbers.append(0)
                    continue
                admission = state.limiter.admit(len(sizes), now, baseline=baseline)
                if self._capacity.on_full == "drop_oldest":
                    state = self._evict(state, sizes, admission.admitted, rows, size)
                room = max(0, self._capacity.rows - state.counts.queued - rows)
                within_rows = min(admission.admitted, room)
                fit = count_fitting(sizes, within_rows, self._capacity.bytes - state.counts.bytes - size)
                if fit:
                    state = state._replace(limiter=state.limiter.spend(fit, now, baseline=baseline))
                dropped["rate"] += admission.rate
                dropped["budget"] += admission.budget
                dropped["queue"] += admission.admitted - within_rows
                dropped["bytes"] += within_rows - fit
                rows += fit
                size += sum(sizes[:fit])
                numbers.append(fit)
            if rows == rows_before:
                return state._replace(counts=state.counts.observe(observed, ticket.confident, dropped, 0, 0))
            ticket.rows, ticket.bytes, ticket.dropped = rows - rows_before, size - size_before, dropped
            return state._replace(reserved=(*reserved, weakref.ref(ticket)))

        self._state.update(change, ticket.receipt)
        return numbers

    def add(self, ticket: Ticket, rows: Sequence[Row], dropped: Mapping[str, int]) -> int:
        """Queue the copied rows of a batch and count all of it; `dropped` are admitted rows that were not copied.

        Returns:
            how many were queued: none if the monitor was closed in the meantime.
        """
        queued = 0

        def change(state: State) -> State:
            nonlocal queued
            counts = {**ticket.dropped}
            for reason, count in dropped.items():
                counts[reason] = counts.get(reason, 0) + count
            reserved, _, size = _reserved(state, ticket)
            queue, queued, total = state.rows, 0, 0
            for row in rows:
                if not state.accepting:
                    counts["closed"] += 1
                elif state.counts.bytes + size + total + row.size > self._capacity.bytes:
                    counts["bytes"] += 1  # the copy takes more than was reserved
                else:
                    queue, queued, total = queue.push(row), queued + 1, total + row.size
            observed = state.counts.observe(ticket.observed or 0, ticket.confident, counts, queued, total)
            return state._replace(counts=observed, rows=queue, reserved=reserved)

        self._state.update(change, ticket.receipt)
        self._wake.set()
        return queued

    def refuse(self, ticket: Ticket, rows: int, reason: str) -> None:
        """Count all rows of a batch as dropped, unless they are counted; `rows` if the ticket does not tell."""
        observed = rows if ticket.observed is None else ticket.observed
        if not ticket.counted:

            def change(state: State) -> State:
                reserved, _, _ = _reserved(state, ticket)
                return state._replace(
                    counts=state.counts.observe(observed, 0, {reason: observed}, 0, 0), reserved=reserved
                )

            self._state.update(change, ticket.receipt)
        ticket.receipt.version = None  # whoever keeps an exception keeps the ticket, and must not keep the queue
        self._wake.set()

    def take(self, timeout: float) -> Row | None:
        """Take the oldest row; None if none arrives within `timeout` seconds, or once the queue is stopped."""
        end = time.monotonic() + timeout
        while not self.stopped.is_set():
            row = self._start()
            if row is not None:
                return row
            if self._finishing:
                self.stop()
                return None
            self._wake.clear()
            if self._state.value.rows or self.stopped.is_set() or self._finishing:
                continue
            if not self._wake.wait(end - time.monotonic()):
                return None
        return None

    def explain(self, row: Row) -> None:
        """Count a taken row as explained and written."""
        self._finish(row, lambda counts: counts.explain(row.size, baseline=row.reason == "baseline"))

    def discard(self, row: Row, reason: str) -> None:
        """Count a taken row as dropped."""
        self._finish(row, lambda counts: counts.discard(reason, row.size))

    def fail(self, row: Row, cause: str) -> None:
        """Count a taken row as failed."""
        self._finish(row, lambda counts: counts.fail(cause, row.size))

    def running(self) -> tuple[Row, ...]:
        """Return the rows that are taken and not yet counted."""
        return self._state.value.running

    def idle(self) -> bool:
        """Return whether no row is queued or being explained."""
        counts = self._state.value.counts
        return counts.queued == 0 and counts.running == 0

    def hurry(self) -> None:
        """Tell the worker that a caller waits for the queue to drain: it does not back off."""
        if not self.urgent.is_set():
            self.urgent.set()
        self._wake.set()

    def relax(self) -> None:
        """Let the worker back off again; another caller that still waits calls `hurry` again."""
        if not self.stopped.is_set():
            self.urgent.clear()

    def close(self) -> None:
        """Accept no further rows; queued rows stay queued."""
        self._state.update(lambda state: state._replace(accepting=False))

    def finish(self) -> None:
        """Stop once no row is queued; those that are will be taken."""
        self._finishing = True
        self._wake.set()

    def stop(self) -> None:
        """Drop the queued rows and make `take` return None."""

        def change(state: State) -> State:
            counts, rows = state.counts, state.rows
            while rows:
                row, rows = rows.pop()
                counts = counts.drop("closed", row.size)
            return state._replace(counts=counts, rows=rows, accepting=False)

        self._state.update(change)
        self.stopped.set()
        self.urgent.set()
        self._wake.set()

    def counts(self) -> dict[str, Any]:
        """Return a consistent snapshot of the counts."""
        return self._state.value.counts.counts()

    def _start(self) -> Row | None:
        row: Row | None = None

        def change(state: State) -> State:
            nonlocal row
            row = None
            if not state.rows:
                return state
            row, rows = state.rows.pop()
            return state._replace(counts=state.counts.start(), rows=rows, running=(*state.running, row))

        self._state.update(change)
        return row

    def _finish(self, row: Row, count: Callable[[RowCounts], RowCounts]) -> None:
        def change(state: State) -> State:
            running = tuple(other for other in state.running if other is not row)
            if len(running) == len(state.running):  # it is counted
                return state
            return state._replace(counts=count(state.counts), running=running)

        self._state.update(change)

    def _evict(self, state: State, sizes: Sequence[int], count: int, rows: int, size: int) -> State:
        """Drop the oldest rows until as many of the new ones fit as the capacity allows at all.

        Arguments:
            rows, size: what is reserved.
        """
        count = count_fitting(sizes, min(count, self._capacity.rows), self._capacity.bytes)
        needed = sum(sizes[:count]) + size
        counts, queue = state.counts, state.rows
        while queue and (
            counts.queued + rows + count > self._capacity.rows or counts.bytes + needed > self._capacity.bytes
        ):
            row, queue = queue.pop()
            counts = counts.drop("evicted", row.size)
        return state._replace(counts=counts, rows=queue)


def _reserved(state: State, ticket: Ticket | None = None) -> tuple[tuple[weakref.ref[Ticket], ...], int, int]:
    """Return the reservations but for this one, without those of calls that are no more; their rows and bytes."""
    if not state.reserved:
        return (), 0, 0
    pairs = [(ref, other) for ref in state.reserved if (other := ref()) is not None and other is not ticket]
    return tuple(ref for ref, _ in pairs), sum(other.rows for _, other in pairs), sum(other.bytes for _, other in pairs)
