"""Every command with streams of every kind: a reader that left, a full disk, a terminal narrow or without colours."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from onnxcam import cli
from onnxcam.cli import terminal
from onnxcam.cli.progress import Bar, Progress
from tests.cli.calls import EVERY, arguments

COLUMNS = 24
COLOUR = re.compile("\x1b\\[[0-9;]*m")


class Stream(io.TextIOWrapper):
    """A standard stream: a terminal or not, which takes everything or fails with an error's number."""

    def __init__(self, *, tty: bool = False, error: int | None = None) -> None:
        raw = io.BytesIO()
        super().__init__(raw, encoding="utf-8", write_through=True)
        self._raw, self._tty, self._error = raw, tty, error

    def isatty(self) -> bool:
        return self._tty

    def write(self, text: str) -> int:
        if self._error is not None:
            raise OSError(self._error, os.strerror(self._error))
        return super().write(text)

    @property
    def text(self) -> str:
        return self._raw.getvalue().decode()


def call(
    monkeypatch: pytest.MonkeyPatch, command: list[str], out: Stream, err: Stream, **environment: str
) -> tuple[int, str, str]:
    """Exit status of a command, and what arrived on both streams."""
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as end:
            cli.main(command, "onnxcam")
    return int(end.value.code or 0), out.text, err.text


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("NO_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def prepared(command: str, workshop: Path, out: Path, patch: pytest.MonkeyPatch) -> list[str]:
    if command == "monitor drift":
        assert call(patch, arguments("monitor baseline", workshop, out), Stream(), Stream())[0] == 0
    return arguments(command, workshop, out)


@pytest.mark.usefixtures("servers_that_end")
@pytest.mark.sample(5)
@pytest.mark.parametrize("command", EVERY)
def test_a_narrow_terminal_without_colours(
    workshop: Path,
    tmp_path: Path,
    command: str,
    usual: pytest.MonkeyPatch,
) -> None:
    arguments_ = prepared(command, workshop, tmp_path, usual)
    terminals = Stream(tty=True), Stream(tty=True)
    code, out, err = call(usual, arguments_, *terminals, COLUMNS=str(COLUMNS), NO_COLOR="1")
    assert code in (0, 1, 4), err
    assert not COLOUR.search(out + err)
    for drawn in err.split(terminal.CLEAR)[1:]:
        assert "\n" in drawn or len(drawn) < COLUMNS, drawn  # with a line end it is a note
    assert "\x1b" not in out and "\x1b" not in err.replace(terminal.CLEAR, "")


@pytest.mark.usefixtures("servers_that_end")
@pytest.mark.sample(4)
@pytest.mark.parametrize("command", EVERY)
def test_a_reader_that_has_left_and_a_full_standard_error(
    workshop: Path,
    tmp_path: Path,
    command: str,
    usual: pytest.MonkeyPatch,
) -> None:
    """Nothing but the lost output is different: the same files, the same exit status where nothing was lost."""
    words = prepared(command, workshop, tmp_path, usual)
    code, out, err = call(usual, words, Stream(error=32), Stream())  # EPIPE
    assert (code, out) == (1, "") and "unexpected" not in err and "could not be written" not in err
    if command == "batch":  # it writes no second table over the first
        words = prepared(command, workshop, tmp_path / "again", usual)
    code, out, _ = call(usual, words, Stream(), Stream(error=28))  # ENOSPC
    assert code in (0, 1, 4) and out


@pytest.mark.parametrize("command", EVERY)
def test_help_fits_narrow_terminals(command: str, usual: pytest.MonkeyPatch) -> None:
    code, out, err = call(usual, [*command.split(), "--help"], Stream(tty=True), Stream(tty=True), COLUMNS="40")
    assert (code, err) == (0, "") and command.split()[-1] in out


@pytest.mark.slow
def test_statuses_are_coloured_on_terminals_alone(workshop: Path, tmp_path: Path, usual: pytest.MonkeyPatch) -> None:
    words = arguments("doctor", workshop, tmp_path)
    coloured = {
        case: bool(COLOUR.search(call(usual, words, Stream(tty=case != "file"), Stream(), **environment)[1]))
        for case, environment in {
            "terminal": {}, "no colour": {"NO_COLOR": "1"}, "empty": {"NO_COLOR": ""}, "dumb": {"TERM": "dumb"},
            "file": {},
        }.items()
    }  # fmt: skip
    assert coloured == {"terminal": True, "no colour": False, "empty": True, "dumb": False, "file": False}


@pytest.mark.parametrize("columns", [1, 5, 12, 20, 36, 80])
@pytest.mark.parametrize("make", [lambda: Progress(100), lambda: Bar()], ids=["Progress", "Bar"])
def test_bars_are_never_wider_than_the_terminal(columns: int, make: Any, usual: pytest.MonkeyPatch) -> None:
    err = Stream(tty=True)
    usual.setattr(sys, "stderr", err)
    usual.setenv("COLUMNS", str(columns))
    with make() as bar:
        for done in range(1, 100):
            bar.advance() if isinstance(bar, Progress) else bar.to(done, 100)
    drawn = err.text.split(terminal.CLEAR)[1:]
    assert len(drawn) > 50 and all(len(piece) < columns or not piece for piece in drawn)
    assert columns < 36 or any("####" in piece for piece in drawn)


def test_a_dumb_terminal_gets_lines(usual: pytest.MonkeyPatch) -> None:
    err = Stream(tty=True)
    usual.setattr(sys, "stderr", err)
    usual.setenv("TERM", "dumb")
    with Progress(3) as bar:
        bar.advance()
        bar.note("a note")
    assert err.text == "a note\n"
