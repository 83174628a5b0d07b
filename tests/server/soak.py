"""A server under everything at once: its memory stays flat, no descriptor is lost, every answer fits.

python -m tests.server.soak --seconds 600 -o summary.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.server import flood
from tests.server.running import ROUTE, Running, model_file, picture, running
from tests.support.http_load import request

GROWTH = 16 << 20  # bytes between the second fifth and the last, over any length


def _good(server: Running, rng: random.Random) -> tuple[str, bool]:
    """A request that has to be answered with 200, of sizes, files, methods and classes that differ."""
    data = picture(rng.choice((16, 48, 301, 480)), rng.choice((24, 64, 333, 640)))
    query = rng.choice(("", "when=never", "files=map", "files=panel,grayscale", "method=hirescam", "top_k=3"))
    status = server.explain(data, query).status
    return f"good {status}", status in (200, 429)


def _bad(server: Running, rng: random.Random) -> tuple[str, bool]:
    """A request that cannot be answered with 200."""
    data, statuses = rng.choice(list(_BAD.values()))
    status = flood._status(server.port, data)
    return f"bad {status}", status in statuses | {429}


def _leaving(server: Running, rng: random.Random) -> tuple[str, bool]:
    """A client that leaves in the middle."""
    data = request(ROUTE, picture(200, 300), "image/png")
    with contextlib.suppress(OSError), server.connect() as connection:
        connection.sendall(data[: rng.randrange(len(data) + 1)])
        if rng.random() < 0.3:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        time.sleep(rng.choice((0.0, 0.005, 0.05)))
    return "left", True


_BAD = flood.bad_requests()
_CLIENTS = (_good, _good, _bad, _leaving)


def soak(seconds: float, seed: int = 1234, folder: Path | None = None) -> dict[str, Any]:
    """Run a server for so long; what happened, `faults` the answers that do not fit."""
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    samples: list[int] = []
    # rows are fixed, as the server else measures what they gain, and may start threads then
    options = ["--timeout=10s", "--queue=32", "--threads=2", "--rows=4", "--no-access-log", "--metrics"]
    with tempfile.TemporaryDirectory() as temporary, running(model_file(folder or Path(temporary)), *options) as server:
        for _ in range(10):
            server.explain(picture(480, 640))
        descriptors, threads = server.descriptors, server.threads
        until = time.monotonic() + seconds

        def client(number: int) -> None:
            rng = random.Random(f"{seed} {number}")
            act = _CLIENTS[number % len(_CLIENTS)]
            while time.monotonic() < until:
                try:
                    outcome, fits = act(server, rng)
                except Exception as error:
                    outcome, fits = f"{act.__name__} {type(error).__name__}", False
                outcomes[outcome] += 1
                if not fits:
                    faults.append(outcome)

        clients = [threading.Thread(target=client, args=(number,)) for number in range(len(_CLIENTS))]
        for thread in clients:
            thread.start()
        while time.monotonic() < until:
            samples.append(server.memory)
            time.sleep(min(1.0, seconds / 50))
        for thread in clients:
            thread.join()
        end = time.monotonic() + 20
        while (server.descriptors > descriptors or server.threads > threads) and time.monotonic() < end:
            time.sleep(0.1)
        lost, more = server.descriptors - descriptors, server.threads - threads
        code, log = server.stop(), server.log
    fifth = max(len(samples) // 5, 1)
    growth = statistics.median(samples[-fifth:]) - statistics.median(samples[fifth : 2 * fifth] or samples[:fifth])
    return {
        "outcomes": dict(sorted(outcomes.items())), "faults": faults[:20], "growth": growth, "descriptors": lost,
        "threads": more, "code": code, "tracebacks": log.count("Traceback"), "highest": max(samples),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    text = json.dumps(soak(arguments.seconds, arguments.seed), indent=1)
    if arguments.output:
        arguments.output.write_text(text, "utf-8")
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
