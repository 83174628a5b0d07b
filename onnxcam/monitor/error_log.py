"""A rate-limited error log: errors of one kind are logged at most once per 20 seconds."""

from __future__ import annotations

import logging
from typing import NamedTuple

from onnxcam.errors import escaped
from onnxcam.monitor.admission import Clock
from onnxcam.monitor.atomic import Cell
from onnxcam.monitor.interruptions import interruption

PERIOD = 20.0


class _Last(NamedTuple):
    """When an error of one kind was last logged, and how many were not logged since."""

    logged: float
    suppressed: int = 0


class ErrorLog:
    """Logs errors to the logger `onnxcam.monitor`; raises no error of its own, whatever the handlers do."""

    def __init__(self, clock: Clock, period: float = PERIOD) -> None:
        self._log = logging.getLogger("onnxcam.monitor")
        self._clock = clock
        self._period = period
        self._causes: dict[str, Cell[_Last | None]] = {}

    def report(self, stage: str, error: BaseException | str) -> None:
        """Log an error, unless one of the same type at the same stage was logged within the period.

        Arguments:
            stage: where the error happened, from a small fixed set.
        """
        try:
            self._report(stage, error)
            return
        except Exception as broken:  # a handler or the clock: there is no other place to report it
            failure = broken
        passing = interruption(failure)
        if passing is not None:
            raise passing

    def _report(self, stage: str, error: BaseException | str) -> None:
        kind = "" if isinstance(error, str) else f" ({type(error).__name__})"
        cause = stage + kind
        now = self._clock.monotonic()
        more: int | None = None

        def change(last: _Last | None) -> _Last:
            nonlocal more
            if last is not None and now - last.logged < self._period:
                more = None
                return last._replace(suppressed=last.suppressed + 1)
            more = 0 if last is None else last.suppressed
            return _Last(now)

        self._causes.setdefault(cause, Cell(None)).update(change)
        if more is not None:
            since = f" (and {more} more like it since the last message)" if more else ""
            self._log.warning("%s: %s%s", cause, _first_line(error), since)


def _first_line(error: BaseException | str) -> str:
    return escaped((str(error).strip().splitlines() or [""])[0][:500])
