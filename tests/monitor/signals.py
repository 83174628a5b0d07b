"""Signals inside the monitor's calls: at every step of Python in turn, or at random moments, as a process of its own.

    python -m tests.monitor.signals steps WORKER STRIDE ACTION...
    python -m tests.monitor.signals random WORKER COUNT ACTION...

prints what came of it as JSON, by what the handler does. One that does not return ends the process with a trace.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from onnxcam.monitor import hook
from onnxcam.monitor.hook import Monitor
from tests.monitor.monitoring import SMALL, Collector, Stub, balanced, logits, pictures

SCORES, TENSOR = logits(3, spread=1.0), pictures(3, 8)
ACTIONS = ("raise", "close", "stats", "flush", "observe", "run", "watch", "wrap")
TIMEOUT = 0.05  # of the calls in handlers
PACKAGE = str(Path(hook.__file__).parent)


class Timeout(Exception):
    """What the handler of a request's alarm raises."""


class Session:
    """Predicts at once; stands in for a session of ONNX Runtime."""

    def get_inputs(self) -> list[Any]:
        return [type("Value", (), {"name": "input", "shape": ["N", 3, 8, 8]})]

    def get_outputs(self) -> list[Any]:
        return [type("Value", (), {"name": "logits", "shape": ["N", 5]})]

    def run(self, names: Any, feed: Any, options: Any = None) -> Any:
        return [SCORES]


class Trial:
    """One monitor after the other, whose calls are interrupted."""

    def __init__(self, action: str, worker: str) -> None:
        hook.RowExplainer = Stub  # type: ignore[assignment, misc]
        self.action, self.worker = action, worker
        self.calls = self.observed = self.interrupted = 0
        self.longest = 0.0
        self.handling = False
        self.renew()

    def renew(self) -> None:
        self.collector = Collector()
        self.monitor = Monitor(
            SMALL,
            sink=self.collector,
            when="confidence < 0.9",
            worker=self.worker,
            baseline_sample=0.5,
            queue=4,
            on_full="drop_oldest",
            rate=None,
            daily_budget=None,
            duplicates=0,
        )
        self.session = self.monitor.wrap(Session())
        self.watched = self.monitor.watch(image=0)(lambda tensor: SCORES)

    def act(self) -> None:
        """What a handler does."""
        monitor = self.monitor
        match self.action:
            case "raise":
                raise Timeout
            case "close":
                monitor.close(TIMEOUT)
            case "stats":
                assert balanced(monitor.stats())
            case "flush":
                monitor.flush(TIMEOUT)
            case "observe":
                assert monitor.observe(SCORES, tensor=TENSOR) >= 0
            case "run":
                assert self.session.run(None, {"input": TENSOR})[0] is SCORES
            case "watch":
                assert self.watched(TENSOR) is SCORES
            case "wrap":
                assert self.monitor.wrap(self.session) is self.session

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.handling:
            return
        self.handling = True
        self.calls += 1
        start = time.monotonic()
        try:
            self.act()
        finally:
            self.longest = max(self.longest, time.monotonic() - start)
            self.handling = False

    def check(self) -> None:
        """The books balance, nothing is left over, and the monitor goes on."""
        assert balanced(self.monitor.stats()), self.monitor.stats()
        if not self.monitor._pipeline.queue._state.value.accepting:
            self.finish()
            self.renew()

    def finish(self) -> None:
        start = time.monotonic()
        assert self.monitor.close(20), self.monitor.stats()
        assert self.collector.closed == 1
        stats = self.monitor.stats()
        assert balanced(stats) and stats["queued"] == stats["running"] == stats["queue_bytes"] == 0, stats
        records = len(self.collector.records)
        # inline an exception may strike between the sink and the next step of Python, which would count the row
        late = 3 if self.worker == "inline" and self.action == "raise" else 0
        assert stats["explained"] <= records <= stats["explained"] + late, (stats, records)
        assert time.monotonic() - start < 10

    def summary(self) -> dict[str, Any]:
        return {"calls": self.calls, "interrupted": self.interrupted, "longest": self.longest}


def steps(trial: Trial, call: Callable[[], Any], stride: int) -> int:
    """Interrupt `call` at each step of Python in the monitor's modules, one step a call; returns how many there are."""
    for step in itertools.count(0, stride):
        done = count = 0

        def trace(frame: FrameType, event: str, arg: Any, step: int = step) -> Any:
            nonlocal count, done
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
            if event == "opcode":
                if count == step and not done:
                    done = 1
                    signal.raise_signal(signal.SIGALRM)
                count += 1
            return trace

        sys.settrace(trace)
        try:
            call()
        except Timeout:
            trial.interrupted += 1
        finally:
            sys.settrace(None)
        if not done:
            return step
        assert trial.action != "raise" or trial.interrupted == trial.calls, "the exception was swallowed"
        trial.check()
    raise AssertionError("unreachable")


def at_random(trial: Trial, call: Callable[[], Any], count: int) -> None:
    """Interrupt `call` by alarms at random moments."""
    generator = random.Random(1)
    while trial.calls < count:
        pending = trial.calls
        try:
            signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-5, 6e-4))
            while trial.calls == pending:
                call()
        except Timeout:
            trial.interrupted += 1
        trial.check()
    signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(how: str, worker: str, number: int, action: str) -> dict[str, Any]:
    """Interrupt calls by a handler that does one thing."""
    faulthandler.dump_traceback_later(250, exit=True)
    trial = Trial(action, worker)
    signal.signal(signal.SIGALRM, trial.handle)
    calls: dict[str, Callable[[], Any]] = {
        "observe": lambda: trial.monitor.observe(SCORES, tensor=TENSOR),
        "run": lambda: trial.session.run(None, {"input": TENSOR}),
        "watch": lambda: trial.watched(TENSOR),
        "flush": lambda: trial.monitor.flush(TIMEOUT),
        "stats": lambda: trial.monitor.stats(),
        "close": lambda: trial.monitor.close(TIMEOUT),
    }
    if how == "random":
        at_random(trial, calls["observe"], number)
        result = trial.summary()
    else:
        result = {"steps": {name: steps(trial, call, number) for name, call in calls.items()}, **trial.summary()}
    trial.finish()
    return result


if __name__ == "__main__":
    print(json.dumps({action: attempt(sys.argv[1], sys.argv[2], int(sys.argv[3]), action) for action in sys.argv[4:]}))
