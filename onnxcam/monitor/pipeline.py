"""What explains the rows of a monitor in one process: queue, worker and sink; and how several of them close."""

from __future__ import annotations

import atexit
import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial

from onnxcam.errors import OutputError
from onnxcam.monitor import worker as workers
from onnxcam.monitor.atomic import Claim, Event
from onnxcam.monitor.error_log import ErrorLog
from onnxcam.monitor.forks import after_fork
from onnxcam.monitor.interruptions import attempt
from onnxcam.monitor.queue import RowQueue
from onnxcam.monitor.sinks import Sink

_JOIN_TIMEOUT, _SINK_TIMEOUT = 0.05, 0.25  # seconds that worker and sink have at least
_INLINE_POLL = 0.0005  # seconds
_EXIT_TIMEOUT = 5.0  # seconds to explain the queued rows when the interpreter exits


_open: dict[Pipeline, None] = {}  # until they are closed, also those of monitors that were forgotten


class _Turn:
    """The turn of one thread at what only one may do; it ends with the call that has it at the latest."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class SinkCloser:
    """Closes a sink once, in whichever thread comes first: one that hangs holds up nobody else.

    Attributes:
        done: whether it is closed.
        timeout: seconds that it gets.

    Arguments:
        then: called once it is closed.
    """

    def __init__(self, sink: Sink, queue: RowQueue, error_log: ErrorLog, then: Callable[[], object]) -> None:
        self.done = Event()
        self.timeout = 5.0
        self._then = then
        self._sink = sink
        self._queue = queue
        self._error_log = error_log
        self._turns = Claim()

    def close(self) -> None:
        """Pass the last counts to the sink and close it, unless another thread does or did."""
        turn = _Turn()
        if not self._turns.take(turn) or self.done.is_set():
            return
        if (failure := attempt(self._close)) is not None:
            self._error_log.report("sink", failure)
        self.done.set()
        self._then()

    def _close(self) -> None:
        with contextlib.suppress(OutputError, OSError):  # a sink that fails has failed for every row already
            getattr(self._sink, "note", lambda counts: None)(self._queue.counts())
        self._sink.close(self.timeout)


class Pipeline:
    """The queue of a monitor, and what explains its rows in this process. It does not refer to the monitor.

    Arguments:
        kind: one of `workers.WORKERS`.
    """

    def __init__(
        self, kind: str, queue: RowQueue, handler: workers.RowHandler, sink: Sink, error_log: ErrorLog
    ) -> None:
        self.queue = queue
        self.handler = handler
        self.inline = kind == "inline"
        self.in_process = kind == "process"
        self.sink = SinkCloser(sink, queue, error_log, partial(_closed, weakref.ref(self)))
        self.worker = workers.Worker(queue, handler, self.sink.close, backs_off=kind == "thread")
        self._error_log = error_log
        self._turns = Claim()
        after_fork(self, Pipeline._forked)
        _open[self] = None

    def explain(self) -> None:
        """Have the queued rows explained: start the worker unless it runs; `inline`, explain them here.

        Raises:
            BaseException: what interrupts the explaining here.
        """
        if not self.inline:
            self._start_worker()
            return
        while not self._explain_here() and not self._interrupts_itself():
            time.sleep(_INLINE_POLL)

    def advance(self, end: float) -> bool:
        """Do what a caller can who waits for the queue until `end`; returns whether waiting can help at all."""
        if not self.inline:
            self.queue.hurry()
            if self.queue.counts()["queued"]:
                self._start_worker()
            return True
        if self._interrupts_itself():
            return False
        self._explain_here(end)
        return True

    def forget(self) -> None:
        """Explain what is queued, then release worker and sink; returns at once. No further row can be observed."""
        self.queue.close()
        works = not self.inline and (self.worker.alive() or self.queue.counts()["queued"])
        if works and attempt(self.worker.start) is None:
            self.queue.finish()
            return
        self.queue.stop()
        with contextlib.suppress(RuntimeError):
            workers.start_thread(self.sink.close)

    def _start_worker(self) -> None:
        if (failure := attempt(self.worker.start)) is not None:  # no more threads: the next row tries again
            self._error_log.report("worker", failure)

    def _explain_here(self, end: float = math.inf) -> bool:
        """Explain the queued rows in this thread, unless another one does; returns whether they were."""
        turn = _Turn()
        try:
            if not self._turns.take(turn):
                return False
            self.handler.settle("explain")  # of a turn that was interrupted
            while time.monotonic() < end and (row := self.queue.take(0.0)) is not None:
                passing = self.handler.handle(row, inline=True)
                if passing is not None:
                    raise passing
            return True
        finally:
            self._turns.release(turn)

    def _interrupts_itself(self) -> bool:
        """Whether this is a signal handler that has interrupted the explaining of rows in its own thread."""
        turn = self._turns.holder
        return turn is not None and turn.thread == threading.get_ident()

    def _forked(self) -> None:
        """Leave everything to the parent: a forked child has a pipeline of its own."""
        self.handler.abandon()
        _open.pop(self, None)


def _closed(pipeline: weakref.ref[Pipeline]) -> None:
    _open.pop(pipeline(), None)  # type: ignore[arg-type]


def wait(pipelines: Sequence[Pipeline], timeout: float) -> list[bool]:
    """Wait until every queued row of these is explained, at most `timeout` seconds; returns which were."""
    end = time.monotonic() + timeout
    waiting = list(pipelines)
    try:
        while waiting := [line for line in waiting if not line.queue.idle() and line.advance(end)]:
            left = end - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(workers.POLL, left))
    finally:
        for line in pipelines:
            line.queue.relax()
    return [line.queue.idle() for line in pipelines]


def close(pipelines: Sequence[Pipeline], timeout: float) -> list[bool]:
    """Explain queued rows for at most `timeout` seconds, drop the rest, and release workers and sinks.

    Returns within `timeout` plus half a second, however many there are and whatever hangs.

    Returns:
        of each, whether everything was explained in time.
    """
    end = time.monotonic() + timeout
    for line in pipelines:
        line.queue.close()
    done = wait(pipelines, timeout)
    for line in pipelines:
        line.sink.timeout = max(0.1, end - time.monotonic())
        line.queue.stop()
    ended = time.monotonic() + max(_JOIN_TIMEOUT, end - time.monotonic())
    for line in pipelines:
        if not line.worker.join(ended - time.monotonic()) and line.in_process:
            line.handler.close()  # ends the hung child; the thread then finds its pipe closed
        if line.inline:
            line.handler.close()
    ended = time.monotonic() + max(_SINK_TIMEOUT, end - time.monotonic())
    for line in pipelines:
        if not line.sink.done.is_set():
            # a worker closes the sink when it ends; one that hangs, or never ran, does not
            try:
                workers.start_thread(line.sink.close)
            except RuntimeError:  # the interpreter exits: no thread can be started
                if not line.worker.alive():
                    line.sink.close()
    for line in pipelines:
        line.sink.done.wait(max(0.0, ended - time.monotonic()))
        _open.pop(line, None)
    return done


@atexit.register
def _close_open() -> None:
    """Explain the queued rows of every pipeline that is still open when the interpreter exits."""
    close(list(_open), _EXIT_TIMEOUT)
