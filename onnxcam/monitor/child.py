"""The process at the other end of `process.Child`: reads rows from standard input, answers on standard output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from multiprocessing.connection import Connection

from onnxcam.monitor.evidence import Evidence
from onnxcam.monitor.process import receive_row
from onnxcam.monitor.worker import NICENESS

_LOOK = 1.0  # seconds between looks whether the parent still lives


def main(parent: int) -> None:
    """Answer until the parent goes.

    Arguments:
        parent: its process id, as it was when this process was started.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    inlet = Connection(os.dup(0), writable=False)
    outlet = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # whatever prints must not print into the answers
    os.nice(NICENESS)
    try:
        settings = inlet.recv()
        try:
            _one_thread()
            evidence = Evidence(settings)
        except Exception as error:
            outlet.send(("lost", _said(error)))
            return
        outlet.send(("ready",))
        _only_idle_time()
        while _waits(inlet, parent):
            row, waited = receive_row(inlet)
            try:
                outlet.send(("done", *evidence(row, waited)))
            except Exception as error:
                outlet.send(("failed", _said(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _waits(inlet: Connection, parent: int) -> bool:
    """Wait for a row; False once the parent is gone, also where others still hold its end of the pipe."""
    while not inlet.poll(_LOOK):
        if os.getppid() != parent:
            return False
    return True


def _only_idle_time() -> None:
    """From now on run where nobody else wants to, if the system knows such a policy.

    The nicest thread still gets ticks of a few milliseconds, and a prediction waits for each. Nobody waits for a lock
    that this process holds, so it can do with less; opening the model, which is long, could not.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _one_thread() -> None:
    from onnxcam.image.opencv import import_cv2

    import_cv2().setNumThreads(1)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
