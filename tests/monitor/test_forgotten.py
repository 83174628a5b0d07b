"""A monitor that nobody closed: collected with a warning once nothing refers to it; several close within one bound."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from onnxcam.monitor import hook, pipeline
from onnxcam.monitor.hook import Monitor
from tests.monitor.monitoring import ALWAYS, SMALL, SMALL_PLAIN, UNLIMITED, Collector, Gate, Stub, logits, pictures

ROOT = Path(__file__).parents[2]
SCORES, TENSOR = logits(5), pictures(5, 8)


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hook, "RowExplainer", Stub)
    before = set(pipeline._open)
    yield
    assert until(lambda: set(pipeline._open) <= before), "what was forgotten is released"


def until(condition: Any, timeout: float = 10.0) -> bool:
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.sample(2)
@pytest.mark.parametrize("worker", ["thread", "inline"])
@pytest.mark.parametrize("rows", [0, 5])
def test_it_is_collected_with_a_warning(worker: str, rows: int) -> None:
    collector = Collector()
    monitor = Monitor(SMALL, sink=collector, when=ALWAYS, worker=worker, **UNLIMITED)
    if rows:
        monitor.observe(SCORES, tensor=TENSOR)
    ref = weakref.ref(monitor)
    with pytest.warns(ResourceWarning, match=r"a monitor of 'model' was never closed; call close\(\)"):
        del monitor
        gc.collect()
    assert ref() is None
    assert until(lambda: collector.closed == 1), "its sink is closed"
    assert len(collector.records) == rows, "what was queued is explained"
    assert until(lambda: all(thread.name != "onnxcam-monitor" for thread in threading.enumerate()))


@pytest.mark.slow
def test_what_serves_with_it_keeps_it() -> None:
    collector = Collector()
    session = Monitor(SMALL, sink=collector, when=ALWAYS, **UNLIMITED).wrap(ort.InferenceSession(SMALL_PLAIN))
    predict = Monitor(SMALL, sink=collector, when=ALWAYS, **UNLIMITED).watch()(lambda tensor: SCORES)
    gc.collect()
    session.run(None, {"input": TENSOR})
    predict(TENSOR)
    assert until(lambda: len(collector.records) == 10)
    with pytest.warns(ResourceWarning):
        del session
        gc.collect()
    with pytest.warns(ResourceWarning):
        del predict
        gc.collect()
    assert until(lambda: collector.closed == 2)


def test_one_that_was_closed_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = Monitor(SMALL, sink=Collector(), when=ALWAYS, **UNLIMITED)
        monitor.observe(SCORES, tensor=TENSOR)
        monitor.close(10)
        del monitor
        with pytest.raises(Exception, match="rate"):
            Monitor(SMALL, sink=Collector(), rate="fast")  # half made
        gc.collect()


@pytest.mark.slow
def test_threads_do_not_pile_up() -> None:
    before = threading.active_count()
    for _ in range(20):
        with Monitor(SMALL, sink=Collector(), when=ALWAYS, **UNLIMITED) as monitor:
            monitor.observe(SCORES, tensor=TENSOR)
    assert until(lambda: threading.active_count() <= before)


@pytest.mark.parametrize("timeout", [0.0, 0.5])
def test_many_that_hang_close_within_one_bound(timeout: float) -> None:
    gates = [Gate() for _ in range(8)]
    monitors = [Monitor(SMALL, sink=gate, when=ALWAYS, **UNLIMITED) for gate in gates]
    for monitor, gate in zip(monitors, gates, strict=True):
        monitor.observe(SCORES, tensor=TENSOR)
        assert gate.entered.wait(10)
    start = time.monotonic()
    assert pipeline.close([monitor._pipeline for monitor in monitors], timeout) == [False] * 8
    assert time.monotonic() - start < timeout + 0.5
    for monitor, gate in zip(monitors, gates, strict=True):
        monitor._closed = True
        assert monitor.stats()["dropped"]["closed"] == 4
        gate.open.set()


EXIT = """
    import time
    import onnxcam
    from onnxcam.monitor import pipeline
    from tests.monitor.monitoring import ALWAYS, SMALL, UNLIMITED, Gate, Collector, logits, pictures

    pipeline._EXIT_TIMEOUT = 1.0
    monitors, kept = [], Collector()
    for sink in [Gate() for _ in range(6)] + [kept]:
        monitors.append(onnxcam.Monitor(SMALL, sink=sink, when=ALWAYS, **UNLIMITED))
        monitors[-1].observe(logits(5), tensor=pictures(5, 8))
        assert sink is kept or sink.entered.wait(60)
    import atexit
    begin = time.monotonic()
    atexit._run_exitfuncs()
    print(round(time.monotonic() - begin, 3), len(kept.records), kept.closed)
"""


@pytest.mark.slow
def test_the_interpreter_exits_within_one_bound() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXIT)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    seconds, records, closed = done.stdout.split()
    assert float(seconds) < 1.0 + 0.5 + 0.5 and (records, closed) == ("5", "1")
