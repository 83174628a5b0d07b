"""Signals that end a command, as `docker stop` and a closed terminal send them: they interrupt it as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from onnxcam.cli.errors import ExitCode

_NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first of these signals; further ones do not disturb what is written after it.

    Ctrl-C raises it every time, as always. A library that is interrupted while it is loaded may say instead that it
    cannot be imported: an error after an interruption is an interruption.

    A signal that is ignored, as SIGHUP under `nohup`, stays ignored. Python delivers signals to the main thread alone;
    in others there is no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal interrupted
        if not interrupted or number == signal.SIGINT:
            interrupted = True
            raise KeyboardInterrupt

    before = {}
    try:
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
        yield
    except Exception as error:
        ended = isinstance(error, click.exceptions.Exit) and error.exit_code == ExitCode.INTERRUPTED
        if not interrupted or ended:
            raise
        raise KeyboardInterrupt from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
