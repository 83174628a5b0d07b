"""Explains queued rows one after another: in a low-priority thread, in another process, or in the calling thread."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.monitor.admission import Clock
from onnxcam.monitor.error_log import ErrorLog
from onnxcam.monitor.predictions import Row
from onnxcam.monitor.queue import RowQueue
from onnxcam.monitor.sinks import Sink

NICENESS = 19
WORKERS = ("thread", "process", "inline")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds before a lost explainer is opened again, doubled each time
_SAMPLE = 8192  # bytes of a picture that are hashed to tell it from another
_REMEMBERED = 4096  # pictures
_YIELD = 0.0001  # seconds
_CONTENTION = 20  # processors are contended where a thread waits this many times longer than it runs
_BACK_OFF, _LONGEST_BACK_OFF = 2.0, 5.0  # times the time spent waiting; seconds
_NOTE_PERIOD = 5.0  # seconds between two notes of the counts to the sink
_TICK = 15.0  # seconds without a row after which a sink gets time for maintenance

Explain = Callable[[Row, float], tuple[dict[str, Any], dict[str, bytes]]]


class WorkerLost(Exception):
    """The explainer is gone and has to be opened again."""


class DuplicateFilter:
    """Remembers which pictures were explained, for `lifetime` seconds, by a hash of a sample of their bytes."""

    def __init__(self, lifetime: float, clock: Clock) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def key(self, row: Row) -> bytes | None:
        """Return a hash of the row's picture and class; None if duplicates are not filtered."""
        if self._lifetime <= 0:
            return None
        digest = hashlib.blake2b(str(int(row.quantities["label"])).encode(), digest_size=16)
        for name, array in row.arrays().items():
            flat = array.reshape(-1)
            step = max(1, array.nbytes // _SAMPLE)
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(flat[::step]).data)
        if not isinstance(row.picture, np.ndarray) and row.picture is not None:
            data = row.picture if isinstance(row.picture, bytes) else str(row.picture).encode(errors="replace")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data[:: max(1, len(data) // _SAMPLE)])
        return digest.digest()

    def has(self, key: bytes | None) -> bool:
        """Return whether the picture was explained within the lifetime."""
        return key is not None and self._until.get(key, -1.0) > self._clock.monotonic()

    def add(self, key: bytes | None) -> None:
        """Remember a picture that has just been explained."""
        if key is None:
            return
        self._until[key] = self._clock.monotonic() + self._lifetime
        self._until.move_to_end(key)
        while len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)


class RowHandler:
    """Explains and writes one row at a time; opens the explainer when first needed, and again after it was lost.

    Arguments:
        open_: opens the explainer; raises if the model cannot be opened.
    """

    def __init__(
        self,
        queue: RowQueue,
        open_: Callable[[], Explain],
        sink: Sink,
        duplicates: DuplicateFilter,
        error_log: ErrorLog,
        clock: Clock,
    ) -> None:
        self.opened = 0
        self._queue = queue
        self._open = open_
        self._sink = sink
        self._duplicates = duplicates
        self._error_log = error_log
        self._clock = clock
        self._explain: Explain | None = None
        self._pause = 0.0
        self._noted = -_NOTE_PERIOD

    def handle(self, row: Row) -> None:
        """Explain a taken row and count the outcome. Raises nothing."""
        cause = "explain"
        try:
            key = self._duplicates.key(row)
            if self._duplicates.has(key):
                self._queue.discard(row, "duplicate")
                return
            cause = "worker"
            explain = self._explain or self._open_explainer()
            cause = "explain"
            record, files = explain(row, self._clock.monotonic() - row.queued)
            cause = "sink"
            self._sink.write(record, files)
            self._duplicates.add(key)
        except BaseException as error:  # SystemExit from a sink's callable too: the thread must survive
            if isinstance(error, WorkerLost) or cause == "worker":
                cause = "worker"
                self._lose_explainer()
            self._queue.fail(row, cause)
            self._error_log.report(cause, error)
        else:
            self._pause = 0.0
            self._queue.explain(row)
        self.note()

    def pause(self) -> None:
        """Wait before a lost explainer is opened again, twice as long each time; ends early when the monitor stops."""
        if self._pause and self._explain is None:
            self._queue.stopped.wait(self._pause)

    def report_queue_error(self, error: Exception) -> None:
        """Log that no row could be taken, and wait a moment."""
        self._error_log.report("worker", error)
        self._queue.stopped.wait(_FIRST_PAUSE)

    def tick(self) -> None:
        """Let the sink do maintenance while no row is queued, such as closing old segments."""
        try:
            getattr(self._sink, "tick", lambda: None)()
        except Exception as error:
            self._error_log.report("sink", error)

    def note(self) -> None:
        """Pass the counts to the sink, at most every few seconds."""
        try:
            now = self._clock.monotonic()
            if now >= self._noted + _NOTE_PERIOD:
                self._noted = now
                getattr(self._sink, "note", lambda counts: None)(self._queue.counts())
        except Exception as error:
            self._error_log.report("sink", error)

    def close(self) -> None:
        """Close the explainer."""
        explain, self._explain = self._explain, None
        with contextlib.suppress(Exception):
            getattr(explain, "close", lambda: None)()

    def abandon(self) -> None:
        """Release the explainer in a forked child without closing it: it belongs to the parent."""
        with contextlib.suppress(Exception):
            getattr(self._explain, "abandon", lambda: None)()

    def _open_explainer(self) -> Explain:
        self._explain = self._open()
        self.opened += 1
        return self._explain

    def _lose_explainer(self) -> None:
        self.close()
        self._pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * self._pause))


