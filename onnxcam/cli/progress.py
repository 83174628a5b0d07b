"""Progress on standard error: a bar on a terminal, nothing elsewhere; notes and results pass it by."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import click

_CLEAR = "\r\x1b[2K"
_WIDTH = 30


class Progress:
    """Counts pictures done; `note` writes to standard error and `result` to standard output without tearing the bar."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._shown = total > 1 and sys.stderr.isatty()
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clear()

    def advance(self) -> None:
        """One more is done."""
        self._done += 1
        self._draw()

    def note(self, text: str) -> None:
        """A line on standard error."""
        self._clear()
        click.echo(text, err=True)
        self._draw()

    def result(self, text: str) -> None:
        """A line on standard output."""
        self._clear()
        click.echo(text)
        self._draw()

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def _draw(self) -> None:
        if self._shown:
            filled = _WIDTH * self._done // self._total
            bar = "#" * filled + "-" * (_WIDTH - filled)
            sys.stderr.write(f"{_CLEAR}[{bar}] {self._done}/{self._total}{self._remaining()}")
            sys.stderr.flush()

    def _remaining(self) -> str:
        if not 0 < self._done < self._total:
            return ""
        seconds = round((time.monotonic() - self._start) / self._done * (self._total - self._done))
        minutes, seconds = divmod(seconds, 60)
        return f", {minutes}:{seconds:02d} left"


class Bar:
    """A bar for work whose length is told as it goes: `to(done, total)`."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._start = time.monotonic()
        self._drawn = ""

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def to(self, done: int, total: int) -> None:
        """So much is done."""
        if not self._shown:
            return
        percent = 100 * done // max(1, total)
        text = f"[{'#' * (_WIDTH * done // max(1, total)):-<{_WIDTH}}] {percent} %"
        if 0 < done < total:
            minutes, seconds = divmod(round((time.monotonic() - self._start) / done * (total - done)), 60)
            text += f", {minutes}:{seconds:02d} left"
        if text != self._drawn:
            self._drawn = text
            sys.stderr.write(f"{_CLEAR}{text}")
            sys.stderr.flush()
