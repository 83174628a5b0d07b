"""Promise 9: `close(t)` returns within t + 0.5 s, whatever hangs; and an interpreter that ends explains what waits."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from onnxcam.monitor import row_explainer
from onnxcam.monitor.hook import Monitor
from tests.monitor.monitoring import ALWAYS, MODEL, UNLIMITED, Collector, Gate, balanced, logits, pictures


class HangingClose(Collector):
    """A sink that cannot let go."""

    def close(self, timeout: float) -> None:
        threading.Event().wait(30)


def timed_close(monitor: Monitor, timeout: float) -> tuple[float, bool]:
    start = time.monotonic()
    done = monitor.close(timeout)
    return time.monotonic() - start, done


@pytest.mark.sample(2)
@pytest.mark.parametrize("timeout", [0.0, 0.4])
@pytest.mark.parametrize("what", ["session", "sink", "closing sink", "opening"])
def test_close_returns_in_time(what: str, timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    release, entered = threading.Event(), threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        entered.set()
        release.wait(30)
        raise RuntimeError("released")

    sink: Any = HangingClose() if what == "closing sink" else (hang if what == "sink" else Collector())
    if what == "session":
        monkeypatch.setattr(row_explainer.Explainer, "attribute", hang)
    if what == "opening":
        monkeypatch.setattr(row_explainer, "Explainer", hang)
    monitor = Monitor(MODEL, sink=sink, when=ALWAYS, **UNLIMITED)
    monitor.observe(logits(3), tensor=pictures(3))
    if what == "closing sink":
        assert monitor.flush(10)
    else:
        assert entered.wait(10)
    seconds, done = timed_close(monitor, timeout)
    assert seconds < timeout + 0.5
    assert done == (what == "closing sink")
    stats = monitor.stats()
    assert balanced(stats) and stats["queued"] == 0
    assert (stats["running"], stats["dropped"]["closed"]) == ((0, 0) if what == "closing sink" else (1, 2))
    again, _ = timed_close(monitor, timeout)
    assert again < timeout + 0.5
    assert monitor.observe(logits(2), tensor=pictures(2)) == 0
    assert monitor.stats()["dropped"]["closed"] == stats["dropped"]["closed"] + 2
    release.set()


@pytest.mark.slow
def test_close_ends_a_hung_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the child imports this package anew, so the hang is planted in the file it reads: a pipe nobody writes to
    import os

    os.mkfifo(tmp_path / "picture")
    monitor = Monitor(MODEL, sink=Collector(), when=ALWAYS, worker="process", preprocess="0..1", **UNLIMITED)
    monitor.observe(logits(1), tensor=pictures(1))
    assert monitor.flush(60) and monitor.stats()["explained"] == 1
    child = monitor._pipeline.handler._explain
    monkeypatch.setattr("onnxcam.image.picture.MAX_PIXELS", 1)
    os.kill(child.pid, 19)  # type: ignore[union-attr]  # SIGSTOP: it answers nothing any more
    monitor.observe(logits(1), tensor=pictures(1))
    time.sleep(0.1)
    seconds, done = timed_close(monitor, 0.5)
    assert seconds < 1.0 and not done
    assert child._process.wait(60) == -9  # type: ignore[union-attr]
    monitor._pipeline.worker.join(5)
    stats = monitor.stats()
    assert balanced(stats) and stats["failures"]["worker"] == 1


def test_close_explains_what_waits() -> None:
    collector = Collector()
    monitor = Monitor(MODEL, sink=collector, when=ALWAYS, **UNLIMITED)
    monitor.observe(logits(30), tensor=pictures(30))
    assert monitor.close(30)
    assert len(collector.records) == 30 and collector.closed == 1
    assert monitor.close(30) and collector.closed == 1


def test_flush_gives_up_in_time() -> None:
    gate = Gate()
    with Monitor(MODEL, sink=gate, when=ALWAYS, **UNLIMITED) as monitor:
        monitor.observe(logits(2), tensor=pictures(2))
        start = time.monotonic()
        assert not monitor.flush(0.2)
        assert 0.2 <= time.monotonic() - start < 0.5
        gate.open.set()
        assert monitor.flush(10)


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["thread", "process"])
def test_the_end_of_the_interpreter_waits_for_what_waits(worker: str, tmp_path: Path) -> None:
    """Five seconds: on a machine where everything is others' that may not be enough, but it has to have been tried."""
    script = f"""
import onnxcam
from tests.monitor.monitoring import ALWAYS, MODEL, UNLIMITED, logits, pictures
monitor = onnxcam.Monitor(MODEL, sink={str(tmp_path)!r}, when=ALWAYS, worker={worker!r}, **UNLIMITED)
assert monitor.observe(logits(5), tensor=pictures(5)) == 5
"""
    root = Path(__file__).parent.parent.parent
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    written = sum(len(p.read_text().splitlines()) for p in tmp_path.glob("records/*.jsonl"))
    assert written == 5 or time.monotonic() - began > 5.0
