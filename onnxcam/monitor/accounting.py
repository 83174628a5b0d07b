"""Exact accounting of rows: every row that was observed is counted in exactly one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

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
    "interrupted": "an exception of a signal handler, or Ctrl-C, ended the call",
    "closed": "the monitor was closed",
}
FAILURES = ("explain", "sink", "worker")


class RowCounts(NamedTuple):
    """Counts of rows, never changed: every method returns new ones.

    In each of them `observed = confident + sum(dropped) + queued + running + explained + failed`.

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
    dropped: Mapping[str, int] = dict.fromkeys(REASONS, 0)
    failures: Mapping[str, int] = dict.fromkeys(FAILURES, 0)

    def observe(self, rows: int, confident: int, dropped: Mapping[str, int], queued: int, size: int) -> RowCounts:
        """Count a batch of rows, `queued` of which enter the queue with `size` bytes."""
        reasons = self.dropped
        if any(dropped.values()):
            reasons = {**reasons}
            for reason, count in dropped.items():
                reasons[reason] += count
        return RowCounts(
            self.observed + rows,
            self.confident + confident,
            self.queued + queued,
            self.running,
            self.explained,
            self.baseline,
            self.failed,
            self.bytes + size,
            reasons,
            self.failures,
        )

    def drop(self, reason: str, size: int) -> RowCounts:
        """Count a queued row as dropped."""
        return self._replace(queued=self.queued - 1, bytes=self.bytes - size, dropped=_plus_one(self.dropped, reason))

    def start(self) -> RowCounts:
        """Count a queued row as running."""
        return self._replace(queued=self.queued - 1, running=self.running + 1)

    def explain(self, size: int, *, baseline: bool) -> RowCounts:
        """Count a running row as explained and written."""
        counts = self._finish(size)
        return counts._replace(explained=self.explained + 1, baseline=self.baseline + baseline)

    def discard(self, reason: str, size: int) -> RowCounts:
        """Count a running row as dropped."""
        return self._finish(size)._replace(dropped=_plus_one(self.dropped, reason))

    def fail(self, cause: str, size: int) -> RowCounts:
        """Count a running row as failed."""
        return self._finish(size)._replace(failed=self.failed + 1, failures=_plus_one(self.failures, cause))

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

    def _finish(self, size: int) -> RowCounts:
        return self._replace(running=self.running - 1, bytes=self.bytes - size)


def _plus_one(counts: Mapping[str, int], name: str) -> dict[str, int]:
    return {**counts, name: counts[name] + 1}
