"""Promise 10: safe under fork, spawn, threads, asyncio and pre-fork servers, and no identity twice."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime as ort
import psutil
import pytest

from onnxcam.monitor.hook import Monitor
from onnxcam.runtime.options import one_thread
from tests.monitor.monitoring import ALWAYS, MODEL, PLAIN, UNLIMITED, Collector, Gate, balanced, logits, pictures

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def records(folder: Path) -> list[dict[str, Any]]:
    """Every record in a sink's folder."""
    lines = [line for path in folder.glob("records/*.jsonl*") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def check_whole(folder: Path, count: int) -> list[dict[str, Any]]:
    entries = records(folder)
    assert len(entries) == count
    assert len({record["id"] for record in entries}) == count
    assert all((folder / entry["name"]).is_file() for record in entries for entry in record["files"])
    return entries


def predict(monitor: Monitor, rows: int, session: Any = None) -> None:
    """What a server's process does."""
    watched = monitor.wrap(session or ort.InferenceSession(PLAIN))
    for seed in range(rows):
        watched.run(None, {"input": pictures(1, seed=seed)})


def in_fork(action: Any) -> int:
    """Run in a forked child; 0 where it raised nothing."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return child


def wait(children: list[int]) -> None:
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(children)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("worker", ["thread", "process", "inline"])
def test_fork(worker: str, tmp_path: Path) -> None:
    monitor = Monitor(MODEL, sink=tmp_path, when=ALWAYS, worker=worker, **UNLIMITED, sink_options={"sync": False})
    predict(monitor, 3)  # the parent's worker runs already
    assert monitor.flush(60)

    def child() -> None:
        assert monitor.stats()["seen"] == 0
        predict(monitor, 4)
        assert monitor.flush(60)
        stats = monitor.stats()
        assert stats["explained"] == 4 and balanced(stats), stats
        assert monitor.close(5)

    children = [in_fork(child) for _ in range(3)]
    predict(monitor, 2)
    wait(children)
    assert monitor.close(60)
    assert monitor.stats()["explained"] == 5
    entries = check_whole(tmp_path, 5 + 3 * 4)
    assert {record["pid"] for record in entries} == {os.getpid(), *children}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_fork_in_the_middle_of_everything(tmp_path: Path) -> None:
    """Children of a process whose threads hold locks at that moment, with rows waiting in its queue."""
    gate, collector = Gate(), Collector()
    monitor = Monitor(MODEL, sink=[collector, gate], when=ALWAYS, queue=4, **UNLIMITED)
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            monitor.observe(logits(1), tensor=pictures(1))
            monitor.stats()

    threads = [threading.Thread(target=storm) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert gate.entered.wait(10)

    def child() -> None:
        signal.alarm(20)  # a lock inherited as held would hang for ever
        gate.open.set()
        collector.records.clear()
        assert monitor.observe(logits(2), tensor=pictures(2)) == 2
        assert monitor.flush(10)
        assert monitor.stats()["explained"] == 2 == len(collector.records)  # nothing of the parent's queue

    wait([in_fork(child) for _ in range(20)])
    stop.set()
    for thread in threads:
        thread.join()
    gate.open.set()
    assert monitor.close(10)
    assert balanced(monitor.stats())


def _spawned(folder: str) -> None:
    with Monitor(MODEL, sink=folder, when=ALWAYS, **UNLIMITED, sink_options={"sync": False}) as monitor:
        predict(monitor, 4)
        assert monitor.flush(30)


@pytest.mark.slow
def test_spawn(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_spawned, args=(str(tmp_path),)) for _ in range(2)]
    for child in children:
        child.start()
    _spawned(str(tmp_path))
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len({record["pid"] for record in check_whole(tmp_path, 12)}) == 3


def test_threads(tmp_path: Path) -> None:
    session = ort.InferenceSession(PLAIN)
    with Monitor(MODEL, sink=tmp_path, when=ALWAYS, **UNLIMITED, sink_options={"sync": False}) as monitor:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: predict(monitor, 6, session), range(8)))
        assert monitor.flush(30)
    check_whole(tmp_path, 48)


def test_asyncio(tmp_path: Path) -> None:
    session = ort.InferenceSession(PLAIN)
    with Monitor(MODEL, sink=tmp_path, when=ALWAYS, **UNLIMITED, sink_options={"sync": False}) as monitor:
        watched = monitor.wrap(session)

        async def serve(seed: int) -> None:
            batch = {"input": pictures(1, seed=seed)}
            if seed % 2:
                await asyncio.to_thread(watched.run, None, batch)
            else:
                watched.run(None, batch)

        async def all_at_once() -> None:
            await asyncio.gather(*(serve(seed) for seed in range(24)))

        asyncio.run(all_at_once())
        assert monitor.flush(30)
    check_whole(tmp_path, 24)


SERVER = """
    import os, signal, socket, sys
    import onnxcam
    from tests.monitor.monitoring import ALWAYS, MODEL, PLAIN, UNLIMITED, pictures

    # the master loads the application, then forks: what gunicorn does with --preload. onnxruntime is imported behind
    # the fork: once imported, 1.32 starts a thread that a forked child waits for in vain when it exits
    monitor = onnxcam.Monitor(MODEL, sink=sys.argv[1], when=ALWAYS, **UNLIMITED)
    assert "onnxruntime" not in sys.modules
    listener = socket.create_server(("127.0.0.1", 0))
    children, (ready, tell) = [], os.pipe()
    for number in range(3):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            import onnxruntime

            session = monitor.wrap(onnxruntime.InferenceSession(PLAIN))
            os.write(tell, b".")
            while True:
                connection, _ = listener.accept()
                with connection:
                    seed = int(connection.recv(100))
                    scores = session.run(None, {"input": pictures(1, seed=seed)})[0]
                    connection.sendall(f"{os.getpid()} {scores.argmax()}".encode())
        children.append(child)
    for child in children:
        os.read(ready, 1)
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
    for child in children:
        os.kill(child, signal.SIGTERM)
    for child in children:
        os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_pre_fork_server(tmp_path: Path) -> None:
    import socket

    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER), str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdin and server.stdout and server.stderr
    port = int(server.stdout.readline())

    def ask(seed: int) -> int:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(str(seed).encode())
            return int(connection.recv(100).split()[0])

    with ThreadPoolExecutor(6) as pool:
        served = list(pool.map(ask, range(30)))
    _, output = server.communicate(timeout=60)
    assert server.returncode == 0 and output == "", output
    entries = check_whole(tmp_path, 30)
    assert sorted(record["pid"] for record in entries) == sorted(served)
    assert 1 < len(set(served)) <= 3


