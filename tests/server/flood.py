"""Bad requests of every kind, and how long good ones take while they arrive.

nice -n 19 python -m tests.server.flood 8000 --rate 200 --seconds 5
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.server.running import ROOT, ROUTE, picture
from tests.support.http_load import LOST, Answer, request

JSON = "application/json"
BOUNDARY = "----onnxcam"


def bomb(height: int = 30_000, width: int = 30_000) -> bytes:
    """A PNG of a few bytes that says it has 900 million pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def part(name: str, data: bytes, more: str = "") -> bytes:
    """One part of a multipart body."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def multipart(*parts: bytes, end: bool = True) -> tuple[bytes, str]:
    """A multipart body and its type."""
    return b"".join(parts) + (
        f"--{BOUNDARY}--\r\n".encode() if end else b""
    ), f"multipart/form-data; boundary={BOUNDARY}"


def in_json(**values: Any) -> tuple[str, bytes, str]:
    return ROUTE, json.dumps(values).encode(), JSON


def bad_requests(data: bytes | None = None) -> dict[str, tuple[bytes, set[int]]]:
    """Requests that no server can answer with 200, as their bytes, and the statuses that fit.

    Arguments:
        data: a picture as PNG.
    """
    data = data or picture()
    text = base64.b64encode(data).decode()
    many = multipart(*(part(f"field{number}", b"x") for number in range(1000)), part("image", data, '; filename="a"'))
    cut, cut_type = multipart(part("image", data, '; filename="a"'), end=False)
    bodies: dict[str, tuple[str, bytes, str, set[int]]] = {
        "cut off": (ROUTE, data[: len(data) // 2], "image/png", {422}),
        "text": (ROUTE, b"no picture at all", "image/png", {422}),
        "zeros": (ROUTE, bytes(10_000), "application/octet-stream", {422}),
        "empty": (ROUTE, b"", "image/png", {422}),
        "bomb": (ROUTE, bomb(), "image/png", {413}),
        "another type": (ROUTE, data, "text/csv", {415}),
        "not JSON": (ROUTE, b'{"image": ', JSON, {400}),
        "10,000 levels": (ROUTE, b'{"image":' + b"[" * 10_000 + b"]" * 10_000 + b"}", JSON, {400, 422}),
        "a list": (ROUTE, b"[1, 2, 3]", JSON, {422}),
        "no picture": (*in_json(top_k=3), {422}),
        "null": (*in_json(image=None), {422}),
        "no base64": (*in_json(image="!!!"), {422}),
        "a URL": (*in_json(image="http://127.0.0.1:1/a.png"), {422}),
        "a file": (*in_json(image="file:///etc/passwd"), {422}),
        "bomb in base64": (*in_json(image=base64.b64encode(bomb()).decode()), {413}),
        "no such layer": (*in_json(image=text, layer="nowhere"), {422}),
        "no such method": (*in_json(image=text, method="magic"), {422}),
        "no such file": (*in_json(image=text, files=["virus"]), {422}),
        "no such option": (*in_json(image=text, nonsense=1), {422}),
        "top -1": (*in_json(image=text, top_k=-1), {422}),
        "top huge": (*in_json(image=text, top_k=10**400), {400, 422}),
        "when": (*in_json(image=text, when="confidence <"), {422}),
        "no such class": ("/analyze_class", json.dumps({"image": text, "class_name": "unicorn"}).encode(), JSON, {422}),
        "class 10**9": ("/analyze_class", json.dumps({"image": text, "class_index": 10**9}).encode(), JSON, {422}),
        "no class": ("/analyze_class", json.dumps({"image": text}).encode(), JSON, {422}),
        "1,000 parts": (ROUTE, *many, {413}),
        "cut multipart": (ROUTE, cut, cut_type, {400}),
        "no boundary": (ROUTE, cut, "multipart/form-data", {400}),
        "no such route": ("/nowhere", data, "image/png", {404}),
        "no such model": (f"{ROUTE}?model=other", data, "image/png", {404, 422}),
    }
    requests = {name: (request(path, body, kind), statuses) for name, (path, body, kind, statuses) in bodies.items()}
    host = "HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    requests |= {
        "another method": (f"DELETE {ROUTE} {host}\r\n".encode(), {405}),
        "GET": (f"GET {ROUTE} {host}\r\n".encode(), {405}),
        "1 GB announced": (f"POST {ROUTE} {host}content-length: 1000000000\r\n\r\n".encode() + data, {413}),
        "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP\r\n\r\n", {400}),
        "negative length": (f"POST {ROUTE} {host}content-length: -1\r\n\r\n".encode(), {400}),
        "two lengths": (f"POST {ROUTE} {host}content-length: 3\r\ncontent-length: 4\r\n\r\nabcd".encode(), {400}),
        "a long header": (f"GET / {host}x: {'a' * 200_000}\r\n\r\n".encode(), {400, 431}),
    }
    return requests


def sequence(rate: float, seconds: float, seed: int = 1234) -> list[float]:
    """Moments of arrivals, independent of each other."""
    rng = np.random.default_rng(seed)
    return sorted(rng.uniform(0, seconds, round(rate * seconds)).tolist())


def flood(port: int, rate: float, seconds: float, threads: int = 8) -> list[tuple[str, int]]:
    """Send bad requests at this rate, each on a connection of its own; the name of each, and what was answered."""
    requests = bad_requests()
    names = list(requests)
    arrivals = list(enumerate(sequence(rate, seconds)))
    begin = time.perf_counter()

    def send(numbers: list[tuple[int, float]]) -> list[tuple[str, int]]:
        answers = []
        for number, due in numbers:
            name = names[number % len(names)]
            time.sleep(max(begin + due - time.perf_counter(), 0.0))
            answers.append((name, _status(port, requests[name][0])))
        return answers

    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(send, [arrivals[start::threads] for start in range(threads)])
        return [one for part in parts for one in part]


def _status(port: int, data: bytes) -> int:
    """The status of the answer to a request, however early it comes."""
    head = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 60) as connection:
        with contextlib.suppress(OSError):  # it may be answered, and the connection closed, before it was sent in whole
            connection.sendall(data)
        while len(head) < 12 and (part := connection.recv(65536)):
            head += part
    return int(head[9:12]) if head[9:12].isdigit() else LOST


def start(port: int, rate: float, seconds: float) -> subprocess.Popen[str]:
    """The same in a process of the lowest priority; its output is what `wrong` reads."""
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.server.flood", str(port)]
    command += ["--rate", str(rate), "--seconds", str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wrong(counts: dict[str, dict[str, int]], patience: bool = False) -> dict[str, dict[str, int]]:
    """The answers that do not fit; with `patience` 429, which a full queue gives, fits too."""
    requests = bad_requests()
    return {
        name: counter
        for name, counter in counts.items()
        if not {int(status) for status in counter} <= requests[name][1] | ({429} if patience else set())
    }


def good(port: int, data: bytes, rate: float, seconds: float, query: str = "", seed: int = 7) -> list[Answer]:
    """Ask for maps at this rate, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "good.http"
        file.write_bytes(request(f"{ROUTE}?{query}", data))
        order = {"port": port, "requests": [str(file)], "arrivals": sequence(rate, seconds, seed)}
        command = [sys.executable, "-m", "tests.support.http_load"]
        done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=True, cwd=ROOT)
    return [Answer(*answer) for answer in json.loads(done.stdout)]


