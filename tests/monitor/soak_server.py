"""A server under the soak: threads that predict beside one monitor, and handlers of signals that call it.

Run by `tests.monitor.soak`, a process a life: settings come as an argument, commands over standard input, and what the
server did goes out over standard output, a line of JSON per event, each in one write.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

_real_time, _real_time_ns = time.time, time.time_ns
_ahead = 0.0  # seconds by which this process's wall clock is wrong


def _wrong_time() -> float:
    return _real_time() + _ahead


def _wrong_time_ns() -> int:
    return _real_time_ns() + int(_ahead * 1e9)


time.time, time.time_ns = _wrong_time, _wrong_time_ns  # before anything imports a clock

import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402

from onnxcam.monitor.folder import Folder  # noqa: E402
from onnxcam.monitor.hook import Monitor, request  # noqa: E402
from onnxcam.runtime.options import one_thread  # noqa: E402

FEEDS = 24  # batches that are predicted again and again, each with one answer
CLOSE = 1.0  # seconds that a handler gives `close`
FLUSH = 0.05
EXCEPTIONS: tuple[type[BaseException], ...] = (OSError, ValueError, MemoryError, RuntimeError)
IN_WORKER = (*EXCEPTIONS, SystemExit, KeyboardInterrupt)  # where no caller could mistake them for its own


class Handler:
    """Measures what a signal handler takes, and how long of that its thread waited for a processor."""

    def __init__(self) -> None:
        self._begin, self._waited = time.monotonic(), waited()

    def tell(self, kind: str, **values: Any) -> None:
        tell(kind, begin=self._begin, end=time.monotonic(), waited=waited() - self._waited, **values)


def waited() -> float:
    """Seconds that this thread was ready but did not run; 0 where the system does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_bytes().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        return 0.0


class RequestTimeout(Exception):
    """What a server's own alarm raises in the middle of a request."""


def tell(event: str, **values: Any) -> None:
    """Write one event; small enough for the pipe to take it in one piece."""
    os.write(1, json.dumps({"event": event, **values}).encode() + b"\n")


class TroubledSink:
    """A folder whose acknowledgements are told, and which raises or stalls on command."""

    def __init__(self, folder: Folder, seed: int, inline: bool) -> None:
        self.folder = folder
        self.mode: str | None = None
        self._random = random.Random(seed)
        self._errors = EXCEPTIONS if inline else IN_WORKER
        self._longest = 0.3 if inline else 2.0

    def write(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        mode = self.mode
        if mode == "raise" and self._random.random() < 0.5:
            raise self._random.choice(self._errors)("planted")
        if mode == "stall":
            time.sleep(self._random.uniform(0, self._longest))
        self.folder.write(record, files)
        tell("ack", id=record["id"])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.folder, name)


def expected(session: Any, feed: dict[str, Any]) -> list[bytes]:
    return [output.tobytes() for output in session.run(None, feed)]


