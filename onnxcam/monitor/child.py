"""Main function of the worker process: reads rows from standard input, writes answers to standard output."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from multiprocessing.connection import Connection

from onnxcam.monitor.process import receive_row
from onnxcam.monitor.row_explainer import RowExplainer
from onnxcam.monitor.worker import NICENESS

_PARENT_CHECK = 1.0  # seconds between checks that the parent is alive


def main(parent: int) -> None:
    """Explain rows until the parent exits.

    Arguments:
        parent: the parent's process id at the time this process was started.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which kills this process
    inlet = Connection(os.dup(0), writable=False)
    outlet = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # a library that prints must not write into the answers
    os.nice(NICENESS)
    try:
        settings = inlet.recv()
        try:
            _limit_opencv_threads()
            explain = RowExplainer(settings)
        except Exception as error:
            outlet.send(("lost", _message(error)))
            return
        outlet.send(("ready",))
        _run_in_idle_time()
        while _wait_for_row(inlet, parent):
            row, waited = receive_row(inlet)
            try:
                outlet.send(("done", *explain(row, waited)))
            except Exception as error:
                outlet.send(("failed", _message(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _wait_for_row(inlet: Connection, parent: int) -> bool:
    """Wait for a row; False once the parent has exited, even if other processes still hold its end of the pipe."""
    while not inlet.poll(_PARENT_CHECK):
        if os.getppid() != parent:
            return False
    return True


def _run_in_idle_time() -> None:
    """Schedule this process only on idle processors from now on, if the system has such a policy.

    The nicest thread still gets ticks of a few milliseconds, and each delays a prediction. No other process waits for
    a lock of this one, so it can be starved. Called after the model is open: that takes long and has a timeout.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _limit_opencv_threads() -> None:
    from onnxcam.image.opencv import import_cv2

    import_cv2().setNumThreads(1)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