def compare(port: int, data: bytes, *, rate: float, bad: float, seconds: float, turns: int) -> dict[str, Any]:
    """Times of good requests at `rate` without and with `bad` ones a second beside them, in turns."""
    times: dict[bool, list[float]] = {False: [], True: []}
    statuses: Counter[int] = Counter()
    counts: dict[str, Counter[str]] = {}
    for turn in range(2 * turns):
        flooded = turn % 2 == 1
        process = start(port, bad, seconds + 1.0) if flooded else None
        answers = good(port, data, rate, seconds, seed=turn // 2)
        times[flooded] += [answer.seconds for answer in answers]
        statuses.update(answer.status for answer in answers)
        if process is not None:
            output, _ = process.communicate(timeout=120 + seconds)
            for name, counter in json.loads(output).items():
                counts.setdefault(name, Counter()).update(counter)
    p99 = {flooded: float(np.percentile(seconds_, 99)) for flooded, seconds_ in times.items()}
    return {
        "p99": 1e3 * p99[False], "p99 flooded": 1e3 * p99[True], "ratio": p99[True] / p99[False],
        "statuses": dict(statuses), "bad": {name: dict(counter) for name, counter in counts.items()},
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args(arguments)
    counts: dict[str, Counter[int]] = {}
    for name, status in flood(options.port, options.rate, options.seconds):
        counts.setdefault(name, Counter())[status] += 1
    json.dump(counts, sys.stdout)


if __name__ == "__main__":
    main()