PARENT = """
    import sys, time
    import onnxcam
    from tests.monitor.monitoring import ALWAYS, MODEL, UNLIMITED, logits, pictures

    monitor = onnxcam.Monitor(MODEL, sink=print, when=ALWAYS, worker="process", **UNLIMITED)
    monitor._sink.inner = lambda record, files: None
    monitor.observe(logits(1), tensor=pictures(1))
    assert monitor.flush(60)
    print(monitor._pipeline.handler._explain.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_worker_process_dies_with_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT)], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.nice() == 19 and child.num_threads() < 8
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([child], timeout=5)
    assert alive == []


@pytest.fixture
def processed() -> Iterator[tuple[Monitor, Collector]]:
    collector = Collector()
    with Monitor(MODEL, sink=collector, when=ALWAYS, worker="process", timeout=1.0, **UNLIMITED) as monitor:
        monitor.observe(logits(1), tensor=pictures(1))
        assert monitor.flush(60)
        yield monitor, collector


@pytest.mark.slow
@pytest.mark.parametrize(("how", "says"), [(signal.SIGKILL, "signal 9"), (signal.SIGSTOP, "no answer within 1 s")])
def test_a_worker_process_is_started_again(
    how: signal.Signals, says: str, processed: tuple[Monitor, Collector], caplog: pytest.LogCaptureFixture
) -> None:
    monitor, rest = processed
    os.kill(monitor._pipeline.handler._explain.pid, how)  # type: ignore[union-attr]
    time.sleep(0.05)
    monitor.observe(logits(3), tensor=pictures(3))
    assert monitor.flush(60)
    stats = monitor.stats()
    assert (stats["explained"], stats["failed"], stats["failures"]["worker"]) == (3, 1, 1)
    assert stats["restarts"] == 1 and len(rest.records) == 3
    assert says in caplog.text


def test_the_worker_thread_is_nice_and_what_it_starts_too() -> None:
    before = set(Path("/proc/self/task").iterdir())
    with Monitor(MODEL, sink=Collector(), when=ALWAYS, redact="none", **UNLIMITED) as monitor:
        monitor.observe(logits(1), tensor=pictures(1))
        assert monitor.flush(10)
        assert "onnxcam-monitor" in [thread.name for thread in threading.enumerate()]
        assert os.getpriority(os.PRIO_PROCESS, monitor._pipeline.worker.native_id) == 19
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 19
        started = set(Path("/proc/self/task").iterdir()) - before
        assert {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in started} == {19}
    options = one_thread()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
