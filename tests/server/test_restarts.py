"""Promise 31: every accepted request is answered, also by a server that is told to stop."""

from __future__ import annotations

import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from onnxcam.server import run
from onnxcam.server.settings import Settings
from tests.server.restarts import end_under_load
from tests.server.running import PATIENCE, ROUTE, model_file, picture, running
from tests.support.http_load import request


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(100, marks=pytest.mark.soak)])
def test_a_server_that_is_ended_loses_no_accepted_request(tmp_path: Path, count: int) -> None:
    model = model_file(tmp_path)
    statuses: Counter[int] = Counter()
    before = 0
    for seed in range(count):
        ended = end_under_load(model, seed, number=signal.SIGINT if seed % 5 == 4 else signal.SIGTERM)
        assert ended.unanswered == {}, (seed, ended.unanswered)
        assert ended.contradicted == {}, (seed, ended.contradicted)
        assert ended.code == 0, (seed, ended.code)
        statuses.update(sent.status for sent in ended.sent.values())
        before += sum(sent.at < ended.signalled for sent in ended.sent.values())
    print(f"{count} ends: {before} requests before the signal, statuses {dict(statuses)}")
    assert statuses.keys() <= {0, 200, 429, 503}
    assert before > 2 * count and statuses[200] > 2 * count, "the servers were under load"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_who_can_connect_to_a_server_that_stops_is_answered(tmp_path: Path, workers: int) -> None:
    """Until nobody listens: the supervisor of several workers must not keep the socket open after them."""
    data = request(ROUTE, picture())
    outcomes: Counter[str] = Counter()
    with running(model_file(tmp_path), f"--workers={workers}", "--threads=1", "--drain=0.3s") as server:
        server.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                connection = socket.create_connection(("127.0.0.1", server.port), 30)
            except ConnectionRefusedError:
                break
            except ConnectionError:  # the system ended it before it was established
                outcomes["reset"] += 1
                continue
            with connection:
                try:
                    connection.sendall(data)
                    outcomes[connection.recv(65536)[9:12].decode() or "closed"] += 1
                except ConnectionError:
                    outcomes["reset"] += 1
        assert server.process.wait(PATIENCE) == 0
    assert outcomes.keys() <= {"200", "503", "reset", "closed"} and outcomes["503"] > 3, outcomes
    assert outcomes["reset"] + outcomes["closed"] <= workers, outcomes  # in the instant in which the socket is closed


def test_the_supervisor_of_workers_stops_to_listen_before_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = []

    class Worker:
        """A worker that notes, when it is told to end, whether its supervisor still has the socket open."""

        def __init__(self, plan: object, listener: socket.socket) -> None:
            self.listener, self.process, self.pipe, self.ready = listener, self, None, True

        def is_alive(self) -> bool:
            return True

        def terminate(self) -> None:
            listening.append(self.listener.fileno() != -1)

        def join(self) -> None:
            pass

    monkeypatch.setattr(run, "_Worker", Worker)
    with run.bind("127.0.0.1", 0) as listener:
        supervisor = run._Supervisor(run.Plan([], Settings.of()), listener, 2, lambda: None)
        supervisor._stopping = True
        supervisor.run()
    assert listening == [False, False]
