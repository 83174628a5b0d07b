"""Load on an HTTP server on loopback, from one thread: connections in a closed loop, or arrivals by a clock.

    echo '{"port": 8000, "requests": ["/tmp/a.http"], "connections": 4, "seconds": 2}' | \\
        python -m tests.support.http_load

The client costs about 0.1 ms of processor time for a request, so that it hardly takes from a server on the same cores:
requests are sent as they lie in their files, and of an answer only the status and the length are read.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
LOST = 0  # the status of a request whose connection ended without an answer


class Answer(NamedTuple):
    """A request: when it was due (seconds from the start), how long its answer took from then, and the status."""

    due: float
    seconds: float
    status: int
    size: int


def request(path: str, body: bytes, content_type: str = "image/jpeg", *, headers: str = "") -> bytes:
    """An HTTP/1.1 POST as its bytes; `headers` are further lines, each with its line end."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {content_type}\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Connection(asyncio.Protocol):
    """One connection with at most one request on its way."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, int]] | None = None
        self._head, self._status, self._missing, self._size = b"", 0, 0, 0
        self._last = False  # the server closes the connection after this answer

    @property
    def alive(self) -> bool:
        """Whether another request can be sent."""
        return self.transport is not None and not self.transport.is_closing() and not self._last

    async def ask(self, data: bytes) -> tuple[int, int]:
        """Send a request and wait for its answer: status (`LOST` without one) and bytes of the body."""
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._head, self._status = b"", 0
        self.transport.write(data)
        return await self._answer

    def close(self) -> None:
        """Close the connection, which a server may have left open or half closed."""
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._status:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._head, 0, end + 2)
            self._size = int(length[1]) if length else 0
            self._status = int(self._head[9:12])
            self._last = _CLOSE.search(self._head, 0, end + 2) is not None
            self._missing = self._size - (len(self._head) - end - 4)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self._finish(self._status, self._size)

    def connection_lost(self, error: Exception | None) -> None:
        self._finish(LOST, 0)

    def _finish(self, status: int, size: int) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result((status, size))


async def connect(port: int) -> Connection:
    """Open a connection to a server on this machine."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


async def closed_loop(
    port: int, requests: Sequence[bytes], connections: int, seconds: float, *, pause: float = 0.0
) -> list[Answer]:
    """Keep `connections` busy for so long: each sends its next request when it has its answer, after a pause."""
    start = time.perf_counter()
    answers: list[Answer] = []

    async def client(number: int) -> None:
        connection = await connect(port)
        while (due := time.perf_counter() - start) < seconds:
            if not connection.alive:
                connection = await connect(port)
            status, size = await connection.ask(requests[number % len(requests)])
            answers.append(Answer(due, time.perf_counter() - start - due, status, size))
            number += connections
            if pause:
                await asyncio.sleep(pause)
        assert connection.transport is not None
        connection.transport.close()

    await asyncio.gather(*(client(number) for number in range(connections)))
    return answers


async def by_clock(port: int, requests: Sequence[bytes], arrivals: Sequence[float]) -> list[Answer]:
    """Send a request at each of these moments (seconds from now), whatever became of those before.

    The time of an answer counts from when its request was due, so that a client that is late hides nothing.
    """
    idle: list[Connection] = []
    answers: list[Answer] = []
    start = time.perf_counter()

    async def one(number: int, due: float) -> None:
        while idle and not idle[-1].alive:
            idle.pop()
        again = bool(idle)
        connection = idle.pop() if idle else await connect(port)
        status, size = await connection.ask(requests[number % len(requests)])
        if (
            status == LOST and again
        ):  # an idle connection may be closed at the moment at which it is used (RFC 9112, 9.3.1)
            connection = await connect(port)
            status, size = await connection.ask(requests[number % len(requests)])
        answers.append(Answer(due, time.perf_counter() - start - due, status, size))
        if connection.alive:
            idle.append(connection)

    tasks = []
    for number, due in enumerate(arrivals):
        wait = due - (time.perf_counter() - start)
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    for connection in idle:
        assert connection.transport is not None
        connection.transport.close()
    return answers


def run(order: dict[str, Any]) -> list[Answer]:
    """Carry out an order: `port`, `requests` (files), and `arrivals` or `connections`, `seconds` and `pause`."""
    requests = [Path(file).read_bytes() for file in order["requests"]]
    if "arrivals" in order:
        return asyncio.run(by_clock(order["port"], requests, order["arrivals"]))
    pause = order.get("pause", 0.0)
    return asyncio.run(closed_loop(order["port"], requests, order["connections"], order["seconds"], pause=pause))


if __name__ == "__main__":
    json.dump(run(json.load(sys.stdin)), sys.stdout)
