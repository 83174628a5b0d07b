"""Explains waiting rows, one after another, in a thread of its own niceness, in another process, or on the spot."""

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
from onnxcam.monitor.complaints import Complaints
from onnxcam.monitor.predictions import Row
from onnxcam.monitor.sinks import Sink
from onnxcam.monitor.waiting import Waiting

NICENESS = 19
WORKERS = ("thread", "process", "inline")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_SAMPLE = 8192  # bytes of a picture that tell it from another
_REMEMBERED = 4096
_WAY = 0.0001  # seconds
_CROWDED = 20  # times as long as it ran it was kept waiting, where the processors are others'
_REST, _LONGEST_REST = 2.0, 5.0  # times as long as it waited; seconds
_NOTE = 5.0  # seconds between counts told to the sink
_TICK = 15.0  # seconds without a row after which a sink may look after itself

Explain = Callable[[Row, float], tuple[dict[str, Any], dict[str, bytes]]]


class WorkerLost(Exception):
    """Whatever explains is gone and has to be opened anew."""


class Duplicates:
    """Remembers for a while which pictures were explained, by a hash of a subsample of their bytes."""

    def __init__(self, lifetime: float, clock: Clock) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def key(self, row: Row) -> bytes | None:
        """What tells the row from others; None where nothing is compared."""
        if self._lifetime <= 0:
            return None
        found = hashlib.blake2b(str(int(row.quantities["label"])).encode(), digest_size=16)
        for name, array in row.arrays().items():
            flat = array.reshape(-1)
            step = max(1, array.nbytes // _SAMPLE)
            found.update(f"{name}{array.dtype}{array.shape}".encode())
            found.update(np.ascontiguousarray(flat[::step]).data)
        if not isinstance(row.picture, np.ndarray) and row.picture is not None:
            data = row.picture if isinstance(row.picture, bytes) else str(row.picture).encode(errors="replace")
            found.update(len(data).to_bytes(8, "little"))
            found.update(data[:: max(1, len(data) // _SAMPLE)])
        return found.digest()

    def has(self, key: bytes | None) -> bool:
        """Whether it was explained within the lifetime."""
        return key is not None and self._until.get(key, -1.0) > self._clock.monotonic()

    def add(self, key: bytes | None) -> None:
        """It is explained now."""
        if key is None:
            return
        self._until[key] = self._clock.monotonic() + self._lifetime
        self._until.move_to_end(key)
        while len(self._until) > _REMEMBERED:
            self._until.popitem(last=False)


class Desk:
    """Where one row at a time is explained and written; opens what explains when first needed, and again once lost.

    Arguments:
        open_: makes what explains; fails where the model cannot be opened.
    """

    def __init__(
        self,
        waiting: Waiting,
        open_: Callable[[], Explain],
        sink: Sink,
        duplicates: Duplicates,
        complaints: Complaints,
        clock: Clock,
    ) -> None:
        self.opened = 0
        self._waiting = waiting
        self._open = open_
        self._sink = sink
        self._duplicates = duplicates
        self._complaints = complaints
        self._clock = clock
        self._explain: Explain | None = None
        self._pause = 0.0
        self._noted = -_NOTE

    def handle(self, row: Row) -> None:
        """Explain a row in hand and put it to account. Raises nothing."""
        cause = "explain"
        try:
            key = self._duplicates.key(row)
            if self._duplicates.has(key):
                self._waiting.discard(row, "duplicate")
                return
            cause = "worker"
            explain = self._explain or self._opening()
            cause = "explain"
            record, files = explain(row, self._clock.monotonic() - row.queued)
            cause = "sink"
            self._sink.write(record, files)
            self._duplicates.add(key)
        except BaseException as error:  # also an exit asked for by a sink's callable: the thread must live on
            if isinstance(error, WorkerLost) or cause == "worker":
                cause = "worker"
                self._lose()
            self._waiting.fail(row, cause)
            self._complaints.about(cause, error)
        else:
            self._pause = 0.0
            self._waiting.explain(row)
        self.note()

    def pause(self) -> None:
        """After a loss, wait before opening again, twice as long every time; ends early when the monitor stops."""
        if self._pause and self._explain is None:
            self._waiting.stopped.wait(self._pause)

    def complain(self, error: Exception) -> None:
        """Nothing can be taken in hand: say so, and wait a moment."""
        self._complaints.about("worker", error)
        self._waiting.stopped.wait(_FIRST_PAUSE)

    def tick(self) -> None:
        """Now and then while nothing waits: a sink closes what is old enough."""
        try:
            getattr(self._sink, "tick", lambda: None)()
        except Exception as error:
            self._complaints.about("sink", error)

    def note(self) -> None:
        """Every few seconds: the sink gets the counts."""
        try:
            now = self._clock.monotonic()
            if now >= self._noted + _NOTE:
                self._noted = now
                getattr(self._sink, "note", lambda counts: None)(self._waiting.counts())
        except Exception as error:
            self._complaints.about("sink", error)

    def close(self) -> None:
        """Let go of what explains."""
        explain, self._explain = self._explain, None
        with contextlib.suppress(Exception):
            getattr(explain, "close", lambda: None)()

    def abandon(self) -> None:
        """Let go of it in the child of a fork, where it is the parent's."""
        with contextlib.suppress(Exception):
            getattr(self._explain, "abandon", lambda: None)()

    def _opening(self) -> Explain:
        self._explain = self._open()
        self.opened += 1
        return self._explain

    def _lose(self) -> None:
        self.close()
        self._pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * self._pause))


class Worker:
    """A daemon thread that empties the queue; started by the first row, ended by the queue.

    Arguments:
        rests: whether the explaining is done in this thread, which then rests where others want the processors.
    """

    def __init__(self, waiting: Waiting, desk: Desk, rests: bool = False) -> None:
        self._waiting = waiting
        self._desk = desk
        self._rests = rests
        self._thread = threading.Thread(target=self._run, name="onnxcam-monitor", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait for its end."""
        self._thread.join(max(0.0, timeout))

    def _run(self) -> None:
        lower_priority()
        while not self._waiting.stopped.is_set():
            try:
                row = self._waiting.take(_TICK)
            except Exception as error:
                self._desk.complain(error)
                continue
            if row is None:
                self._desk.tick()
                self._desk.note()
                continue
            before = _scheduled() if self._rests else (0.0, 0.0)
            self._desk.handle(row)
            del row  # while waiting for the next, nothing of the last is kept
            self._desk.pause()
            if self._rests:
                self._rest(*(now - then for now, then in zip(_scheduled(), before, strict=True)))
        self._desk.close()

    def _rest(self, ran: float, waited: float) -> None:
        """Leave the processors alone for a while, unless somebody waits for this thread.

        The nicest thread gets its share in ticks of milliseconds all the same, and each makes a prediction wait. Having
        been kept waiting itself is how it knows that others want more than there is.
        """
        if waited > _CROWDED * ran:
            self._waiting.hurried.wait(min(_LONGEST_REST, _REST * waited))


def _scheduled() -> tuple[float, float]:
    """Seconds this thread ran and was ready but did not run; zeros where the system does not tell."""
    try:
        ran, waited, *_ = Path("/proc/thread-self/schedstat").read_bytes().split()
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(ran) * 1e-9, int(waited) * 1e-9


def give_way() -> None:
    """Let others have the interpreter lock.

    It takes a real sleep: after `sleep(0)` this thread has the lock again before one that waits for it is awake.
    """
    time.sleep(_WAY)


def lower_priority() -> None:
    """Give this thread the least share of the processors; where niceness is not a thread's own, nothing changes."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
