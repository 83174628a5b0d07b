"""Times as records have them: UTC texts of fixed width, which compare as times do."""

from __future__ import annotations

from datetime import UTC, datetime

_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


def timestamp(seconds: float) -> str:
    """Format seconds since 1970 as `2026-11-25T14:07:00.123456Z`."""
    return format_time(datetime.fromtimestamp(seconds, UTC))


def format_time(time: datetime) -> str:
    """Format a time that has a time zone."""
    return time.astimezone(UTC).strftime(_FORMAT)


def seconds(text: str) -> float:
    """Parse a timestamp: the inverse of `timestamp`.

    Raises:
        ValueError: not a timestamp.
    """
    return datetime.fromisoformat(text).timestamp()
