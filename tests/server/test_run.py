"""`onnxcam serve` as a process: signals, workers, limits on connections, what cannot start."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import image
from onnxcam.cli import main
from onnxcam.errors import DependencyError
from tests.support.models import tiny_cnn

PREDICT = "/predict_with_gradcam"
RAW = {"scale": 1.0 / 255, "mean": [0.0], "std": [1.0], "color": "RGB", "resize": {"mode": "stretch", "size": [32, 32]}}
PICTURE = image.encode_png(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.cam.onnx"
    onnx.save(onnxcam.augment(tiny_cnn(), preprocess=RAW, labels=list("abcde")), path)
    return path


class Running:
    """A server in a process of its own."""

    def __init__(self, *arguments: Any) -> None:
        command = [sys.executable, "-m", "onnxcam", "serve", *map(str, arguments), "--port", "0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        text = ""
        for line in self.process.stdout:
            text += line
            with contextlib.suppress(ValueError):
                self.url = json.loads(text)["url"]
                break
        else:
            raise AssertionError(self.process.communicate()[1])
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        self.address = host, int(port)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and standard error after a signal."""
        self.process.send_signal(number)
        errors = self.process.communicate(timeout=60)[1]
        return self.process.returncode, errors


@contextlib.contextmanager
def running(*arguments: Any) -> Iterator[Running]:
    server = Running(*arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def answer_to(address: tuple[str, int], *parts: bytes) -> bytes:
    """All that a server sends back on one connection."""
    with socket.create_connection(address, timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while data := connection.recv(1 << 16):
            received += data
        return received


@pytest.mark.slow
def test_it_answers_what_it_took_and_ends_with_0(tiny: Path) -> None:
    with running(tiny, "--threads", 1, "--drain", "0.2s") as server, ThreadPoolExecutor(8) as pool:
        began = threading.Barrier(9)

        def ask() -> int:
            with httpx.Client() as client:
                client.get(f"{server.url}/healthz")
                began.wait()
                query = {"method": "ablationcam", "files": "heatmap"}
                return client.post(server.url + PREDICT, content=PICTURE, params=query, timeout=60).status_code

        futures = [pool.submit(ask) for _ in range(8)]
        began.wait()
        time.sleep(0.05)
        code, errors = server.end()
        assert code == 0
        assert {future.result() for future in futures} <= {200, 503}
        log = [json.loads(line) for line in errors.splitlines()]
        assert sorted(r["status"] for r in log if r["route"] == PREDICT) == sorted(f.result() for f in futures)


@pytest.mark.slow
def test_workers_share_the_port_are_replaced_and_end(tiny: Path) -> None:
    with running(tiny, "--workers", 2, "--metrics", "--drain", 0) as server:
        for _ in range(10):  # connections of their own, which the kernel spreads
            assert httpx.post(server.url + PREDICT, content=PICTURE).status_code == 200
        count = [line for line in httpx.get(server.url + "/metrics").text.splitlines() if "predictions_total{" in line]
        assert count == ['onnxcam_server_predictions_total{model="tiny"} 10.0']
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if children.exists():
            workers = [pid for pid in map(int, children.read_text().split()) if b"spawn_main" in _command(pid)]
            assert len(workers) == 2
            os.kill(workers[0], signal.SIGKILL)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                now = [pid for pid in map(int, children.read_text().split()) if b"spawn_main" in _command(pid)]
                if len(now) == 2 and workers[0] not in now:
                    break
                time.sleep(0.05)
            assert len(now) == 2
        assert httpx.post(server.url + PREDICT, content=PICTURE, timeout=30).status_code == 200
        assert server.end()[0] == 0


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@pytest.mark.slow
def test_limits_on_connections_and_time(tiny: Path) -> None:
    with running(tiny, "--connections", 4, "--timeout", "1s", "--max-body", "1MiB") as server:
        assert b" 400 " in answer_to(server.address, b"nonsense\r\n\r\n").splitlines()[0]
        slow = answer_to(server.address, f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx".encode())
        assert slow.startswith(b"HTTP/1.1 408 ") and b'{"error":' in slow and b"connection: close" in slow.lower()
        head = (
            f"POST {PREDICT} HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert answer_to(server.address, head).startswith(b"HTTP/1.1 413 ")  # not one byte of it was asked for
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                connection = stack.enter_context(socket.create_connection(server.address))
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
                assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
            refused = answer_to(server.address, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert refused.startswith(b"HTTP/1.1 503 ") and b'{"error":' in refused
        time.sleep(0.2)
        assert httpx.get(server.url + "/healthz").status_code == 200


@pytest.mark.slow
def test_a_head_has_to_come_within_its_time_and_size(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcam.server import connections, run
    from onnxcam.server.settings import Settings

    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    listener = run.bind("127.0.0.1", 0)
    address, started = listener.getsockname(), threading.Event()
    servers: list[Any] = []
    startup = run.Server.startup

    async def note(self: Any, sockets: Any = None) -> None:
        servers.append(self)
        await startup(self, sockets)

    monkeypatch.setattr(run.Server, "startup", note)
    plan = run.Plan([str(tiny)], Settings.of(drain=0), log=False)
    thread = threading.Thread(target=run.serve, args=(plan, listener, started.set))
    thread.start()
    try:
        assert started.wait(30)
        start = time.monotonic()
        assert answer_to(address) == b""  # a connection that says nothing is closed
        assert answer_to(address, b"GET / HTTP/1.1\r\nHost").startswith(b"HTTP/1.1 408 ")
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):  # head and body may come apart
                answer += connection.recv(10_000)
            assert answer.startswith(b"HTTP/1.1 200 ")
            connection.sendall(b"GET")
            assert b'did not arrive within 0.5 s"}' in b"".join(iter(lambda: connection.recv(10_000), b""))
        assert time.monotonic() - start < 10
        large = b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X-Y: z\r\n" * 20_000
        assert answer_to(address, large).split(b" ", 2)[1] in (b"400", b"431")
        assert httpx.get(f"http://127.0.0.1:{address[1]}/healthz").status_code == 200
    finally:
        servers[0].should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def test_what_cannot_start_says_why(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for call, code, word in (
            ([tiny, "--port", other.getsockname()[1]], 2, "--port"),
            ([tiny, "--when", "sometimes", "--port", 0], 2, "sometimes"),
            ([tmp_path / "missing.onnx", "--port", 0], 3, "missing.onnx"),
            ([tiny, "--token-file", tmp_path / "none", "--port", 0], 2, "token file"),
        ):
            with pytest.raises(SystemExit) as end:
                main(["serve", *map(str, call)], "onnxcam")
            errors = capsys.readouterr().err
            assert end.value.code == code and word in errors and "Traceback" not in errors


@pytest.mark.slow
def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "onnxcam",
        "serve",
        str(tmp_path / "missing.onnx"),
        "--workers",
        "2",
        "--port",
        "0",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 3 and "missing.onnx" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_server_starts_without_onnx(tiny: Path) -> None:
    heavy = "{'onnx', 'torch', 'prometheus_client'}"
    code = f"import sys; import onnxcam.server.run; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such setting")
def test_threads_of_a_server_share_heaps() -> None:
    code = (
        "import ctypes, os, sys, tempfile, threading\n"
        "from onnxcam.server.run import share_heaps\n"
        "assert sys.argv[1] == 'by itself' or share_heaps(3)\n"
        "c = ctypes.CDLL(None)\n"
        "c.malloc.restype = c.fopen.restype = ctypes.c_void_p\n"
        "barrier = threading.Barrier(12)\n"
        "def allocate():\n"
        "    barrier.wait()\n"
        "    assert all(c.malloc(ctypes.c_size_t(100_000)) for _ in range(20))\n"
        "    barrier.wait()\n"
        "threads = [threading.Thread(target=allocate) for _ in range(12)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "with tempfile.NamedTemporaryFile() as file:\n"
        "    stream = ctypes.c_void_p(c.fopen(file.name.encode(), b'w'))\n"
        "    c.malloc_info(0, stream); c.fclose(stream)\n"
        "    print(file.read().count(b'<heap nr='))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MALLOC_ARENA_MAX"}
    heaps = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", code, how], capture_output=True, text=True, check=True, env=environment
            ).stdout
        )
        for how in ("by itself", "shared")
    }
    assert heaps["shared"] <= 3 < heaps["by itself"], heaps


def test_the_package_needs_no_library_of_the_server_until_an_app_is_made(tiny: Path) -> None:
    code = (
        "import sys\nfor name in ('starlette', 'orjson', 'python_multipart'): sys.modules[name] = None\nfrom "
        "onnxcam.errors import DependencyError\nfrom onnxcam.server import create_app\ntry: "
        "create_app(sys.argv[1])\nexcept DependencyError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, check=True)
    assert 'pip install "onnxcam[serve]"' in result.stdout
    assert issubclass(DependencyError, onnxcam.OnnxcamError)
