"""Promises 1 and 13: whatever breaks inside the monitor, predictions stay as they are, and logs stay short."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from onnxcam.errors import OutputError
from onnxcam.monitor import hook, selection, session, worker
from onnxcam.monitor.accounting import RowCounts
from onnxcam.monitor.admission import RateLimiter, Sampler
from onnxcam.monitor.error_log import ErrorLog
from onnxcam.monitor.hook import Monitor
from onnxcam.monitor.predictions import Batch
from onnxcam.monitor.queue import RowQueue
from onnxcam.monitor.selection import Selector
from onnxcam.targets import conditions
from tests.monitor.monitoring import (
    ALWAYS,
    SMALL,
    SMALL_PLAIN,
    UNLIMITED,
    Collector,
    FakeClock,
    Stub,
    balanced,
    pictures,
)

CALLS = pytest.mark.parametrize("calls", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])
FAILURES = 10_000


class BrokenClock(FakeClock):
    """Works until it is told to break."""

    broken = False

    def monotonic(self) -> float:
        if self.broken:
            raise OSError("planted")
        return super().monotonic()

    def time(self) -> float:
        return self.monotonic()


class BrokenHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError("planted")


# stage -> the callable that breaks there
STAGES: dict[str, tuple[Any, str]] = {
    "scores": (selection, "to_numpy"),
    "shape": (Selector, "as_rows"),
    "batch": (session, "Batch"),
    "batch rows": (Batch, "as_rows"),
    "probabilities": (conditions, "probabilities"),
    "condition": (conditions, "evaluate"),
    "sampling": (Sampler, "sample"),
    "bucket and budget": (RateLimiter, "admit"),
    "spending": (RateLimiter, "spend"),
    "sizes": (Batch, "sizes"),
    "admission": (RowQueue, "admit"),
    "accounting": (RowCounts, "observe"),
    "copy": (Batch, "copy_row"),
    "row": (hook, "Row"),
    "quantities": (Selector, "quantities"),
    "put": (RowQueue, "add"),
    "thread": (threading.Thread, "start"),
    "take": (RowQueue, "take"),
    "opening": (hook, "RowExplainer"),
    "explaining": (Stub, "__call__"),
    "duplicates": (worker.DuplicateFilter, "key"),
    "sink": (Collector, "write"),
    "error log": (ErrorLog, "report"),
    "value names": (session.ValueNames, "outputs"),
}


def planted(*_: Any, **__: Any) -> Any:
    raise RuntimeError("planted")


def every_third(real: Callable[..., Any]) -> Callable[..., Any]:
    """Breaks, but now and then, so that what comes behind it is reached too."""
    count = itertools.count()

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        if next(count) % 3:
            raise RuntimeError("planted")
        return real(*args, **kwargs)

    return sometimes


@pytest.fixture(scope="module")
def plain() -> Iterator[tuple[Any, list[dict[str, np.ndarray]], list[list[np.ndarray]]]]:
    served = ort.InferenceSession(SMALL_PLAIN)
    feeds = [{"input": pictures(rows, 8, seed)} for seed, rows in enumerate([1, 2, 1, 1])]
    yield served, feeds, [served.run(None, feed) for feed in feeds]


@pytest.mark.slow
@CALLS
@pytest.mark.parametrize("stage", STAGES)
def test_predictions_do_not_notice(stage: str, calls: int, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served, feeds, expected = plain
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    monitor = Monitor(SMALL, sink=Collector(), when=ALWAYS, queue=8, **UNLIMITED)
    watched = monitor.wrap(served)
    owner, name = STAGES[stage]
    real = getattr(owner, name)
    broken = planted if stage in ("thread", "error log") else every_third(getattr(real, "fget", real))
    broken = property(broken) if isinstance(real, property) else broken
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        for call in range(calls):
            kind = call % len(feeds)
            names = (None, ["logits"], [])[call % 3]
            outputs = watched.run(names, feeds[kind])
            assert outputs[0].tobytes() == expected[kind][0].tobytes()
    if stage != "accounting":  # what counts is broken itself
        assert balanced(monitor.stats()), monitor.stats()
    assert monitor.close(5) or stage in ("take", "thread")
    assert stage == "accounting" or monitor.stats()["queued"] == 0


@pytest.mark.slow
@CALLS
def test_predictions_do_not_notice_a_broken_clock(calls: int, plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served, feeds, expected = plain
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    clock = BrokenClock()
    monitor = Monitor(SMALL, sink=Collector(), when=ALWAYS, clock=clock, queue=8, **UNLIMITED)
    watched = monitor.wrap(served)
    for call in range(calls):
        clock.broken = call % 3 > 0
        assert watched.run(None, feeds[call % 4])[0].tobytes() == expected[call % 4][0].tobytes()
    clock.broken = False
    assert balanced(monitor.stats())
    monitor.close(5)


def test_predictions_do_not_notice_a_broken_log_handler(plain: Any) -> None:
    served, feeds, expected = plain
    log, handler = logging.getLogger("onnxcam.monitor"), BrokenHandler()
    log.addHandler(handler)
    try:
        with Monitor(SMALL, sink=planted, when=ALWAYS, **UNLIMITED) as monitor:
            watched = monitor.wrap(served)
            for feed, scores in zip(feeds, expected, strict=True):
                assert watched.run(None, feed)[0].tobytes() == scores[0].tobytes()
            assert monitor.observe("nonsense", tensor=3) == 0
            assert monitor.flush(10)
            assert monitor.stats()["failures"]["sink"] == 5
    finally:
        log.removeHandler(handler)


def test_a_failed_prediction_fails_as_before(plain: Any) -> None:
    served, _, _ = plain
    with Monitor(SMALL, sink=Collector(), when=ALWAYS) as monitor:
        watched = monitor.wrap(served)
        for names, feed in ((["logits"], {"input": pictures(1, 9)[:, :2]}), (None, {}), (["nothing"], {})):
            with pytest.raises(Exception) as as_before:
                served.run(names, feed)
            with pytest.raises(type(as_before.value)) as watched_error:
                watched.run(names, feed)
            assert str(watched_error.value) == str(as_before.value)
        assert monitor.stats()["seen"] == 0


@pytest.mark.parametrize("error", [OSError, OutputError, SystemExit, KeyboardInterrupt, MemoryError])
def test_a_worker_outlives_what_a_sink_raises(error: type[BaseException]) -> None:
    calls = itertools.count()

    def sink(record: Any, files: Any) -> None:
        if next(calls) < 3:
            raise error("planted")

    with Monitor(SMALL, sink=sink, when=ALWAYS, **UNLIMITED) as monitor:
        for _ in range(5):
            monitor.observe(np.zeros((1, 5)), tensor=pictures(1, 8))
        assert monitor.flush(10)
        stats = monitor.stats()
        assert (stats["explained"], stats["failed"], stats["failures"]["sink"]) == (2, 3, 3)


@pytest.mark.slow
def test_a_repeated_error_is_logged_once_in_twenty_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    clock = FakeClock()
    monitor = Monitor(SMALL, sink=planted, when=ALWAYS, clock=clock, worker="inline", **UNLIMITED)
    start, step = clock.now, 0.01
    scores, nonsense, tensor = np.zeros((1, 5)), np.zeros((1, 3)), pictures(1, 8)
    moments: dict[str, list[float]] = {}

    class Moments(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            moments.setdefault(str(record.args[0] if isinstance(record.args, tuple) else ""), []).append(clock.now)

    handler = Moments()
    logging.getLogger("onnxcam.monitor").addHandler(handler)
    try:
        for _ in range(FAILURES):
            clock.now += step
            monitor.observe(scores, tensor=tensor)  # fails in the sink
            monitor.observe(nonsense, tensor=tensor)  # fails before anything is queued
    finally:
        logging.getLogger("onnxcam.monitor").removeHandler(handler)
    assert monitor.stats()["failures"]["sink"] == FAILURES
    assert monitor.stats()["dropped"]["invalid"] == FAILURES
    assert len(moments) == 2
    for times in moments.values():
        assert len(times) == 5  # in the 100 seconds that 10,000 calls took
        assert min(np.diff(times)) >= 20 and times[0] == start + step
    assert (
        sum("1999 more like it" in r.getMessage() or "2000 more like it" in r.getMessage() for r in caplog.records) >= 6
    )


def test_two_threads_do_not_log_the_same_twice(caplog: pytest.LogCaptureFixture) -> None:
    complaints = ErrorLog(FakeClock())
    threads = [
        threading.Thread(target=lambda: [complaints.report("sink", OSError("planted")) for _ in range(500)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    complaints.report("sink", ValueError("another kind"))
    assert [r.getMessage() for r in caplog.records] == ["sink (OSError): planted", "sink (ValueError): another kind"]
