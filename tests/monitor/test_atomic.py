"""Changes in one step: none is lost between threads, none half done after an exception, nothing old is kept."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from typing import Any

import pytest

from onnxcam.monitor.atomic import Cell, Claim, Event, Receipt


class Value:
    """A number that can be referred to weakly."""

    def __init__(self, number: int) -> None:
        self.number = number


def test_no_change_is_lost_between_threads() -> None:
    cell, threads, times = Cell(Value(0)), 8, 2000
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [
            threading.Thread(
                target=lambda: [cell.update(lambda value: Value(value.number + 1)) for _ in range(times)] and None
            )
            for _ in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert cell.value.number == threads * times


def test_a_change_inside_a_change_is_kept() -> None:
    """As a signal handler makes it: the outer one is computed again."""
    cell, looks = Cell(0), []

    def outer(value: int) -> int:
        looks.append(value)
        if len(looks) == 1:
            cell.update(lambda inner: inner + 10)
        return value + 1

    assert cell.update(outer) == cell.value == 11
    assert looks == [0, 10]


class Stop(Exception):
    """Planted."""


def test_an_exception_at_any_step_leaves_the_change_made_or_not_made() -> None:
    """And the receipt tells which, and the next change is made."""
    step = 0
    outcomes = set()
    while True:
        cell, receipt, count, struck = Cell(0), Receipt(), 0, False

        def trace(frame: Any, event: str, arg: Any, step: int = step) -> Any:
            nonlocal count, struck
            frame.f_trace_opcodes = True
            if event == "opcode" and "atomic" in frame.f_code.co_filename:
                count += 1
                if count > step and not struck:
                    struck = True
                    raise Stop
            return trace

        sys.settrace(trace)
        try:
            cell.update(lambda value: value + 1, receipt)
        except Stop:
            pass
        finally:
            sys.settrace(None)
        assert cell.value == int(receipt.in_effect)
        outcomes.add(receipt.in_effect)
        assert cell.update(lambda value: value + 10) == cell.value == int(receipt.in_effect) + 10
        if not struck:
            break
        step += 1
    assert step > 100 and outcomes == {False, True}


def test_old_values_are_not_kept() -> None:
    cell = Cell(Value(0))
    old = cell._newest()  # as a thread has it that was stopped in the middle, or an exception that somebody keeps
    refs = []
    for number in range(100):
        refs.append(weakref.ref(cell.update(lambda _, number=number: Value(number))))  # type: ignore[misc]
    gc.collect()
    assert [ref() is not None for ref in refs] == [False] * 99 + [True]
    assert old.value.number == 0 and cell.value.number == 99
    assert len(cell._heads) == 1


def test_an_event_wakes_who_waits() -> None:
    event = Event()
    assert not event.wait(0.01) and not event.is_set()
    waiters = [threading.Thread(target=event.wait) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.02)
    event.set()
    event.set()
    for waiter in waiters:
        waiter.join(5)
        assert not waiter.is_alive()
    assert event.wait(0) and event.wait()
    event.clear()
    assert not event.wait(0.01)
    event.set()
    assert event.wait(0)


def test_no_wake_is_lost() -> None:
    event, left = Event(), threading.Semaphore(0)

    def wait() -> None:
        for _ in range(2000):
            assert event.wait(10)
            event.clear()
            left.release()

    waiter = threading.Thread(target=wait)
    waiter.start()
    for _ in range(2000):
        event.set()
        assert left.acquire(timeout=10)
    waiter.join(10)


def test_a_claim_has_one_holder_and_ends_with_it() -> None:
    claim, first, second = Claim(), Value(1), Value(2)
    assert claim.holder is None
    assert claim.take(first) and claim.take(first) and not claim.take(second)
    claim.release(second)
    assert claim.holder is first
    claim.release(first)
    assert claim.holder is None and claim.take(second)
    del second
    assert claim.holder is None and claim.take(first)


@pytest.mark.parametrize("threads", [8])
def test_one_of_many_gets_a_claim(threads: int) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            claim, holders, barrier = Claim(), [Value(k) for k in range(threads)], threading.Barrier(threads)
            won: list[int] = []

            def run(holder: Value, claim: Claim = claim, barrier: Any = barrier, won: list[int] = won) -> None:
                barrier.wait()
                if claim.take(holder):
                    won.append(holder.number)

            workers = [threading.Thread(target=run, args=(holder,)) for holder in holders]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert len(won) == 1 and claim.holder is holders[won[0]]
    finally:
        sys.setswitchinterval(before)
