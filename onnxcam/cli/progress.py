"""Progress on standard error: a bar on a terminal, nothing elsewhere; notes and results are written around it.

With several pictures the bar counts them; with one it shows how far a long method has come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import TracebackType

from onnxcam.cli import terminal
from onnxcam.errors import OutputError

_WIDTH = 30
_PATIENCE, _PAUSE = 0.5, 0.1  # seconds before a method counts as long, and between two drawings of its progress


class Progress:
    """Counts pictures done; `note` writes to standard error and `result` to standard output without tearing the bar."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._within = 0.0  # share of the current picture that is done
        self._on_terminal = terminal.interactive()
        self._start = self._pass_start = self._drawn = time.monotonic()
        self._lock = threading.RLock()
        self._lost: OutputError | BrokenPipeError | None = None

    def __enter__(self) -> Progress:
        with self._lock:
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._clear()
            self._on_terminal = False  # a thread that is still at work no longer draws

    def advance(self) -> None:
        """Count one more picture as done."""
        with self._lock:
            self._done += 1
            self._within = 0.0
            self._draw()

    def step(self, done: int, total: int) -> None:
        """Report how far a method has come with the current picture; may be called from any thread."""
        now = time.monotonic()
        with self._lock:
            part = done / total if total else 1.0
            if part < self._within:  # a new pass begins
                self._pass_start = now
            self._within = part
            if now - self._start > _PATIENCE and now - self._drawn > _PAUSE:
                self._drawn = now
                self._draw()

    def note(self, text: str) -> None:
        """Write a line to standard error."""
        with self._lock:
            self._clear()
            terminal.echo(text, err=True)
            self._draw()

    def result(self, lines: Iterable[str]) -> None:
        """Write lines to standard output; where they cannot be written, the work goes on and `finish` raises."""
        with self._lock:
            self._clear()
            if self._lost is None:
                try:
                    terminal.echo_lines(lines)
                except (OutputError, BrokenPipeError) as error:
                    self._lost = error
            self._draw()

    def finish(self) -> None:
        """Raise the OutputError or BrokenPipeError of a result that could not be written, if there was one."""
        if self._lost is not None:
            raise self._lost

    def _clear(self) -> None:
        if self._on_terminal:
            terminal.draw(terminal.CLEAR)

    def _draw(self) -> None:
        if self._on_terminal and (self._total > 1 or 0 < self._within < 1):
            one = self._total == 1
            filled = round(_WIDTH * (self._within if one else self._done / self._total))
            bar = "#" * filled + "-" * (_WIDTH - filled)
            count = f"{self._within:.0%}" if one else f"{self._done}/{self._total}"
            terminal.draw(f"{terminal.CLEAR}[{bar}] {count}{self._remaining()}")

    def _remaining(self) -> str:
        done = self._within if self._total == 1 else self._done / self._total
        if not 0 < done < 1:
            return ""
        since = self._pass_start if self._total == 1 else self._start
        seconds = round((time.monotonic() - since) / done * (1 - done))
        minutes, seconds = divmod(seconds, 60)
        return f", {minutes}:{seconds:02d} left"


class Bar:
    """A bar for work that reports its own length: `to(done, total)`."""

    def __init__(self) -> None:
        self._on_terminal = terminal.interactive()
        self._start = time.monotonic()
        self._drawn = ""

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            terminal.draw(terminal.CLEAR)

    def to(self, done: int, total: int) -> None:
        """Draw the bar for `done` of `total`."""
        if not self._on_terminal:
            return
        percent = 100 * done // max(1, total)
        text = f"[{'#' * (_WIDTH * done // max(1, total)):-<{_WIDTH}}] {percent} %"
        if 0 < done < total:
            minutes, seconds = divmod(round((time.monotonic() - self._start) / done * (total - done)), 60)
            text += f", {minutes}:{seconds:02d} left"
        if text != self._drawn:
            self._drawn = text
            terminal.draw(f"{terminal.CLEAR}{text}")
