"""Running the app under uvicorn: one process or several workers, signals, the log.

SIGTERM or Ctrl-C: `/readyz` says 503 and new requests get 503 for `drain` seconds, then connections are closed as soon
as their answers are sent. Whatever was admitted before is answered.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from typing import Any

import uvicorn

from onnxcam.errors import ModelError, OnnxcamError, SettingError
from onnxcam.explain.folder import cores
from onnxcam.image.opencv import import_cv2
from onnxcam.server.app import build
from onnxcam.server.connections import Connection
from onnxcam.server.metrics import MULTIPROCESS
from onnxcam.server.settings import Settings

_BACKLOG = 2048
_GARBAGE = 700, 10, 10  # Python's own thresholds, whatever a command has set
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))
_FILES = 256  # open files beside connections: models, libraries, records
_M_ARENA_MAX = -8  # of glibc's malloc.h
_GRACE = 5.0  # seconds beside the time limit of a body and of its answer


@dataclass(frozen=True)
class Plan:
    """What a worker needs to serve; it can be pickled.

    Attributes:
        models: paths, also as `NAME=PATH`.
        settings: of the app.
        monitor: a folder, or None.
        opening: arguments of each `Explainer`.
        log: whether requests are logged on standard error.
    """

    models: Sequence[str]
    settings: Settings
    monitor: str | None = None
    opening: Mapping[str, Any] = field(default_factory=dict)
    log: bool = True


class Server(uvicorn.Server):
    """uvicorn, with a time in which new requests are refused before connections are closed."""

    def __init__(self, config: uvicorn.Config, app: Any, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._state = app.state.onnxcam
        self._ready = ready
        self.failure: Exception | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, and tell that."""
        await super().startup(sockets)
        if self.started:
            try:
                self._ready()
            except Exception as error:  # it is raised when what has started has ended
                self.failure = error
                self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests for a while, then close."""
        import asyncio

        self._state.scheduler.drain()
        if not self.force_exit:
            await asyncio.sleep(self._state.settings.drain)
        await self._stop_accepting()
        await super().shutdown(sockets)

    async def _stop_accepting(self) -> None:
        """Let connections that were accepted begin, and accept no more: asyncio drops what has not begun at the end."""
        import asyncio

        loop = asyncio.get_running_loop()
        for _ in range(2):  # one round of the loop takes what has come in
            await asyncio.sleep(0)
        for listener in (one for server in self.servers for one in server.sockets):
            with contextlib.suppress(NotImplementedError, OSError, ValueError):  # Windows, and loops of other packages
                loop.remove_reader(listener.fileno())
        for _ in range(3):
            await asyncio.sleep(0)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop at the first signal, at the second Ctrl-C at once."""
        self._state.scheduler.drain()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end a server; it has ended well then, so they are not raised again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; nothing listens yet.

    Raises:
        SettingError: the address cannot be used.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.set_inheritable(True)
        return listener
    except (OSError, OverflowError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingError(
            f"cannot listen on {host!r} port {port}: {reason}; choose another address with --host and --port"
        ) from error


def allow_connections(count: int) -> None:
    """Raise this process's limit of open files to what so many connections need, as far as the system allows it."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has none
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = 2 * count + _FILES
        if soft != resource.RLIM_INFINITY and soft < needed:
            most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def share_heaps(count: int) -> bool:
    """Let threads allocate from this many heaps at most; return whether the C library can be told so.

    glibc makes a heap for nearly each thread, up to eight a core, and memory that is freed in one serves none of the
    others: in a soak of eight threads 14 heaps kept 30 MB free, two 10 MB, and what was in use was 41 MB of both.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    return mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ and mallopt(_M_ARENA_MAX, count) == 1


def url_of(listener: socket.socket) -> str:
    """The address of a socket as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(plan: Plan, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve in this process until a signal comes.

    Arguments:
        listener: bound.
        ready: called once requests are answered.

    Raises:
        ModelError, LayerError, PreprocessError, RuntimeUnavailable, SettingError: as their names say.
    """
    allow_connections(plan.settings.connections)
    share_heaps(max(cores(), 2))
    import_cv2().setNumThreads(1)  # worker threads already use every core
    with _logged(plan.log):
        app = build(plan.models, plan.settings, plan.monitor, plan.opening)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=round(2 * plan.settings.timeout + _GRACE),
        )
        server = Server(config, app, ready)
        with _collecting():
            server.run([listener])
        if server.failure is not None:
            raise server.failure


