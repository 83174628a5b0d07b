"""Exact accounting of rows: every row that was observed is counted in exactly one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# why a row that was worth explaining is not explained, in the order of the checks
REASONS = {
    "sample": "not in the sample of uncertain rows",
    "rate": "the token bucket was empty",
    "budget": "the day's budget was spent",
    "queue": "the queue was full",
    "bytes": "the rows in the queue took too many bytes",
    "evicted": "pushed out of the full queue by a newer row",
    "duplicate": "the same picture was explained a moment ago",
    "invalid": "scores or picture of the wrong type or shape",
    "error": "an error inside the monitor",
    "closed": "the monitor was closed",
}
FAILURES = ("explain", "sink", "worker")


@dataclass
class RowCounts:
    """Counts of rows; `observed = confident + sum(dropped) + queued + running + explained + failed` after every method.

    Attributes:
        observed: rows observed; "seen" in `counts`.
        confident: rows that did not meet the condition and were not in the baseline's sample.
        queued, running: rows in the queue, rows that a worker is explaining; `bytes` is the size of both.
        explained: rows whose explanation was written; `baseline` of them are of the baseline's sample.
        failed: rows that could not be explained or written, `failures` by cause.
        dropped: rows not explained, by reason.
    """

    observed: int = 0
    confident: int = 0
    queued: int = 0
    running: int = 0
    explained: int = 0
    baseline: int = 0
    failed: int = 0
    bytes: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))

    def observe(self, rows: int, confident: int, dropped: Mapping[str, int], queued: int, size: int) -> None:
        """Count a batch of rows, `queued` of which enter the queue with `size` bytes."""
        self.observed += rows
        self.confident += confident
        self.queued += queued
        self.bytes += size
        for reason, count in dropped.items():
            self.dropped[reason] += count

    def drop(self, reason: str, size: int) -> None:
        """Count a queued row as dropped."""
        self.queued -= 1
        self.bytes -= size
        self.dropped[reason] += 1

    def start(self) -> None:
        """Count a queued row as running."""
        self.queued -= 1
        self.running += 1

    def explain(self, size: int, *, baseline: bool) -> None:
        """Count a running row as explained and written."""
        self._finish(size)
        self.explained += 1
        self.baseline += baseline

    def discard(self, reason: str, size: int) -> None:
        """Count a running row as dropped."""
        self._finish(size)
        self.dropped[reason] += 1

    def fail(self, cause: str, size: int) -> None:
        """Count a running row as failed."""
        self._finish(size)
        self.failed += 1
        self.failures[cause] += 1

    def counts(self) -> dict[str, Any]:
        """Return a copy of every count, as `Monitor.stats` names it."""
        return {
            "seen": self.observed,
            "confident": self.confident,
            "queued": self.queued,
            "running": self.running,
            "explained": self.explained,
            "failed": self.failed,
            "dropped": dict(self.dropped),
            "failures": dict(self.failures),
            "baseline": self.baseline,
            "queue_bytes": self.bytes,
        }

    def _finish(self, size: int) -> None:
        self.running -= 1
        self.bytes -= size
