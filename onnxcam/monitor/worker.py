"""Explains queued rows one after another: in a low-priority thread, in another process, or in the calling thread."""

from __future__ import annotations

import _thread
import contextlib
import hashlib
import math
import os
import stat
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.monitor.admission import Clock
from onnxcam.monitor.atomic import Claim
from onnxcam.monitor.error_log import ErrorLog
from onnxcam.monitor.interruptions import attempt, interruption
from onnxcam.monitor.predictions import COLUMNS, Row
from onnxcam.monitor.queue import RowQueue
from onnxcam.monitor.sinks import Sink

NICENESS = 19
POLL = 0.005  # seconds between two looks at whether something has ended
_START_TIMEOUT = 1.0  # seconds after which a thread counts as not started
WORKERS = ("thread", "process", "inline")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds before a lost explainer is opened again, doubled each time
_DIGEST = 16  # bytes of a digest
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
    """Remembers which pictures were explained, for `lifetime` seconds, by a digest of every byte of them."""

    def __init__(self, lifetime: float, clock: Clock) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def key(self, row: Row) -> bytes | None:
        """Return a digest of 128 bits of the row's picture and class; None if duplicates are not filtered.

        A picture in a file is told by what the file holds now: cameras write one name again and again.
        """
        if self._lifetime <= 0:
            return None
        digest = hashlib.blake2b(str(int(row.quantities["label"])).encode(), digest_size=_DIGEST)
        for name, array in row.arrays().items():
            if name == COLUMNS:  # computed from the picture
                continue
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if isinstance(row.picture, bytes):
            digest.update(row.picture)
        elif row.picture is not None and not isinstance(row.picture, np.ndarray):
            content = _digest_of_file(row.picture)
            if content is None:
                return None  # to be explained, or to fail, like any other
            digest.update(content)
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


def _digest_of_file(path: str | Path) -> bytes | None:
    """Return the digest of a regular file, None if it is none or cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST)).digest()
    except (OSError, ValueError):
        return None


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
        self._written: Row | None = None
        self._pause = 0.0
        self._noted = -_NOTE_PERIOD

    def handle(self, row: Row, *, inline: bool = False) -> BaseException | None:
        """Explain a taken row and count the outcome.

        Arguments:
            inline: whether in the thread that predicts.

        Returns:
            None; or `inline` the exception that has to pass to the caller, see `interruption`. Others are logged.
        """
        cause = "explain"
        try:
            key = self._duplicates.key(row)
            if self._duplicates.has(key):
                self._queue.discard(row, "duplicate")
                return None
            cause = "worker"
            explain = self._explain or self._open_explainer()
            cause = "explain"
            record, files = explain(row, self._clock.monotonic() - row.queued)
            cause = "sink"
            self._sink.write(record, files)
            self._written = row
            self._duplicates.add(key)
        except BaseException as error:  # SystemExit from a sink's callable too: the thread must survive
            failure = error
        else:
            self._pause = 0.0
            self._queue.explain(row)
            self._written = None
            self.note()
            return None
        if isinstance(failure, WorkerLost) or cause == "worker":
            cause = "worker"
            self._lose_explainer()
        self._count(row, cause)
        if inline and (passing := interruption(failure)) is not None:
            return passing
        self._error_log.report(cause, failure)
        self.note()
        return None

    def settle(self, cause: str) -> None:
        """Count the rows that are running although nobody explains them any more: an exception ended that."""
        for row in self._queue.running():
            self._count(row, cause)

    def _count(self, row: Row, cause: str) -> None:
        """Count a row that an error ended, which may have struck once it was written."""
        if self._written is row:
            self._queue.explain(row)
        else:
            self._queue.fail(row, cause)

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
        self._try(getattr(self._sink, "tick", lambda: None))

    def note(self) -> None:
        """Pass the counts to the sink, at most every few seconds."""

        def note() -> None:
            now = self._clock.monotonic()
            if now >= self._noted + _NOTE_PERIOD:
                self._noted = now
                getattr(self._sink, "note", lambda counts: None)(self._queue.counts())

        self._try(note)

    def _try(self, function: Callable[[], None]) -> None:
        if (failure := attempt(function)) is not None:
            self._error_log.report("sink", failure)

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


class _Thread:
    """Stands for the thread of a worker as long as that runs."""


class Worker:
    """A thread that drains the queue; started by the first row, ended when the queue stops.

    It refers to nothing that refers to the monitor, which can so be collected while the thread waits. It is not a
    `threading.Thread`: to start one waits for locks that the code which a signal handler interrupts may have.

    Arguments:
        finish: called in the thread when it ends.
        backs_off: whether rows are explained in this thread, which then backs off while the processors are contended.
    """

    def __init__(
        self, queue: RowQueue, handler: RowHandler, finish: Callable[[], None], backs_off: bool = False
    ) -> None:
        self.native_id = 0
        self._queue = queue
        self._handler = handler
        self._finish = finish
        self._backs_off = backs_off
        self._claim = Claim()
        self._started = -math.inf

    def start(self) -> None:
        """Start the thread unless it runs.

        Raises:
            RuntimeError: no further thread can be started.
        """
        if self.alive() or self._queue.stopped.is_set() or time.monotonic() < self._started + _START_TIMEOUT:
            return
        self._started = time.monotonic()
        start_thread(self._run)

    def alive(self) -> bool:
        """Return whether the thread runs."""
        return self._claim.holder is not None

    def join(self, timeout: float) -> bool:
        """Wait until the thread ends, at most `timeout` seconds; returns whether it has."""
        return wait_until(lambda: not self.alive(), timeout)

    def _run(self) -> None:
        thread = _Thread()
        if not self._claim.take(thread):  # another thread was started at the same moment
            return
        current = threading.current_thread()
        current.name, self.native_id = "onnxcam-monitor", threading.get_native_id()
        try:
            lower_priority()
            self._handler.settle("worker")
            while not self._queue.stopped.is_set():
                self._step()
            self._handler.close()
            self._finish()
        finally:
            self._claim.release(thread)
            getattr(threading, "_active", {}).pop(threading.get_ident(), None)  # nothing else takes it out

    def _step(self) -> None:
        """Wait for a row and explain it."""
        try:
            row = self._queue.take(_TICK)
        except Exception as error:
            self._handler.report_queue_error(error)
            return
        if row is None:
            self._handler.tick()
            self._handler.note()
            return
        before = _scheduled() if self._backs_off else (0.0, 0.0)
        self._handler.handle(row)
        del row  # frees the last row while the thread waits for the next
        self._handler.pause()
        if self._backs_off:
            self._back_off(*(now - then for now, then in zip(_scheduled(), before, strict=True)))

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


def start_thread(run: Callable[[], None]) -> None:
    """Run a function in a new thread that does not keep the interpreter from exiting; also from a signal handler.

    Raises:
        RuntimeError: no further thread can be started.
    """
    _thread.start_new_thread(run, ())


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait until a condition is true, at most `timeout` seconds; returns whether it is."""
    end = time.monotonic() + timeout
    while not condition():
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(POLL, left))
    return True


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