@contextlib.contextmanager
def _collecting() -> Iterator[None]:
    """Collect garbage often: a request leaves circles behind that hold its body; what is open stays out of it."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@contextlib.contextmanager
def _logged(requests: bool) -> Iterator[None]:
    """Send the server's log to standard error: a JSON document for each request, sentences for errors."""
    plain = logging.StreamHandler()
    plain.setFormatter(logging.Formatter("%(message)s"))
    before = []
    for name, level in (
        ("onnxcam.server.access", logging.INFO if requests else logging.CRITICAL),
        ("onnxcam.server", logging.WARNING),
        ("uvicorn.error", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers[:], logger.propagate, logger.level))
        logger.handlers[:], logger.propagate = [plain], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


def serve_with_workers(plan: Plan, listener: socket.socket, workers: int, ready: Callable[[], None]) -> None:
    """Serve in several processes, which share the socket, until a signal comes; one that dies is replaced.

    Arguments:
        listener: bound.
        workers: processes.
        ready: called once all of them answer.

    Raises:
        OnnxcamError: a worker cannot start; its message is the worker's.
    """
    with contextlib.ExitStack() as stack:
        if plan.settings.metrics:
            os.environ[MULTIPROCESS] = stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxcam-metrics-"))
            stack.callback(os.environ.pop, MULTIPROCESS, None)
        _Supervisor(plan, listener, workers, ready).run()


class _Worker:
    """A process, and the pipe through which it tells that it is ready, or why it cannot start."""

    def __init__(self, plan: Plan, listener: socket.socket) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_run_worker, args=(plan, listener, theirs), name="onnxcam-server")
        self.process.start()
        theirs.close()
        self.ready = False


class _Supervisor:
    """Keeps the workers running."""

    def __init__(self, plan: Plan, listener: socket.socket, workers: int, ready: Callable[[], None]) -> None:
        self._plan = plan
        self._listener = listener
        self._ready = ready
        self._stopping = False
        self._woken, self._wake = os.pipe()
        self._count = workers
        self._workers: list[_Worker] = []

    def run(self) -> None:
        before = {number: signal.signal(number, self._stop) for number in _SIGNALS}
        try:
            self._workers = [_Worker(self._plan, self._listener) for _ in range(self._count)]
            started = False
            while not self._stopping:
                self._wait()
                if not started and all(worker.ready for worker in self._workers):
                    started = True
                    self._ready()
        finally:
            # the socket listens for as long as anybody has it open: the last worker ends that, with nobody waiting
            self._listener.close()
            for worker in self._workers:
                if worker.process.is_alive():
                    worker.process.terminate()
            for worker in self._workers:
                worker.process.join()
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._woken)
            os.close(self._wake)

    def _stop(self, number: int, frame: Any) -> None:
        self._stopping = True
        os.write(self._wake, b"x")

    def _wait(self) -> None:
        """Wait until a worker tells something or ends, and replace it where it was ready before."""
        pipes = {worker.pipe: worker for worker in self._workers if not worker.ready}
        ends = {worker.process.sentinel: worker for worker in self._workers}
        for event in wait([self._woken, *pipes, *ends]):
            if self._stopping:
                return
            if isinstance(event, Pipe):
                self._hear(pipes[event])
            elif event in ends and event != self._woken:
                self._replace(ends[event])

    def _hear(self, worker: _Worker) -> None:
        try:
            failure = worker.pipe.recv()
        except EOFError:
            worker.process.join()
            raise ModelError(
                f"a worker ended with exit status {worker.process.exitcode} before it was ready; its messages are above"
            ) from None
        if failure is not None:
            raise failure
        worker.ready = True
        worker.pipe.close()

    def _replace(self, worker: _Worker) -> None:
        if not worker.ready:
            self._hear(worker)
        worker.process.join()
        logging.getLogger("onnxcam.server").error(
            "worker %s ended with exit status %s; it is replaced", worker.process.pid, worker.process.exitcode
        )
        if os.environ.get(MULTIPROCESS):
            from prometheus_client import multiprocess

            multiprocess.mark_process_dead(worker.process.pid)
        self._workers[self._workers.index(worker)] = _Worker(self._plan, self._listener)


def _run_worker(plan: Plan, listener: socket.socket, pipe: Pipe) -> None:
    """The main function of a worker."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()  # returns when it ends, however it does
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    try:
        serve(plan, listener, lambda: pipe.send(None))
    except OnnxcamError as error:
        with contextlib.suppress(OSError):
            pipe.send(error)
        sys.exit(1)
