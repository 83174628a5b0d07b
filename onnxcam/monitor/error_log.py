"""A rate-limited error log: errors of one kind are logged at most once per 20 seconds."""

from __future__ import annotations

import logging
import threading

from onnxcam.errors import escaped
from onnxcam.monitor.admission import Clock

PERIOD = 20.0


class ErrorLog:
    """Logs errors to the logger `onnxcam.monitor`; never raises, whatever the handlers do."""

    def __init__(self, clock: Clock, period: float = PERIOD) -> None:
        self._log = logging.getLogger("onnxcam.monitor")
        self._clock = clock
        self._period = period
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def report(self, stage: str, error: BaseException | str) -> None:
        """Log an error, unless one of the same type at the same stage was logged within the period.

        Arguments:
            stage: where the error happened, from a small fixed set.
        """
        try:
            kind = "" if isinstance(error, str) else f" ({type(error).__name__})"
            cause = stage + kind
            now = self._clock.monotonic()
            with self._lock:
                last = self._last.get(cause)
                if last is not None and now - last < self._period:
                    self._suppressed[cause] = self._suppressed.get(cause, 0) + 1
                    return
                self._last[cause] = now
                more = self._suppressed.pop(cause, 0)
            since = f" (and {more} more like it since the last message)" if more else ""
            self._log.warning("%s: %s%s", cause, _first_line(error), since)
        except Exception:  # a handler or the clock is broken: there is no other place to report it
            return


def _first_line(error: BaseException | str) -> str:
    return escaped((str(error).strip().splitlines() or [""])[0][:500])
