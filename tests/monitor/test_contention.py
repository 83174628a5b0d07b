"""A worker on contended processors backs off between explanations, unless a caller waits for the queue."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from onnxcam.monitor import hook, worker
from onnxcam.monitor.hook import Monitor
from tests.monitor.monitoring import ALWAYS, CLASSES, SMALL, UNLIMITED, Collector, Stub, pictures


def observed(monitor: Monitor, rows: int) -> None:
    monitor.observe(np.zeros((rows, CLASSES), np.float32), tensor=pictures(rows, 8))


class Urgent(threading.Event):
    """The queue's event, which shows whether and how long the worker backs off."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = False
        self.timeouts: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        self.waiting = True
        try:
            return super().wait(timeout)
        finally:
            self.waiting = False


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def explained_when_backing_off(monitor: Monitor) -> int:
    """The rows explained once the worker waits and nothing ends that wait."""
    urgent = monitor._pipeline.queue.urgent
    assert isinstance(urgent, Urgent)
    until(lambda: urgent.waiting and not urgent.is_set())
    return int(monitor.stats()["explained"])


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Monitor:
    """On a machine where every explanation runs 10 ms and waits 100 s for them."""
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    looks = itertools.count()
    monkeypatch.setattr(worker, "_scheduled", lambda: ((n := next(looks)) * 0.01, n * 100.0))
    monitor = Monitor(SMALL, sink=Collector(), when=ALWAYS, worker="thread", **UNLIMITED)
    monitor._pipeline.queue.urgent = Urgent()
    return monitor


def test_it_backs_off_after_each_explanation(monitor: Monitor) -> None:
    observed(monitor, 3)
    assert explained_when_backing_off(monitor) == 1
    assert monitor._pipeline.queue.urgent.timeouts == [5.0]  # type: ignore[attr-defined]
    monitor.close(0.1)


def test_flush_ends_the_wait(monitor: Monitor) -> None:
    observed(monitor, 5)
    assert explained_when_backing_off(monitor) == 1
    began = time.monotonic()
    assert monitor.flush(4.0) and time.monotonic() - began < 4.0
    assert monitor.stats()["explained"] == 5
    observed(monitor, 3)  # nobody waits any more
    assert 5 <= explained_when_backing_off(monitor) <= 6
    assert monitor.close(4.0) and monitor.stats()["explained"] == 8


def test_it_works_through_where_nobody_else_wants_the_processors(
    monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_scheduled", lambda: (time.monotonic(), 0.0))
    observed(monitor, 20)
    until(lambda: monitor.stats()["explained"] == 20)
    monitor.close(1.0)


def test_a_worker_in_another_process_does_not_back_off_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    with Monitor(SMALL, sink=Collector(), when=ALWAYS, worker="process", **UNLIMITED) as monitor:
        monkeypatch.setattr(worker, "_scheduled", lambda: pytest.fail("nothing to ask"))
        observed(monitor, 2)
        assert monitor.flush(60)
        assert monitor.stats()["explained"] == 2


@pytest.mark.slow
def test_what_the_system_says_of_this_thread() -> None:
    ran, waited = worker._scheduled()
    assert ran >= 0 and waited >= 0
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    after, _ = worker._scheduled()
    assert after == ran == 0.0 or after - ran >= 0.04
