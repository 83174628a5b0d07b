"""The queue: its bounds, its time limit, clients that leave, and the end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from onnxcam.server.refusals import ClientLeft, Refusal
from onnxcam.server.scheduler import Attempt, Scheduler


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


class Blocked:
    """Work that waits to be let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began = threading.Semaphore(0)
        self.attempts: list[Attempt] = []

    def __call__(self, attempt: Attempt) -> str:
        self.attempts.append(attempt)
        self.began.release()
        assert self.gate.wait(20)
        attempt.check()
        return "done"


async def began(work: Blocked, count: int = 1) -> None:
    for _ in range(count):
        while not work.began.acquire(blocking=False):
            await asyncio.sleep(0.002)


async def status_of(task: asyncio.Task[Any]) -> int:
    with pytest.raises(Refusal) as refusal:
        await task
    return refusal.value.status


def test_results_and_errors_come_back() -> None:
    async def main() -> None:
        scheduler = Scheduler(2, 4, 1000, 10.0)
        assert await scheduler.submit(lambda attempt: threading.current_thread().name, size=1) != "MainThread"
        with pytest.raises(ZeroDivisionError):
            await scheduler.submit(lambda attempt: 1 // 0, size=1)
        assert (scheduler.waiting, scheduler.running, scheduler.bytes) == (0, 0, 0)
        scheduler.close()

    run(main())


def test_beyond_the_queue_is_429_with_a_time_to_try_again() -> None:
    async def main() -> None:
        scheduler, work = Scheduler(1, 2, 1000, 10.0), Blocked()
        tasks = [asyncio.create_task(scheduler.submit(work, size=10)) for _ in range(3)]
        await began(work)
        assert (scheduler.running, scheduler.waiting, scheduler.bytes) == (1, 2, 30)
        with pytest.raises(Refusal) as refusal:
            await scheduler.submit(work, size=10)
        assert refusal.value.status == 429 and int(refusal.value.headers["Retry-After"]) >= 1
        with pytest.raises(Refusal):
            scheduler.check()
        work.gate.set()
        assert await asyncio.gather(*tasks) == ["done"] * 3
        assert scheduler.bytes == 0
        scheduler.close()

    run(main())


def test_bytes_are_bounded_too() -> None:
    async def main() -> None:
        scheduler, work = Scheduler(1, 50, 100, 10.0), Blocked()
        first = asyncio.create_task(scheduler.submit(work, size=90))
        await began(work)
        assert await status_of(asyncio.create_task(scheduler.submit(work, size=20))) == 429
        second = asyncio.create_task(scheduler.submit(work, size=10))
        await asyncio.sleep(0)
        work.gate.set()
        assert [await first, await second] == ["done", "done"]
        assert await scheduler.submit(work, size=500) == "done"  # alone there is room for one of any size
        scheduler.close()

    run(main())


def test_bodies_that_arrive_are_bounded_together() -> None:
    scheduler = Scheduler(1, 4, 100, 10.0)
    with scheduler.arriving() as first:
        first(150)  # alone it may be of any size that the server takes
        with scheduler.arriving() as second, pytest.raises(Refusal) as refusal:
            second(1)
        assert refusal.value.status == 429
    with scheduler.arriving() as first, scheduler.arriving() as second:
        first(60)
        second(40)
        with pytest.raises(Refusal):
            first(1)
    with scheduler.arriving() as third:
        third(100)


def test_time_is_limited_in_the_queue_and_at_work() -> None:
    async def main() -> None:
        scheduler, work = Scheduler(1, 4, 1000, 0.2), Blocked()
        first = asyncio.create_task(scheduler.submit(work, size=10))
        await began(work)
        second = asyncio.create_task(scheduler.submit(work, size=10))
        start = time.monotonic()
        assert [await status_of(first), await status_of(second)] == [504, 504]
        assert time.monotonic() - start < 5
        assert scheduler.bytes == 10  # the one at work still has its body, the other has left the queue
        work.gate.set()
        while scheduler.bytes:
            await asyncio.sleep(0.002)
        assert len(work.attempts) == 1  # what is late is not begun
        assert await scheduler.submit(work, size=1) == "done"
        scheduler.close()

    run(main())


def test_work_of_a_client_that_leaves_is_not_begun_and_its_body_is_let_go() -> None:
    class Body:
        pass

    async def main() -> None:
        scheduler, work = Scheduler(1, 4, 1000, 10.0), Blocked()
        leave = asyncio.Event()

        async def receive() -> dict[str, str]:
            await leave.wait()
            return {"type": "http.disconnect"}

        first = asyncio.create_task(scheduler.submit(work, size=10))
        await began(work)
        body = Body()
        reference = weakref.ref(body)
        ran = []

        def with_body(attempt: Attempt, body: Body = body) -> None:
            ran.append(body)

        second = asyncio.create_task(scheduler.submit(with_body, size=10, receive=receive))
        del body, with_body
        await asyncio.sleep(0.01)
        leave.set()
        with pytest.raises(ClientLeft):
            await second
        del second
        gc.collect()
        assert scheduler.bytes == 10 and reference() is None
        work.gate.set()
        assert await first == "done" and not ran
        scheduler.close()

    run(main())


def test_a_stopped_attempt_ends_long_work() -> None:
    async def main() -> None:
        scheduler, work = Scheduler(1, 4, 1000, 10.0), Blocked()
        task = asyncio.create_task(scheduler.submit(work, size=10))
        await began(work)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.attempts[0].stopped
        with pytest.raises(ClientLeft):
            work.attempts[0].check(3, 10)
        work.gate.set()
        scheduler.close()

    run(main())


def test_draining_refuses_with_503_and_does_what_it_took() -> None:
    async def main() -> None:
        before = threading.active_count()
        scheduler, work = Scheduler(1, 4, 1000, 10.0), Blocked()
        tasks = [asyncio.create_task(scheduler.submit(work, size=10)) for _ in range(3)]
        await began(work)
        assert threading.active_count() == before + 1
        scheduler.drain()
        assert await status_of(asyncio.create_task(scheduler.submit(work, size=10))) == 503
        work.gate.set()
        assert await asyncio.gather(*tasks) == ["done"] * 3
        scheduler.close()
        assert threading.active_count() == before

    run(main())


def test_idle_threads_keep_nothing() -> None:
    class Body:
        pass

    async def main() -> None:
        scheduler = Scheduler(1, 4, 1000, 10.0)
        body = Body()
        reference = weakref.ref(body)
        await scheduler.submit(lambda attempt, body=body: None, size=10)
        del body
        for _ in range(100):
            await asyncio.sleep(0.002)
            gc.collect()
            if reference() is None:
                break
        assert reference() is None
        scheduler.close()

    run(main())
