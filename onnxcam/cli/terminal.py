"""Standard output and standard error: the one place where commands write to them.

Text is escaped: labels, names and messages come from files, and must not control the terminal. Results that cannot be
written are an error; notes and progress that cannot be written are lost, and change nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TextIO

import click

from onnxcam.errors import OutputError, escaped

_NAMES = ("stdin", "stdout", "stderr")
CLEAR = "\r\x1b[2K"  # the current line
_DUMB = "dumb"  # TERM of a terminal that knows no control sequences
_COLUMNS, _BAR, _SHORTEST = 80, 30, 4  # of a terminal of unknown width; of a bar, at most and at least


class Colored(NamedTuple):
    """A part of a line in a color, where the stream is a terminal."""

    text: str
    color: str


def echo(*parts: str | Colored, err: bool = False) -> None:
    """Write one line to standard output, or with `err` to standard error.

    Raises:
        OutputError: standard output is closed, or cannot be written.
        BrokenPipeError: the reader of standard output has left.
    """
    _write("".join(map(_printable, parts)), err)


def echo_lines(lines: Iterable[str], err: bool = False) -> None:
    """Write lines at once, see `echo`."""
    text = [escaped(line) for line in lines]
    if text:
        _write("\n".join(text), err)


def warn(sentences: Iterable[str]) -> None:
    """Write warnings to standard error, a line each."""
    echo_lines((f"Warning: {sentence}" for sentence in sentences), err=True)


def show(error: click.ClickException) -> None:
    """Write a usage error as click does: usage, hint and message."""
    text = io.StringIO()
    error.show(text)
    echo_lines(text.getvalue().removesuffix("\n").split("\n"), err=True)


def draw(text: str) -> None:
    """Write progress to standard error, control characters included: `text` holds nothing from outside."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def interactive() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != _DUMB
    except (AttributeError, ValueError):  # it is closed
        return False


def bar(share: float, text: str) -> None:
    """Draw a bar, 0 to 1, and a text behind it over the current line, as long as the terminal is wide: what is wrapped
    could not be cleared."""
    import shutil  # with three decompressors

    room = max(shutil.get_terminal_size(fallback=(_COLUMNS, 1)).columns - 1, 0)
    width = min(_BAR, room - len(text) - 3)
    filled = round(max(width, 0) * share)
    drawn = f"[{'#' * filled}{'-' * (width - filled)}] {text}" if width >= _SHORTEST else text
    draw(f"{CLEAR}{drawn[:room]}")


def flush() -> None:
    """Write what is buffered for standard output; raises as `echo`."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        raise _lost(error) from error


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Make the standard streams safe to write to, whatever the caller has done with them.

    Descriptors that are closed are occupied, and fail as closed ones do: the next file to be opened would get the
    number otherwise, and whatever is printed. Python's warnings are one line, without the source.
    """
    for descriptor, name in enumerate(_NAMES):
        try:
            os.fstat(descriptor)
        except OSError:
            _occupy(descriptor)
            if getattr(sys, name) is None:
                setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):
        # PYTHONUNBUFFERED: Python ignores that a write was cut short
        encoding = sys.stdout.encoding
        sys.stdout = open(sys.stdout.fileno(), "w", buffering=1, encoding=encoding, closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a label the terminal cannot show must not end the run
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                _drop(stream)


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    text = " ".join(str(message).split())
    # NumPy's remarks on single operations tell users nothing: numbers that are not finite are told where they matter
    if not (issubclass(category, RuntimeWarning) and " encountered in " in text):
        warn([text])


def _printable(part: str | Colored) -> str:
    if isinstance(part, str):
        return escaped(part)
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == _DUMB  # https://no-color.org
    return escaped(part.text) if plain else click.style(escaped(part.text), fg=part.color)


def _write(text: str, err: bool) -> None:
    try:
        click.echo(text, err=err)
    except (OSError, ValueError) as error:  # ValueError: closed by Python code
        if err:
            _drop(sys.stderr)
        else:
            raise _lost(error) from error


def _drop(stream: TextIO) -> None:
    """Send the rest of a standard stream nowhere: a flush that fails at the end would end Python with status 120."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()
        if descriptor in (1, 2):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


def _lost(error: Exception) -> Exception:
    """The exception that says why standard output cannot be written."""
    return error if isinstance(error, OSError) and error.errno == errno.EPIPE else unwritable(error)


def unwritable(error: Exception) -> OutputError:
    """The error that standard output cannot be written for this reason."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OutputError(
        f"standard output could not be written ({reason}); what was to be printed is lost, files that were "
        "written are complete"
    )


def _occupy(descriptor: int) -> None:
    """Open the null device under a closed descriptor, for the direction in which nobody reads or writes it."""
    null = os.open(os.devnull, os.O_RDONLY if descriptor else os.O_WRONLY)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 layer, 2,000 layers."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
