"""Rows per run chosen by measurement: the first runs that are made anyway are timed, and none is made for it.

How many rows a run should have depends on the graph, the machine and the provider: on two cores 25 gradients of
MobileNetV2 cost 131 forward passes in runs of four rows and 77 in runs of one, while the graph behind the last
convolution of VGG-16, whose weights are read once per run, gains up to 64 rows.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

_TURNS = 3  # runs of either number of rows before more rows are given up, and _MORE before a small gain counts
_MORE = 7
_GAIN = 0.97  # of the time per row: what more rows must save, for they also take memory
_LOSS = 1.25  # of the time per row: more rows are given up early
_LEAP = 0.6  # a gain as large as this counts at once, and four times as many rows are next
_LEAST = 1e-9  # seconds: a clock may stand still
_FAILURES = 2  # numbers of rows in succession that do not pay

_choices: weakref.WeakSet[RowChoice] = weakref.WeakSet()


class _Size:
    """A number of rows, and the best time per row of the runs that had it."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.started = self.ended = 0
        self.seconds = float("inf")

    def record(self, seconds: float) -> None:
        self.ended += 1
        self.seconds = min(self.seconds, max(seconds, _LEAST) / self.rows)


class Rows(Protocol):
    """Rows per run: fixed, or chosen by the times of the runs."""

    def next(self, remaining: int) -> int:
        """Rows of the next run, of `remaining` that are still to be run."""

    def record(self, rows: int, seconds: float) -> None:
        """Record the duration of a run."""

    def fail(self, rows: int) -> bool:
        """Record that a run failed, perhaps for memory; return whether fewer rows are to be tried."""


class FixedRows:
    """Rows per run that do not depend on a clock."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def next(self, remaining: int) -> int:
        """The fixed number; the caller pads the last run or cuts it off."""
        return self._rows

    def record(self, rows: int, seconds: float) -> None:
        """Nothing is compared."""

    def fail(self, rows: int) -> bool:
        """A fixed number stays."""
        return False


class RowChoice:
    """Rows per run of one session, from the times of its runs. Thread-safe.

    The best number so far and the next larger one take turns, so that a machine that becomes slower in between favours
    neither; the best of a few runs of each is compared. It begins with one row, and ends where two numbers in
    succession do not pay.

    Arguments:
        most: rows per run at most.
    """

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._lock = threading.Lock()
        self._best = _Size(1)
        self._candidate: _Size | None = None
        self._failures = 0
        self._try(2)
        _choices.add(self)

    @property
    def settled(self) -> int | None:
        """The number of rows that was chosen, None while runs are still compared."""
        with self._lock:
            return self._best.rows if self._candidate is None else None

    def next(self, remaining: int) -> int:
        """Rows of the next run.

        Arguments:
            remaining: rows that are still to be run, at least 1.
        """
        with self._lock:
            size, candidate = self._best, self._candidate
            if candidate is not None and candidate.rows <= remaining and candidate.started < size.started:
                size = candidate
            size.started += 1
            return min(size.rows, remaining)

    def record(self, rows: int, seconds: float) -> None:
        """Record the duration of a run."""
        with self._lock:
            candidate = self._candidate
            if candidate is None:
                return
            for size in (self._best, candidate):
                if size.rows == rows:
                    size.record(seconds)
            self._compare(candidate)

    def fail(self, rows: int) -> bool:
        """Record that a run failed, perhaps for memory: more than a row is not run again where it failed.

        Returns:
            whether it had more rows than one.
        """
        with self._lock:
            if rows > 1:
                best = self._best
                self._candidate = None
                self._best = best if best.rows < rows else _Size(1)
            return rows > 1

    def _compare(self, candidate: _Size) -> None:
        best, fewest = self._best, min(self._best.ended, candidate.ended)
        ratio = candidate.seconds / best.seconds if fewest else 1.0
        if fewest >= 1 and best.ended >= 2 and ratio <= _LEAP:
            pays = True
        elif fewest >= _MORE or (fewest >= _TURNS and ratio > _GAIN):
            pays = ratio <= _GAIN
        elif fewest >= 2 and ratio >= _LOSS:
            pays = False
        else:
            return
        if pays:
            self._best, self._failures = candidate, 0
            self._try(candidate.rows * (4 if ratio <= _LEAP else 2))
            return
        leapt = candidate.rows > 2 * best.rows and not self._failures
        self._failures += 1
        best.started = best.ended = 0
        best.seconds = float("inf")
        if self._failures < _FAILURES:
            self._try(2 * best.rows if leapt else 2 * candidate.rows)
        else:
            self._candidate = None

    def _try(self, rows: int) -> None:
        """Compare this many rows next, or as many as there may be."""
        rows = min(rows, self._most)
        self._candidate = _Size(rows) if rows > self._best.rows else None

    def renew(self) -> None:
        """Replace the lock in a forked child, where the thread that may hold it does not exist."""
        self._lock = threading.Lock()


def _forked() -> None:
    for choice in list(_choices):
        choice.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
