"""The worker process, as its parent sees it: it never holds the interpreter lock that predictions need.

The child (`child`) is started with pipes for standard input and output; the caller's main module is not run again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from onnxcam.errors import OnnxcamError
from onnxcam.monitor.predictions import Row
from onnxcam.monitor.row_explainer import Settings
from onnxcam.monitor.worker import WorkerLost, start_thread

_START = "import sys; sys.path[:] = {path!r}; from onnxcam.monitor.child import main; main({parent})"
_EXIT_TIMEOUT, _REAP_TIMEOUT = 0.2, 60.0  # seconds
_OPEN_TIMEOUT = 120.0  # seconds for imports, the model and its session


class ExplanationFailed(OnnxcamError):
    """The error that the child process reported for a row."""


class ExplainerProcess:
    """Explains rows in a child process, which exits when this one does.

    Arguments:
        timeout: seconds after which an explanation counts as hung, and the child is killed.

    Raises:
        WorkerLost: it could not be started, or the model could not be opened in it.
    """

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._timeout = timeout
        code = _START.format(path=[os.path.abspath(p) for p in sys.path], parent=os.getpid())  # noqa: PTH100
        command = [os.fsdecode(spawn.get_executable() or sys.executable), "-c", code]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None and self._process.stdout is not None
        # duplicated, because both the file objects and the Connections close their descriptors
        self._out = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self._in = Connection(os.dup(self._process.stdout.fileno()), writable=False)
        self._ends = [self._out, self._in]
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._out.send(settings)
            self._answer(_OPEN_TIMEOUT)
        except Exception:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def __call__(self, row: Row, waited: float) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Explain a row, as `RowExplainer` does.

        Raises:
            WorkerLost: the child died or hung. ExplanationFailed: the row cannot be explained.
        """
        try:
            send_row(self._out, row, waited)
        except (OSError, ValueError) as error:
            raise WorkerLost(f"the worker process ended ({self._status()})") from error
        record, files = self._answer(self._timeout)
        record["pid"] = os.getpid()  # of the process that predicted
        return record, files

    def close(self) -> None:
        """Kill the child; a thread that waits for its answer gets `WorkerLost`."""
        self._process.kill()
        try:
            start_thread(lambda: self._reap(_REAP_TIMEOUT))
        except RuntimeError:  # the interpreter exits: no thread can be started
            self._reap(_EXIT_TIMEOUT)
        self.abandon()

    def abandon(self) -> None:
        """Close the pipes only: in a forked child, so that they close when the parent exits."""
        with contextlib.suppress(IndexError):
            while True:  # each end is closed by the one that takes it
                end = self._ends.pop()
                with contextlib.suppress(OSError):
                    end.close()

    def _reap(self, timeout: float) -> None:
        """Wait for the child to exit: a starved process takes a while."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def _answer(self, timeout: float) -> Any:
        try:
            if not self._in.poll(timeout):
                raise WorkerLost(f"the worker process gave no answer within {timeout:g} s and was ended")
            kind, *content = self._in.recv()
        except (EOFError, OSError, ValueError) as error:
            raise WorkerLost(f"the worker process ended ({self._status()})") from error
        if kind == "lost":
            raise WorkerLost(content[0])
        if kind == "failed":
            raise ExplanationFailed(content[0])
        return content

    def _status(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=1.0)
            return f"signal {-code}" if code < 0 else f"exit status {code}"
        return "its pipe is closed"


def send_row(connection: Connection, row: Row, waited: float) -> None:
    """Send a row through a pipe; its arrays are sent as raw bytes, not pickled."""
    arrays = row.arrays()
    headers = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    connection.send((row.without_arrays(), waited, headers))
    for array in arrays.values():
        connection.send_bytes(np.ascontiguousarray(array).data.cast("B"))


def receive_row(connection: Connection) -> tuple[Row, float]:
    """Receive what `send_row` sent."""
    row, waited, headers = connection.recv()
    arrays = {
        name: np.frombuffer(connection.recv_bytes(), np.dtype(dtype)).reshape(shape) for name, dtype, shape in headers
    }
    return row.with_arrays(arrays), waited
