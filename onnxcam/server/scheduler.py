"""The queue between the event loop and the worker threads: bounded in requests and bytes, with a time for each.

A protocol submits work from its route, and everything that touches ONNX Runtime or OpenCV runs in it:

    def work(attempt: Attempt) -> bytes:            # runs in a worker thread, once
        ...                                         # long work calls attempt.check() now and then
    content = await state.scheduler.submit(work, size=len(body), receive=request.receive)

`submit` returns what `work` returns and raises what it raises; it refuses by itself with 429 (the queue is full), 503
(the server stops) and 504 (the time is spent), and raises `ClientLeft` where the client closed its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

from onnxcam.server.refusals import ClientLeft, Refusal

T = TypeVar("T")
Receive = Callable[[], Awaitable[Any]]

_SMOOTHING = 0.1  # weight of the last request in the mean service time
_LONGEST_WAIT = 60  # seconds of a Retry-After


class Attempt:
    """One piece of work and its place in the queue.

    Attributes:
        waited: seconds in the queue, once it is worked on.
        stopped: whether nobody waits for the result any more.
    """

    __slots__ = ("_future", "_loop", "_place", "_scheduler", "_size", "_work", "began", "stopped", "submitted")

    def __init__(
        self,
        scheduler: Scheduler,
        work: Callable[[Attempt], Any],
        size: int,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
    ) -> None:
        self.stopped = False
        self.submitted = time.perf_counter()
        self.began = 0.0
        self._scheduler = scheduler
        self._work: Callable[[Attempt], Any] | None = work
        self._size = size
        self._loop = loop
        self._future: asyncio.Future[Any] | None = future
        self._place = True  # whether it counts against the queue's limits

    @property
    def waited(self) -> float:
        """Seconds that it waited for a worker."""
        return self.began - self.submitted

    def check(self, done: int = 0, total: int = 0) -> None:
        """Stop the work if nobody waits for its result; also takes the progress of long methods.

        Raises:
            ClientLeft: nobody does.
        """
        if self.stopped:
            raise ClientLeft

    def _run(self) -> None:
        """Do the work, in a worker thread."""
        work = self._work
        if self.stopped or work is None:
            return
        self.began = time.perf_counter()
        result, failure = None, None
        try:
            result = work(self)
        except BaseException as error:
            failure = error
        work = self._work = None
        self._scheduler._finish(self, time.perf_counter() - self.began)
        with contextlib.suppress(RuntimeError):  # the loop is closed: its server is gone
            self._loop.call_soon_threadsafe(self._deliver, result, failure)

    def _deliver(self, result: Any, failure: BaseException | None) -> None:
        # the future is let go: its error holds the frames of the request, and they its body, while this is in the queue
        future, self._future = self._future, None
        if future is None or future.done():
            return
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)

    def _stop(self, error: Exception) -> None:
        """Answer with an error before the work is done; it leaves the queue if it has not begun."""
        self.stopped = True
        self._deliver(None, error)
        if not self.began:
            self._work = None
            self._scheduler._finish(self, None)


class Scheduler:
    """Worker threads behind a bounded queue. Threads start with the first work.

    Arguments:
        threads: how many work side by side.
        queue: how many requests wait at most, beside those that are worked on.
        queue_bytes: bytes of both at most.
        timeout: seconds from submitting to the answer.
        places: runs of a model side by side; None for one a thread.

    Attributes:
        threads: how many there are by now, see `grow`.
        places: runs of a model side by side.
    """

    def __init__(self, threads: int, queue: int, queue_bytes: int, timeout: float, places: int | None = None) -> None:
        self.threads = threads
        self.places = threads if places is None else places
        self.queue = queue
        self.queue_bytes = queue_bytes
        self.timeout = timeout
        self.draining = False
        self._lock = threading.Lock()
        self._attempts: SimpleQueue[Attempt | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._admitted = 0
        self._bytes = 0
        self._arriving = 0  # bytes of bodies that are being read
        self._service = 0.0  # mean seconds of work, 0 before the first
        self._changed = time.monotonic()  # when work was last admitted or done

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return max(self._admitted - self.threads, 0)

    @property
    def running(self) -> int:
        """Requests that are worked on."""
        return min(self._admitted, self.threads)

    @property
    def bytes(self) -> int:
        """Bytes of the bodies of both."""
        return self._bytes

    @property
    def idle_seconds(self) -> float:
        """For how long nothing has been worked on."""
        return 0.0 if self._admitted else time.monotonic() - self._changed

    def grow(self, threads: int) -> None:
        """Raise the number of worker threads to this."""
        with self._lock:
            if threads > self.threads:
                self.threads = threads
                if self._workers:
                    self._start()

    def retry_after(self) -> int:
        """Seconds after which the queue will probably have room."""
        return min(max(math.ceil(self.waiting * self._service / self.threads), 1), _LONGEST_WAIT)

    async def submit(self, work: Callable[[Attempt], T], *, size: int, receive: Receive | None = None) -> T:
        """Do work in a worker thread and return its result.

        Arguments:
            work: called once, with its `Attempt`.
            size: bytes that it holds on to, those of the request's body.
            receive: of the ASGI request, read to its end: tells when the client leaves.

        Raises:
            Refusal: 429, 503 or 504, as the module says.
            ClientLeft: the client closed its connection.
            Exception: what the work raises.
        """
        loop = asyncio.get_running_loop()
        attempt, future = self._admit(work, size, loop)
        del work
        self._attempts.put(attempt)
        timer = loop.call_later(self.timeout, attempt._stop, self._late())
        watch = None if receive is None else loop.create_task(_leaving(receive, attempt))
        try:
            result: T = await future
            return result
        except asyncio.CancelledError:
            attempt._stop(ClientLeft())
            raise
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()

    def check(self) -> None:
        """Refuse a request for which there is no room, before its body is read.

        Raises:
            Refusal: 429 or 503.
        """
        with self._lock:
            self._check(0)

    @contextlib.contextmanager
    def arriving(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of a body while it is read: all bodies together get as much room as the queue has.

        Yields:
            a function that takes the number of further bytes, and raises a `Refusal` with 429 where there is no room.
        """
        size = 0

        def add(count: int) -> None:
            nonlocal size
            with self._lock:
                if size != self._arriving and self._arriving + count > self.queue_bytes:
                    seconds = self.retry_after()
                    raise Refusal(
                        429,
                        f"the bodies that are being sent fill {self.queue_bytes:,} bytes; try again in {seconds} s",
                        {"Retry-After": str(seconds), "Connection": "close"},
                    )
                self._arriving += count
                size += count

        try:
            yield add
        finally:
            with self._lock:
                self._arriving -= size

    def _check(self, size: int) -> None:
        if self.draining:
            raise Refusal(503, "the server is stopping; send the request again, to another one", {"Retry-After": "1"})
        if self._admitted >= self.queue + self.threads:
            what = f"{self.queue} requests are waiting"
        elif self._admitted and self._bytes + size > self.queue_bytes:
            what = f"the bodies of the requests in work fill {self.queue_bytes:,} bytes"
        else:
            return
        seconds = self.retry_after()
        raise Refusal(429, f"{what}; try again in {seconds} s", {"Retry-After": str(seconds)})

    def _admit(
        self, work: Callable[[Attempt], Any], size: int, loop: asyncio.AbstractEventLoop
    ) -> tuple[Attempt, asyncio.Future[Any]]:
        with self._lock:
            self._check(size)
            if not self._workers:
                self._start()
            self._admitted += 1
            self._bytes += size
            self._changed = time.monotonic()
        future: asyncio.Future[Any] = loop.create_future()
        return Attempt(self, work, size, loop, future), future

    def _finish(self, attempt: Attempt, seconds: float | None) -> None:
        """Give the place of an attempt to another one."""
        with self._lock:
            if attempt._place:
                attempt._place = False
                self._admitted -= 1
                self._bytes -= attempt._size
                self._changed = time.monotonic()
            if seconds is not None:
                weight = _SMOOTHING if self._service else 1.0
                self._service += weight * (seconds - self._service)

    def _late(self) -> Refusal:
        return Refusal(
            504,
            f"no answer within {self.timeout:g} s; send fewer requests at a time, or ask for a faster method",
            {"Retry-After": str(self.retry_after())},
        )

    def _start(self) -> None:
        for number in range(len(self._workers), self.threads):
            thread = threading.Thread(target=self._work, name=f"onnxcam-server-{number}", daemon=True)
            self._workers.append(thread)
            thread.start()

    def _work(self) -> None:
        while (attempt := self._attempts.get()) is not None:
            attempt._run()
            del attempt  # an idle thread must not keep a body

    def drain(self) -> None:
        """Refuse further work with 503; what is admitted is done."""
        self.draining = True

    def close(self, timeout: float = 5.0) -> None:
        """End the worker threads after the work that is admitted."""
        self.drain()
        with self._lock:
            workers, self._workers = self._workers, []
        for _ in workers:
            self._attempts.put(None)
        deadline = time.monotonic() + timeout
        for thread in workers:
            thread.join(max(0.0, deadline - time.monotonic()))


async def _leaving(receive: Receive, attempt: Attempt) -> None:
    """Stop the work when the client closes its connection."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            attempt._stop(ClientLeft())
            return
