"""A worker in a process of its own: nothing it does holds the interpreter lock that predictions need.

The child (`child`) is started with pipes for its standard input and output; the caller's main module is not run again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from multiprocessing import spawn
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from onnxcam.errors import OnnxcamError
from onnxcam.monitor.evidence import Settings
from onnxcam.monitor.predictions import Row
from onnxcam.monitor.worker import WorkerLost

_START = "import sys; sys.path[:] = {path!r}; from onnxcam.monitor.child import main; main({parent})"
_DYING = 0.2  # seconds
_OPENING = 120.0  # seconds for imports, the model and its session


class ExplainedElsewhere(OnnxcamError):
    """What the child said instead of explaining."""


class Child:
    """Explains rows in a child process, which ends with this one.

    Arguments:
        timeout: seconds after which an explanation counts as hung, and the child is ended.

    Raises:
        WorkerLost: it could not be started, or the model could not be opened in it.
    """

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._timeout = timeout
        self._closing = threading.Lock()
        code = _START.format(path=[os.path.abspath(p) for p in sys.path], parent=os.getpid())  # noqa: PTH100
        command = [os.fsdecode(spawn.get_executable() or sys.executable), "-c", code]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None and self._process.stdout is not None
        # the pipes' own file objects keep the descriptors; a Connection would close them a second time
        self._out = Connection(os.dup(self._process.stdin.fileno()), readable=False)
        self._in = Connection(os.dup(self._process.stdout.fileno()), writable=False)
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._out.send(settings)
            self._answer(_OPENING)
        except Exception:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def __call__(self, row: Row, waited: float) -> tuple[dict[str, Any], dict[str, bytes]]:
        """As `Evidence`.

        Raises:
            WorkerLost: the child died or hung. ExplainedElsewhere: the row cannot be explained.
        """
        try:
            send_row(self._out, row, waited)
        except (OSError, ValueError) as error:
            raise WorkerLost(f"the worker process ended ({self._status()})") from error
        record, files = self._answer(self._timeout)
        record["pid"] = os.getpid()  # of the process that predicted
        return record, files

    def close(self) -> None:
        """End the child; whoever waits for its answer gets `WorkerLost`."""
        with self._closing:
            self._process.kill()
            self._reap()
            self.abandon()

    def _reap(self) -> None:
        """Where all processors are others', even dying takes a while in what they leave: it is not waited for."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_DYING)
            return
        with contextlib.suppress(RuntimeError):  # no thread can be started once the interpreter ends
            threading.Thread(target=self._process.wait, name="onnxcam-reaper", daemon=True).start()

    def abandon(self) -> None:
        """Close the pipes alone: in the child of a fork, so that they end with the parent."""
        for end in (self._out, self._in):
            with contextlib.suppress(OSError):
                end.close()

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
            raise ExplainedElsewhere(content[0])
        return content

    def _status(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout=1.0)
            return f"signal {-code}" if code < 0 else f"exit status {code}"
        return "its pipe is closed"


def send_row(connection: Connection, row: Row, waited: float) -> None:
    """A row through a pipe; its arrays go as they lie in memory, without being pickled."""
    arrays = row.arrays()
    connection.send((row.without_arrays(), waited, [(name, a.dtype.str, a.shape) for name, a in arrays.items()]))
    for array in arrays.values():
        connection.send_bytes(np.ascontiguousarray(array).data.cast("B"))


def receive_row(connection: Connection) -> tuple[Row, float]:
    """The other end of `send_row`."""
    row, waited, forms = connection.recv()
    arrays = {
        name: np.frombuffer(connection.recv_bytes(), np.dtype(dtype)).reshape(shape) for name, dtype, shape in forms
    }
    return row.with_arrays(arrays), waited
