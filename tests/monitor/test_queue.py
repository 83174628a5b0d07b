"""Promise 5: everything queued counts towards `queue_bytes`; room that a call reserved is free again after it."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from onnxcam.monitor import hook
from onnxcam.monitor.admission import Limits
from onnxcam.monitor.hook import Monitor
from onnxcam.monitor.predictions import Row
from onnxcam.monitor.queue import Candidates, Capacity, Fifo, RowQueue, Ticket
from onnxcam.network.explainable import augment
from tests.monitor.monitoring import ALWAYS, SMALL, UNLIMITED, FakeClock, Gate, Stub, balanced, logits, pictures
from tests.support.models import tiny_cnn

NO_LIMITS = Limits(None, None, None, False)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A sink that hangs: what is observed stays queued."""
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    gate = Gate()
    yield gate
    gate.open.set()


def growth(monitor: Monitor, gate: Gate, calls: int, scores: np.ndarray, **keywords: Any) -> tuple[int, dict[str, Any]]:
    """Bytes that a full queue takes, as Python's allocator counts them, and the monitor's counts."""
    monitor.observe(scores, **keywords)
    assert gate.entered.wait(10)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(calls):
            monitor.observe(scores, **keywords)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before, monitor.stats()
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_scores_of_many_classes_count(gate: Gate) -> None:
    """50,000 classes: a row is 192 KiB of scores and less than a KiB of picture."""
    limit = 8 << 20
    model = augment(tiny_cnn(classes=50_000, size=8, width=2), probe=False)
    monitor = Monitor(model, sink=gate, when=ALWAYS, queue=10**6, queue_bytes=limit, **UNLIMITED)
    scores = np.random.default_rng(0).normal(size=(4, 50_000)).astype(np.float32)
    accepted, stats = growth(monitor, gate, 30, scores, tensor=pictures(4, 8))
    assert 30 < stats["queued"] < limit / (4 * 50_000) and stats["dropped"]["bytes"] > 50
    assert limit * 0.9 < stats["queue_bytes"] <= limit
    assert accepted < limit * 1.02, (accepted, stats)
    monitor.close(0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny", "names", "encoded", "paths"])
def test_small_rows_take_what_they_count(kind: str, gate: Gate) -> None:
    limit = 1 << 20
    monitor = Monitor(SMALL, sink=gate, when=ALWAYS, queue=10**6, queue_bytes=limit, **UNLIMITED)
    keywords: dict[str, Any] = {"tensor": pictures(4, 8)}
    if kind == "names":
        keywords |= {"ids": ["\U0001f600" * 300 + str(k) for k in range(4)], "traces": ["trace" * 60] * 4}
    if kind == "encoded":
        keywords = {"pictures": [bytearray(3000) for _ in range(4)]}
    if kind == "paths":
        keywords = {"pictures": ["x" * 2000 + str(k) for k in range(4)]}
    accepted, stats = growth(monitor, gate, 500, logits(4), **keywords)
    assert stats["dropped"]["bytes"] > 0 and limit * 0.9 < stats["queue_bytes"] <= limit and balanced(stats)
    assert accepted < limit * 1.1, (accepted, stats)
    monitor.close(0)


def row(size: int = 1) -> Row:
    return Row(0.0, 0.0, np.ones(1), {"label": 0}, "condition", 1.0, size)


def test_reserved_room_is_free_again_when_the_call_is_over() -> None:
    queue = RowQueue(NO_LIMITS, Capacity(10, 1000, "drop_newest"), FakeClock())

    def ticket(rows: int) -> tuple[Ticket, list[int]]:
        result = Ticket()
        result.observed = rows
        return result, queue.admit(result, 0, [Candidates([1] * rows, False)])

    first, admitted = ticket(8)
    assert admitted == [8] and not first.counted and queue.counts()["seen"] == 0
    second, admitted = ticket(8)
    assert admitted == [2], "what another call copies at the moment has its room"
    assert queue.add(second, [row(), row()], {}) == 2
    assert second.counted and queue.counts()["dropped"]["queue"] == 6
    queue.refuse(first, 0, "interrupted")
    queue.refuse(second, 0, "interrupted")
    assert (queue.counts()["seen"], queue.counts()["dropped"]["interrupted"]) == (16, 8)
    third, admitted = ticket(20)
    assert admitted == [8]
    del third  # an exception ended the call, and the one that followed it too
    assert ticket(20)[1] == [8]
    assert balanced(queue.counts())


def test_a_copy_larger_than_was_reserved_is_dropped() -> None:
    queue = RowQueue(NO_LIMITS, Capacity(10, 100, "drop_newest"), FakeClock())
    ticket = Ticket()
    ticket.observed = 2
    assert queue.admit(ticket, 0, [Candidates([50, 50], False)]) == [2]
    assert queue.add(ticket, [row(60), row(60)], {}) == 1
    assert (queue.counts()["queue_bytes"], queue.counts()["dropped"]["bytes"]) == (60, 1)


@pytest.mark.slow
def test_first_in_first_out() -> None:
    queue, model, number = Fifo(), [], 0
    generator = np.random.default_rng(0)
    for _ in range(2000):
        if model and generator.random() < 0.5:
            one, queue = queue.pop()
            assert one.size == model.pop(0)
        else:
            number += 1
            queue = queue.push(row(number))
            model.append(number)
        assert bool(queue) == bool(model)
    one = row()
    for _ in range(100_000):  # freed without recursion
        queue = queue.push(one)
    del queue
