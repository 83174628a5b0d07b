"""Times as records have them: UTC texts of fixed width, which compare as times do."""

from __future__ import annotations

import time as clocks
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_DRIFT = 3600.0  # seconds that a wall clock may gain between two looks without being doubted
_DOUBT = 86400.0  # seconds for which a clock that jumped ahead is doubted


class CautiousClock:
    """A wall clock for removing what is old: it believes a jump ahead once that has lasted for a day.

    Otherwise a clock that is ahead for a moment would make everything older than any limit.

    Arguments:
        clock: seconds since 1970.
        monotonic: seconds that never go back; by default the system's, or `clock` where that is not the system's.
    """

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._monotonic = monotonic or (clocks.monotonic if clock is clocks.time else clock)
        self._difference = clock() - self._monotonic()
        self._ahead_since: float | None = None

    def __call__(self) -> float:
        """Return seconds since 1970, without a jump ahead of the last day."""
        now = self._monotonic()
        difference = self._clock() - now
        if difference <= self._difference + _DRIFT:
            self._difference, self._ahead_since = difference, None
        elif self._ahead_since is None:
            self._ahead_since = now
        elif now - self._ahead_since >= _DOUBT:
            self._difference, self._ahead_since = difference, None
        return now + self._difference


def timestamp(seconds: float) -> str:
    """Format seconds since 1970 as `2026-11-25T14:07:00.123456Z`."""
    return format_time(datetime.fromtimestamp(seconds, UTC))


def format_time(time: datetime) -> str:
    """Format a time that has a time zone; where it lies outside of the calendar in UTC, the nearest time in it."""
    try:
        time = time.astimezone(UTC)
    except OverflowError:
        time = _nearest(time.year)
    # strftime does not fill the years before 1000 with zeros
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def shift(time: datetime, by: timedelta) -> datetime:
    """Add to a time that has a time zone, within the calendar."""
    try:
        return time + by
    except OverflowError:
        return _nearest(time.year)


def from_seconds(seconds: float) -> datetime:
    """Return the time of seconds since 1970 in UTC, within the calendar."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return _nearest(1 if seconds < 0 else 9999)


def _nearest(year: int) -> datetime:
    return (datetime.min if year < 5000 else datetime.max).replace(tzinfo=UTC)


def seconds(text: str) -> float:
    """Parse a timestamp: the inverse of `timestamp`.

    Raises:
        ValueError: not a timestamp.
    """
    return datetime.fromisoformat(text).timestamp()