class Worker:
    """A daemon thread that drains the queue; started by the first row, ended when the queue stops.

    Arguments:
        backs_off: whether rows are explained in this thread, which then backs off while the processors are contended.
    """

    def __init__(self, queue: RowQueue, handler: RowHandler, backs_off: bool = False) -> None:
        self._queue = queue
        self._handler = handler
        self._backs_off = backs_off
        self._thread = threading.Thread(target=self._run, name="onnxcam-monitor", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait until the thread ends, at most `timeout` seconds."""
        self._thread.join(max(0.0, timeout))

    def _run(self) -> None:
        lower_priority()
        while not self._queue.stopped.is_set():
            try:
                row = self._queue.take(_TICK)
            except Exception as error:
                self._handler.report_queue_error(error)
                continue
            if row is None:
                self._handler.tick()
                self._handler.note()
                continue
            before = _scheduled() if self._backs_off else (0.0, 0.0)
            self._handler.handle(row)
            del row  # frees the last row while the thread waits for the next
            self._handler.pause()
            if self._backs_off:
                self._back_off(*(now - then for now, then in zip(_scheduled(), before, strict=True)))
        self._handler.close()

    def _back_off(self, ran: float, waited: float) -> None:
        """Sleep after a row during which this thread waited for a processor, unless a caller waits for the queue.

        The nicest thread still gets its share in ticks of milliseconds, and each delays a prediction. The time that
        this thread itself spent waiting shows that the processors are contended.
        """
        if waited > _CONTENTION * ran:
            self._queue.urgent.wait(min(_LONGEST_BACK_OFF, _BACK_OFF * waited))


def _scheduled() -> tuple[float, float]:
    """Return the seconds this thread ran, and was ready but did not run; zeros where the system does not tell."""
    try:
        ran, waited, *_ = Path("/proc/thread-self/schedstat").read_bytes().split()
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(ran) * 1e-9, int(waited) * 1e-9


def yield_interpreter() -> None:
    """Let other threads take the interpreter lock.

    Only a sleep of positive length does: after `sleep(0)` this thread has the lock again before a waiting one wakes.
    """
    time.sleep(_YIELD)


def lower_priority() -> None:
    """Give this thread the lowest scheduling priority; no effect where niceness is not per thread."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
