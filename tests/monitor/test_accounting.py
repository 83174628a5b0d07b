"""Promise 4: exact accounting, in rows, under every sequence of calls from eight threads at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from onnxcam.monitor import hook
from onnxcam.monitor.hook import Monitor
from onnxcam.monitor.predictions import Row
from tests.monitor.monitoring import SMALL, FakeClock, Stub, balanced, logits, pictures

THREADS = 8
POOL = ThreadPoolExecutor(THREADS)
BATCHES = {rows: (logits(rows, seed=rows), pictures(rows, 8)) for rows in (1, 2, 3, 7)}


class Faulty(Stub):
    """Explains some rows, fails at others."""

    def __call__(self, row: Row, waited: float) -> tuple[dict[str, Any], dict[str, bytes]]:
        if int(row.quantities["label"]) == 1:
            raise RuntimeError("planted")
        return super().__call__(row, waited)


class Sink:
    """Takes, refuses or holds back records."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.refuses = False
        self.written = 0

    def write(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        self.open.wait(10)
        if self.refuses:
            raise OSError("planted")
        self.written += 1

    def close(self, timeout: float) -> None: ...


class Accounting(RuleBasedStateMachine):
    """Observes, faults and closes in any order; `told` is what went in, counted apart."""

    monitor: Monitor

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.sink = Sink()
        self.observed = 0

    @initialize(
        on_full=st.sampled_from(["drop_newest", "drop_oldest"]),
        worker=st.sampled_from(["thread", "inline"]),
        rate=st.sampled_from([None, "5/s"]),
        daily_budget=st.sampled_from([None, 20]),
        queue=st.integers(1, 6),
        queue_bytes=st.sampled_from(["6KiB", "1MiB"]),
        sample=st.sampled_from([0.5, 1.0]),
        baseline_sample=st.sampled_from([0.0, 0.3]),
        duplicates=st.sampled_from([0, "1min"]),
    )
    def begin(self, **options: Any) -> None:
        self.monitor = Monitor(
            SMALL, sink=self.sink, when="confidence < 0.7", clock=self.clock, seed=1, burst=None, **options
        )

    @rule(rows=st.sampled_from(sorted(BATCHES)), calls=st.integers(1, 2))
    def observe(self, rows: int, calls: int) -> None:
        scores, tensor = BATCHES[rows]
        queued = list(POOL.map(lambda _: self._many(scores, tensor, calls), range(THREADS)))
        self.observed += rows * calls * THREADS
        assert all(0 <= n <= rows * calls for n in queued)

    def _many(self, scores: np.ndarray, tensor: np.ndarray, calls: int) -> int:
        return sum(self.monitor.observe(scores, tensor=tensor) for _ in range(calls))

    @rule(what=st.sampled_from(["columns", "rows", "words", "objects"]))
    def observe_nonsense(self, what: str) -> None:
        scores, tensor = BATCHES[3]
        nonsense: dict[str, tuple[Any, Any]] = {
            "columns": (scores[:, :2], tensor),
            "rows": (scores, tensor[:2]),
            "words": (np.array([["a"] * 5] * 3), tensor),
            "objects": (np.zeros((3, 5), np.float32), np.array([[object()]] * 3)),
        }
        assert self.monitor.observe(nonsense[what][0], tensor=nonsense[what][1]) == 0
        self.observed += 3

    @rule(seconds=st.sampled_from([0.1, 1.0, 90.0, 90_000.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(refuses=st.booleans())
    def sink_refuses(self, refuses: bool) -> None:
        self.sink.refuses = refuses

    @rule()
    def sink_hangs_and_recovers(self) -> None:
        self.sink.open.clear()
        threading.Timer(0.002, self.sink.open.set).start()

    @rule()
    def flush(self) -> None:
        assert self.monitor.flush(10)
        stats = self.monitor.stats()
        assert stats["queued"] == stats["running"] == stats["queue_bytes"] == 0

    @rule()
    def close(self) -> None:
        self.sink.open.set()
        self.monitor.close(10)
        assert self.monitor.stats()["queued"] == 0

    @invariant()
    def every_row_is_in_one_place(self) -> None:
        if hasattr(self, "monitor"):
            stats = self.monitor.stats()
            assert balanced(stats), stats
            assert stats["seen"] == self.observed
            assert min([stats["queued"], stats["running"], stats["queue_bytes"], *stats["dropped"].values()]) >= 0

    def teardown(self) -> None:
        if hasattr(self, "monitor"):
            self.sink.open.set()
            self.monitor.close(10)
            stats = self.monitor.stats()
            assert balanced(stats) and stats["queued"] == stats["running"] == 0, stats
            assert stats["explained"] == self.sink.written
            assert stats["seen"] == self.observed


@pytest.mark.slow
def test_a_thousand_sequences_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "RowExplainer", Faulty)
    run_state_machine_as_test(
        Accounting,
        settings=settings(
            max_examples=1000,
            stateful_step_count=10,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_stats_are_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    scores, tensor = BATCHES[7]
    stop = threading.Event()
    with Monitor(SMALL, sink=Sink(), when="confidence < 0.7", rate=None, queue=4) as monitor:

        def storm() -> None:
            while not stop.is_set():
                monitor.observe(scores, tensor=tensor)

        threads = [threading.Thread(target=storm) for _ in range(4)]
        for thread in threads:
            thread.start()
        looks, end = [], time.monotonic() + 0.3
        while time.monotonic() < end:
            looks.append(monitor.stats())
        stop.set()
        for thread in threads:
            thread.join()
    assert all(map(balanced, looks))
    assert looks[-1]["seen"] > looks[0]["seen"]
