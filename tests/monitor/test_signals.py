"""Promise 21: every call of the monitor returns in its time from a signal handler, whatever the handler interrupted.

And what a handler raises passes to the caller, with balanced books: `signals` does it in a process of its own.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxcam.errors import InputError, OutputError
from onnxcam.monitor.interruptions import interruption
from tests.monitor.signals import ACTIONS, TIMEOUT

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs alarms")


def run(how: str, worker: str, number: int, actions: tuple[str, ...]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.monitor.signals", how, worker, str(number), *actions]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


def check(results: dict[str, Any], count: int) -> None:
    assert set(results) <= set(ACTIONS)
    for action, result in results.items():
        assert result["calls"] >= count, (action, result)
        assert result["interrupted"] == (result["calls"] if action == "raise" else 0), (action, result)
        # the machine is others' too
        assert result["longest"] < TIMEOUT + 0.5 + 1.0, (action, result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "stride"),
    [
        ("thread", 499),
        ("inline", 1999),  # explains within the call
        pytest.param("thread", 1, marks=pytest.mark.soak),
        pytest.param("inline", 7, marks=pytest.mark.soak),
    ],
)
def test_at_every_step(worker: str, stride: int) -> None:
    """Each of the some 3,000 steps of Python of a call is interrupted in a call of its own."""
    whole = stride < 10
    for actions in [(action,) for action in ACTIONS] if whole else [ACTIONS]:
        results = run("steps", worker, stride, actions)
        check(results, 2500 // stride)
        for result in results.values():
            assert result["steps"]["observe"] > 2500 and result["steps"]["close"] > 500, result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "count"),
    [("thread", 60), *(pytest.param(w, 1000, marks=pytest.mark.soak) for w in ("thread", "inline", "process"))],
)
def test_at_random_moments(worker: str, count: int) -> None:
    check(run("random", worker, count, ("raise", "close", "stats", "flush", "observe")), count)


class Alarm(Exception):
    """Of a handler."""


def handler(number: int, frame: Any) -> None:
    raise Alarm


class Request:
    def method(self, number: int, frame: Any) -> None:
        raise Alarm

    def __call__(self, *arguments: Any) -> None:
        raise Alarm


def forgetful(number: int, frame: Any) -> None:
    del number, frame
    raise Alarm


def named(request: str, number: int, frame: Any) -> None:
    raise Alarm


HANDLERS: dict[str, Callable[..., Any]] = {
    "function": handler,
    "method": Request().method,
    "callable": Request(),
    "partial": functools.partial(named, "r1"),
    "lambda": lambda *_: handler(0, None),
    "forgetful": forgetful,
}


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_handler_raises_is_told_apart(name: str, wrapped: bool) -> None:
    import signal

    def work() -> None:
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, HANDLERS[name])
    try:
        if wrapped:  # as a sink's failure is
            try:
                work()
            except Alarm as error:
                raise OutputError("planted") from error
        work()
    except (Alarm, OutputError) as error:
        failure: BaseException = error
    finally:
        signal.signal(signal.SIGUSR1, before)
        # a handler that was replaced by the time is known by its arguments
    passing = interruption(failure)
    assert isinstance(passing, Alarm) or name == "forgetful"


def test_errors_of_our_own_do_not_pass() -> None:
    def look(frame: Any, number: int = 14) -> None:
        raise ValueError("planted")

    def fail() -> None:
        look(sys._getframe(1).f_back)

    for function in (fail, lambda: int("x"), lambda: [][0]):
        try:
            function()
        except Exception as error:
            failure = error
        assert interruption(failure) is None
    assert interruption(InputError("planted")) is None
    for error in (KeyboardInterrupt(), SystemExit(), GeneratorExit()):
        assert interruption(error) is error


def test_what_the_caller_is_handling_is_left_alone() -> None:
    """A service falls back to another model after a timeout: an error there has that timeout as its context."""
    import signal

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        signal.raise_signal(signal.SIGUSR1)
    except Alarm:
        try:
            int("x")
        except ValueError as error:
            failure = error
        assert isinstance(failure.__context__, Alarm) and interruption(failure) is None
    finally:
        signal.signal(signal.SIGUSR1, before)
