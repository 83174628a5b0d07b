"""Progress on standard error: a bar on a terminal, a line now and then elsewhere; notes and results are written around.

With several pictures the bar counts them; with one it shows how far a long method has come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import TracebackType

from onnxcam.cli import terminal
from onnxcam.errors import OutputError

_PATIENCE, _PAUSE = 0.5, 0.1  # seconds before a method counts as long, and between two drawings of its progress
LINES = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Counts pictures done; `note` writes to standard error and `result` to standard output without tearing the bar.

    Arguments:
        total: number of pictures.
        done: those that earlier runs have done.
        rate: whether pictures per second are shown too.
    """

    def __init__(self, total: int, done: int = 0, rate: bool = False) -> None:
        self._total = total
        self._done = self._before = done
        self._rate = rate
        self._within = 0.0  # share of the current picture that is done
        self._on_terminal = terminal.interactive()
        self._start = self._pass_start = self._drawn = self._last_line = time.monotonic()
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
            self._last_line = float("inf")

    def advance(self, count: int = 1) -> None:
        """Count more pictures as done."""
        now = time.monotonic()
        with self._lock:
            self._done += count
            self._within = 0.0
            if self._rate and self._on_terminal and now - self._drawn < _PAUSE and self._done < self._total:
                return  # thousands a second would be drawn
            self._drawn = now
            self._draw()
            self._tell()

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
            self._tell()

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
            count = f"{self._within:.0%}" if one else f"{self._done}/{self._total}{self._speed()}"
            share = self._within if one else self._done / self._total
            terminal.bar(share, f"{count}{self._remaining()}")

    def _tell(self) -> None:
        """Write a line where there is no terminal, now and then."""
        now = time.monotonic()
        if self._on_terminal or now - self._last_line < LINES:
            return
        self._last_line = now
        count = f"{self._within:.0%}" if self._total == 1 else f"{self._done} of {self._total} pictures"
        terminal.echo(f"{count} done{self._speed()}{self._remaining()}", err=True)

    def _speed(self) -> str:
        seconds, done = time.monotonic() - self._start, self._done - self._before
        return f", {done / seconds:.3g}/s" if self._rate and done and seconds > 0 else ""

    def _remaining(self) -> str:
        done = self._within if self._total == 1 else (self._done - self._before) / max(1, self._total - self._before)
        if not 0 < done < 1:
            return ""
        since = self._pass_start if self._total == 1 else self._start
        seconds = round((time.monotonic() - since) / done * (1 - done))
        minutes, seconds = divmod(seconds, 60)
        return f", {minutes}:{seconds:02d} left"


class Bar:
    """A bar for work that reports its own length: `to(done, total)`; a line now and then where there is no terminal.

    Arguments:
        what: is done with the work, for the line: `judged`.
    """

    def __init__(self, what: str = "done") -> None:
        self._what = what
        self._on_terminal = terminal.interactive()
        self._start = self._last_line = time.monotonic()
        self._drawn = ""

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            terminal.draw(terminal.CLEAR)

    def note(self, lines: Iterable[str]) -> None:
        """Write lines to standard error; the bar is drawn again below them with the next progress."""
        if self._drawn:
            terminal.draw(terminal.CLEAR)
            self._drawn = ""
        terminal.echo_lines(lines, err=True)

    def to(self, done: int, total: int) -> None:
        """Draw the bar for `done` of `total`."""
        now = time.monotonic()
        if not self._on_terminal and now - self._last_line < LINES:
            return
        percent, remaining = 100 * done // max(1, total), ""
        if 0 < done < total:
            minutes, seconds = divmod(round((now - self._start) / done * (total - done)), 60)
            remaining = f", {minutes}:{seconds:02d} left"
        if not self._on_terminal:
            self._last_line = now
            terminal.echo(f"{percent} % {self._what}{remaining}", err=True)
            return
        text = f"{percent} %{remaining}"
        if text != self._drawn:
            self._drawn = text
            terminal.bar(done / max(1, total), text)
