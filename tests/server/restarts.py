"""Servers that are ended under load: which requests were accepted, and which were answered.

The server's own log says which requests it took; each carries an id that the client chose.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from pathlib import Path
from typing import NamedTuple

from tests.server.running import PATIENCE, ROUTE, Running, picture, running
from tests.support.http_load import LOST, connect, request


class Sent(NamedTuple):
    """A request that was sent in whole: when, and the status of its answer (`LOST` without one)."""

    at: float
    status: int


class Ended(NamedTuple):
    """What became of the requests to one server.

    Attributes:
        sent: by the request's id.
        accepted: the status that the server's log tells, by id.
        signalled: when the signal was sent.
        seconds: from the signal to the end.
        code: with which the process ended.
    """

    sent: dict[str, Sent]
    accepted: dict[str, int]
    signalled: float
    seconds: float
    code: int

    @property
    def unanswered(self) -> dict[str, Sent]:
        """Requests without an answer that were accepted, or sent before the signal."""
        return {
            identity: sent
            for identity, sent in self.sent.items()
            if sent.status == LOST and (identity in self.accepted or sent.at < self.signalled)
        }

    @property
    def contradicted(self) -> dict[str, tuple[int, int]]:
        """Requests of which the client saw another status than the log tells."""
        pairs = {identity: (sent.status, self.accepted.get(identity)) for identity, sent in self.sent.items()}
        return {identity: (one, two) for identity, (one, two) in pairs.items() if two is not None and one != two}


def end_under_load(model: Path, seed: int, connections: int = 6, number: int = signal.SIGTERM) -> Ended:
    """Start a server, keep it busy, and end it at a moment that follows from the seed."""
    rng = random.Random(seed)
    options = [f"--drain={rng.choice((0, 0.1, 0.5))}s", f"--queue={rng.choice((2, 64))}", "--threads=2"]
    options += ["--workers=2"] if rng.random() < 0.2 else []
    wait = rng.uniform(0.02, 0.7)
    pictures = [picture(side, side + 20) for side in (30, 200, 400)]
    with running(model, *options, log=model.parent / f"restart-{seed}.log") as server:
        ended = asyncio.run(_load(server, pictures, connections, wait, number))
        seconds = time.perf_counter() - ended[1]
        code = server.process.wait(PATIENCE)
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    accepted = {line["request"]: line["status"] for line in lines if "request" in line}
    return Ended(ended[0], accepted, ended[1], seconds, code)


async def _load(
    server: Running, pictures: list[bytes], connections: int, wait: float, number: int
) -> tuple[dict[str, Sent], float]:
    sent: dict[str, Sent] = {}
    signalled = float("inf")

    async def client(name: int) -> None:
        connection = None
        for count in range(1_000_000):
            if connection is None or not connection.alive:
                if connection is not None:
                    connection.close()
                try:
                    connection = await connect(server.port)
                except OSError:  # nobody listens any more
                    return
            identity = f"{name}-{count}"
            data = request(ROUTE, pictures[count % len(pictures)], headers=f"x-request-id: {identity}\r\n")
            at = time.perf_counter()
            status, _ = await connection.ask(data)
            sent[identity] = Sent(at, status)
            await asyncio.sleep(0)

    async def end() -> None:
        nonlocal signalled
        await asyncio.sleep(wait)
        signalled = time.perf_counter()
        server.process.send_signal(number)

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(end(), *(client(name) for name in range(connections)))
    return sent, signalled
