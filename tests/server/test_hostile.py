"""Clients that mean no good: promise 32, and what a slow or greedy one may cost the others. All of it on loopback."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server import flood
from tests.server.running import ROUTE, Reply, Running, model_file, picture, running

MIB = 1 << 20
TIMEOUT, CONNECTIONS = 3.0, 40
PATIENT = {"1 GB announced"}  # the server waits before it closes such a connection
SLACK = 32 * MIB  # what a process takes for other reasons: caches, buffers of the allocator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with tight limits, warm."""
    options = [f"--timeout={TIMEOUT:g}s", "--max-body=1MiB", "--max-pixels=1MP", "--queue=16", "--threads=2"]
    folder = tmp_path_factory.mktemp("hostile")
    with running(model_file(folder), *options, f"--connections={CONNECTIONS}", "--no-access-log") as server:
        for _ in range(20):
            assert server.explain(picture()).status == 200
        yield server


@contextlib.contextmanager
def others_are_served(server: Running) -> Iterator[None]:
    """Asks for maps all the while; each has to be answered with 200, and the last one right after the block."""
    statuses: Counter[int] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            statuses[server.explain(picture()).status] += 1
            time.sleep(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert statuses.keys() == {200}, statuses


@contextlib.contextmanager
def memory_within(server: Running, growth: int) -> Iterator[None]:
    """Fails if the server's resident memory grows by more than this at any moment (looked at 50 times a second)."""
    base, highest = server.memory, 0
    over = threading.Event()

    def look() -> None:
        nonlocal highest
        while not over.wait(0.02):
            highest = max(highest, server.memory)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert highest - base <= growth, f"{(highest - base) / MIB:.1f} MiB more, at most {growth / MIB:.1f} expected"


def settled(server: Running, value: Callable[[], int], most: int, patience: float = 20.0) -> int:
    """Wait until a number has fallen to this; return the number."""
    until = time.monotonic() + patience
    while value() > most and time.monotonic() < until:
        time.sleep(0.05)
    return value()


def answer(connection: socket.socket) -> Reply:
    """Read an answer from a connection until the server closes it or the body is complete."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            data += part
            head, end, body = data.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
            if end and len(body) >= int(headers.get("content-length", 1 << 40)):
                return Reply(int(lines[0].split()[1]), headers, body)
    raise AssertionError(f"no whole answer: {data[:300]!r}")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in PATIENT else ()) for name in flood.bad_requests()],
)
def test_each_bad_request_gets_its_status_and_a_sentence(server: Running, name: str) -> None:
    data, statuses = flood.bad_requests()[name]
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):  # it may answer before it has read everything
            connection.sendall(data)
        reply = answer(connection)
    assert reply.status in statuses, reply
    assert reply.sentence.strip()[-1] not in "\n:", reply.sentence
    assert server.explain(picture()).status == 200
    assert "Traceback" not in server.log, server.log


@pytest.mark.slow
def test_a_flood_of_bad_requests(server: Running) -> None:
    """Good requests are answered, and each bad one with what fits; how long it takes is `benchmarks/serve.py`'s."""
    figures = flood.compare(server.port, picture(), rate=15, bad=100, seconds=1.5, turns=1)
    assert figures["statuses"] == {200: 2 * round(15 * 1.5)}
    assert flood.wrong(figures["bad"], patience=True) == {}
    assert sum(sum(counter.values()) for counter in figures["bad"].values()) == 250


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
@pytest.mark.parametrize("size", [48 * MIB, pytest.param(1000 * MIB, marks=pytest.mark.soak)], ids=["48 MiB", "1 GB"])
def test_a_body_far_above_the_limit(server: Running, size: int, chunked: bool) -> None:
    piece = bytes(MIB // 4)
    head = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
    sent = 0
    with memory_within(server, SLACK), others_are_served(server), server.connect() as connection:
        connection.sendall(f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n{head}\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            while sent < size:
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                sent += len(piece)
        reply = answer(connection) if sent < 60 * MIB else None
    assert reply is None or (reply.status == 413 and "1,048,576" in reply.sentence)
    assert sent < 200 * MIB, "the server does not read what it refuses for ever"


@pytest.mark.soak
def test_a_gigabyte_on_every_connection(server: Running) -> None:
    """Promise 32: at most the queue's bytes and one body a connection."""
    count = CONNECTIONS - 5

    def send() -> None:
        with contextlib.suppress(OSError), server.connect() as connection:
            connection.sendall(f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n".encode())
            for _ in range(1000):
                connection.sendall(bytes(1_000_000))

    with memory_within(server, SLACK + count * MIB), others_are_served(server):
        threads = [threading.Thread(target=send) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.mark.slow
def test_the_largest_bodies_on_all_connections_at_once(server: Running) -> None:
    """Each connection may hold one body; what does not fit into the queue is answered 429, or 504 on a busy machine."""
    count = CONNECTIONS - 5
    data = picture().ljust(MIB, b"\0")
    statuses: Counter[int] = Counter()

    def send() -> None:
        statuses[server.explain(data).status] += 1

    with memory_within(server, SLACK + 2 * count * MIB):
        threads = [threading.Thread(target=send) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(statuses.values()) == count and statuses.keys() <= {200, 422, 429, 504}, statuses


@pytest.mark.slow
def test_a_slow_loris(server: Running) -> None:
    """Heads and bodies that come a byte at a time: the connections end in time, and the others are served meanwhile."""
    heads = [server.connect() for _ in range(CONNECTIONS // 4)]
    bodies = [server.connect() for _ in range(CONNECTIONS // 4)]
    for connection in bodies:
        connection.sendall(f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n".encode())
    ends: dict[int, float] = {}
    replies: list[Reply] = []
    start = time.monotonic()
    text = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\nx-slow: ".encode() + b"a" * 10_000
    with others_are_served(server):
        for number in range(600):
            for kind, connections in (("head", heads), ("body", bodies)):
                for connection in connections:
                    if connection.fileno() in ends:
                        continue
                    connection.setblocking(False)
                    try:
                        connection.send(text[number : number + 1] if kind == "head" else b"x")
                        data = connection.recv(65536)
                    except BlockingIOError:
                        continue
                    except ConnectionError:
                        data = b""
                    ends[connection.fileno()] = time.monotonic() - start
                    if data:
                        replies.append(
                            Reply(int(data[9:12]), {"content-type": "application/json"}, data.split(b"\r\n\r\n")[1])
                        )
            if len(ends) == len(heads) + len(bodies):
                break
            time.sleep(0.05)
    for connection in heads + bodies:
        connection.close()
    assert len(ends) == len(heads) + len(bodies), "every slow connection ends"
    assert {reply.status for reply in replies} == {408} and all(reply.sentence for reply in replies)
    assert len(replies) >= len(bodies)


@pytest.mark.slow
def test_connections_that_say_nothing_are_closed(server: Running) -> None:
    with server.connect(timeout=30) as connection:
        start = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - start > 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [3 * CONNECTIONS, pytest.param(10_000, marks=pytest.mark.soak)])
def test_connections_are_bounded_in_number(server: Running, count: int) -> None:
    """Beyond the bound a connection is answered 503 and closed; those that are open go on."""
    base = settled(server, lambda: server.descriptors, 0, patience=1.0)
    with server.connect() as first, memory_within(server, SLACK):
        refused: list[Reply] = []
        connections: list[socket.socket] = []
        highest = 0
        for number in range(count):
            connections.append(server.connect())
            if number % 20 == 0:
                highest = max(highest, server.descriptors)
                first.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                assert answer(first).status == 200, "a connection within the bound is served while others are refused"
        for connection in connections:
            connection.settimeout(30.0)
            if len(refused) < 5:
                with contextlib.suppress(AssertionError):
                    refused.append(answer(connection))
        for connection in connections:
            connection.close()
    assert highest <= base + CONNECTIONS + 60, "descriptors are bounded"
    assert refused and {reply.status for reply in refused} <= {503, 408}
    assert 503 in {reply.status for reply in refused} and all(reply.sentence for reply in refused)
    settled(server, lambda: server.descriptors, base)
    assert server.explain(picture()).status == 200


@pytest.mark.slow
def test_who_does_not_read_the_answers_costs_no_more_than_them(server: Running) -> None:
    """Many requests on each connection without reading a single answer: the server stops reading them."""
    data = json.dumps({"image": base64.b64encode(picture(400, 500)).decode(), "files": ["input", "overlay"]}).encode()
    request = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request += f"content-length: {len(data)}\r\n\r\n"

    def ask() -> None:
        with server.connect() as connection:
            for _ in range(6):
                connection.sendall(request.encode() + data)
                assert answer(connection).status == 200

    with ThreadPoolExecutor(10) as clients:  # as many that read: from here on the threads have the memory they need
        for asking in [clients.submit(ask) for _ in range(10)]:
            asking.result()
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory_within(server, SLACK + 10 * 4 * MIB))
        stack.enter_context(others_are_served(server))
        connections = [stack.enter_context(socket.socket()) for _ in range(10)]
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.setblocking(False)
        for _ in range(60):
            for connection in connections:
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    connection.send(request.encode() + data)
            time.sleep(0.02)


@pytest.mark.slow
def test_clients_that_leave(server: Running) -> None:
    """No descriptor is lost, whenever a client leaves: in the head, in the body, before the answer, within it."""
    base = server.descriptors
    data = flood.request(ROUTE, picture(300, 400), "image/png")
    for share in (0.0, 0.05, 0.5, 0.99, 1.0):
        for linger in (False, True):
            with server.connect() as connection:
                connection.sendall(data[: int(share * len(data))])
                if linger and share == 1.0:
                    connection.recv(100)
                elif linger:  # the connection ends with a reset
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert settled(server, lambda: server.descriptors, base) <= base
    assert server.explain(picture()).status == 200
    assert "Traceback" not in server.log, server.log
