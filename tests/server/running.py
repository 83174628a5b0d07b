"""A server in a process of its own, as `onnxcam serve` starts it, and what it holds."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from onnxcam import image
from tests.image.pictures import smooth
from tests.support.explainable import augment
from tests.support.models import tiny_cnn

ROOT = Path(__file__).parent.parent.parent
PREPROCESS = {"scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}
ROUTE = "/predict_with_gradcam"
PATIENCE = 120.0  # seconds for a start or an end on a machine that is busy with other tests


class Reply(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        """The JSON document in its body."""
        return json.loads(self.body)

    @property
    def sentence(self) -> str:
        """What an error says, in the one form that errors have."""
        content = self.content
        assert list(content) == ["error"] and isinstance(content["error"], str), content
        assert self.headers["content-type"] == "application/json"
        assert 10 < len(content["error"]) < 2000 and "Traceback" not in content["error"], content
        return content["error"]


class Running:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self._log = process, port, log

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text("utf-8", "replace")

    @property
    def memory(self) -> int:
        """Resident bytes of the process and its children."""
        return sum(process.memory_info().rss for process in self._processes())

    @property
    def descriptors(self) -> int:
        """Open descriptors of the process and its children."""
        return sum(process.num_fds() for process in self._processes())

    @property
    def threads(self) -> int:
        """Threads of the process and its children."""
        return sum(process.num_threads() for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def connect(self, timeout: float = 60.0) -> socket.socket:
        """A connection, on which nothing was sent."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def ask(
        self, path: str = "/healthz", body: bytes | None = None, headers: dict[str, str] | None = None,
        method: str | None = None, timeout: float = 60.0,
    ) -> Reply:  # fmt: skip
        """Send a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def explain(self, picture: bytes, query: str = "") -> Reply:
        """Ask for the map of a picture."""
        return self.ask(f"{ROUTE}?{query}" if query else ROUTE, picture, {"content-type": "image/png"})

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End it with a signal; return its exit code."""
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)


def model_file(folder: Path) -> Path:
    """A small explainable model with its preprocessing."""
    path = folder / "tiny.cam.onnx"
    path.write_bytes(augment(tiny_cnn(), preprocess=PREPROCESS, probe=False).SerializeToString())
    return path


def picture(height: int = 48, width: int = 64) -> bytes:
    """A picture as PNG."""
    return image.encode_png(smooth(height, width))


@contextlib.contextmanager
def running(model: Path, *options: str, log: Path | None = None, ready: bool = True) -> Iterator[Running]:
    """Run `onnxcam serve` with these options on a free port, and end it; its log is shown where a test fails."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    log = log or model.parent / f"{port}.log"
    command = [sys.executable, "-m", "onnxcam", "serve", str(model), "--port", str(port), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, cwd=ROOT, env=environment)
    server = Running(process, port, log)
    try:
        if ready:
            wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                pytest.fail(f"the server did not end by SIGTERM:\n{server.log[-4000:]}")
        print(server.log[-4000:])


def wait_until_ready(server: Running, patience: float = PATIENCE) -> None:
    """Wait until it answers."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if server.process.poll() is not None:
            pytest.fail(f"the server ended with {server.process.returncode}:\n{server.log[-4000:]}")
        with contextlib.suppress(OSError):
            if server.ask(timeout=5).status == 200:
                return
        time.sleep(0.02)
    pytest.fail(f"the server is not ready after {patience} s:\n{server.log[-4000:]}")