class Server:
    """Predicts in `threads` threads, the main one among them, and compares every answer."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.random = random.Random(settings["seed"])
        self.threads = int(settings["threads"])
        self.stop = threading.Event()
        self.closing = False
        self.armed = False
        # appended to and not added up: a handler may come between reading a sum and writing it
        self.rows: list[int] = []
        self.interrupted: list[int] = []
        self.changed: list[int] = []
        self.errors: list[str] = []
        self.raised: list[int] = []
        self.caught: list[int] = []
        inline = settings["monitor"].get("worker") == "inline"
        self.sink = TroubledSink(Folder(settings["root"], **settings["folder"]), settings["seed"], inline)
        self.monitor = Monitor(settings["model"], sink=self.sink, seed=settings["seed"], **settings["monitor"])
        source = settings["model"] if settings["serves"] == "explainable" else settings["plain"]
        options = one_thread()
        plain = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.watched = self.monitor.wrap(ort.InferenceSession(source, one_thread(), providers=["CPUExecutionProvider"]))
        noise = np.random.default_rng(settings["seed"])
        self.feeds = [{"input": noise.normal(size=(1 + 3 * (k % 2), 3, 8, 8)).astype(np.float32)} for k in range(FEEDS)]
        self.answers = [expected(plain, feed) for feed in self.feeds]
        self.first = plain.get_outputs()[0].name
        with open(settings["beats"], "r+b") as file:  # noqa: PTH123
            self.beats = mmap.mmap(file.fileno(), 8 * (self.threads + 1))

    def predict(self, k: int, some: bool = False) -> None:
        """Predict one batch, of all outputs or the first one."""
        feed, answer = self.feeds[k], self.answers[k]
        results = self.watched.run([self.first] if some else None, feed)
        self.rows.append(len(feed["input"]))
        if [result.tobytes() for result in results] != (answer[:1] if some else answer):
            self.changed.append(k)

    def beat(self, number: int, count: int) -> None:
        struct.pack_into("<Q", self.beats, 8 * number, count)

    def serve(self, number: int) -> None:
        """Predict until told to stop."""
        choose = random.Random(self.random.random() + number)
        try:
            for count in itertools.count(1):
                if self.stop.is_set():
                    return
                with request(f"thread {number}"):
                    self.predict(choose.randrange(FEEDS), choose.random() < 0.3)
                self.beat(number, count)
                self.stop.wait(choose.uniform(0, 0.02))
        except BaseException as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def serve_with_alarms(self) -> None:
        """Predict in the main thread, where signals are handled; an alarm of its own ends one request in ten."""
        choose = random.Random(self.random.random())
        counter = itertools.count(1)
        while True:
            k = 0
            try:
                while not self.stop.is_set():
                    k = choose.randrange(FEEDS)
                    if choose.random() < 0.1:
                        self.armed = True
                        signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-6, 6e-4))
                    self.predict(k, choose.random() < 0.3)
                    self.armed = False
                    self.beat(0, next(counter))
                    if choose.random() < 0.1:
                        time.sleep(choose.uniform(0, 0.01))
                return
            except RequestTimeout:
                self.caught.append(1)
                self.interrupted.append(len(self.feeds[k]["input"]))
            except BaseException as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                return

    def on_alarm(self, *_: Any) -> None:
        if self.armed and not self.closing:
            self.armed = False
            self.raised.append(1)
            raise RequestTimeout

    def on_close(self, number: int, frame: FrameType | None) -> None:
        """What a service does when it is asked to end: close the monitor, then stop serving."""
        self.closing = True
        handler = Handler()
        done = self.monitor.close(CLOSE)
        handler.tell("close", done=done)
        self.stop.set()

    def on_look(self, *_: Any) -> None:
        """What a debugging handler does."""
        handler = Handler()
        stats = self.monitor.stats()
        handler.tell("look", balanced=balanced(stats))

    def on_predict(self, *_: Any) -> None:
        """What a health check does."""
        handler = Handler()
        self.predict(0)
        self.monitor.flush(FLUSH)
        handler.tell("predict")

    def obey(self) -> None:
        """Carry out commands from standard input, read without a buffer, whose lock a shutdown would miss."""
        global _ahead
        rest = b""
        while chunk := os.read(0, 1 << 12):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                command = json.loads(line)
                if "clock" in command:
                    _ahead = command["clock"]
                if "sink" in command:
                    self.sink.mode = command["sink"]
                if "limit" in command:
                    limit = resource.RLIM_INFINITY if command["limit"] is None else command["limit"]
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        os._exit(4)  # the supervisor is gone

    def run(self) -> None:
        signal.signal(signal.SIGALRM, self.on_alarm)
        signal.signal(signal.SIGUSR1, self.on_look)
        signal.signal(signal.SIGUSR2, self.on_predict)
        signal.signal(signal.SIGTERM, self.on_close)
        threading.Thread(target=self.obey, daemon=True).start()
        others = [threading.Thread(target=self.serve, args=(n,)) for n in range(1, self.threads)]
        for thread in others:
            thread.start()
        tell("ready")
        self.serve_with_alarms()
        self.closing = True
        for thread in others:
            thread.join()
        self.predict(1)  # after it was closed: counted, too
        end = time.monotonic() + 5
        while time.monotonic() < end and (self.monitor.stats()["running"] or self.monitor.stats()["queued"]):
            time.sleep(0.01)
        stats = self.monitor.stats()
        tell(
            "book",
            stats=stats,
            balanced=balanced(stats),
            rows=sum(self.rows),
            predictions=len(self.rows),
            interrupted=sum(self.interrupted),
            changed=len(self.changed),
            raised=len(self.raised),
            caught=len(self.caught),
            errors=self.errors[:5],
        )


def balanced(stats: Mapping[str, Any]) -> bool:
    """Promise 4: every row that was seen is in exactly one place."""
    places = stats["confident"] + sum(stats["dropped"].values()) + stats["explained"] + stats["failed"]
    return bool(stats["seen"] == places + stats["queued"] + stats["running"])


def main() -> None:
    settings = json.loads(sys.argv[1])
    # asked for by the supervisor, and able to tell where even a thread that holds every lock stands
    with contextlib.suppress(OSError), open(settings["stacks"], "w") as stacks:  # noqa: PTH123
        faulthandler.register(signal.SIGQUIT, stacks, all_threads=True)
        Server(settings).run()


if __name__ == "__main__":
    main()
