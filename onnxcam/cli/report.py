"""Print a report of `onnxcam.diagnose`, and end the command with its exit status."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from onnxcam.cli import options, terminal
from onnxcam.cli.errors import ExitCode

if TYPE_CHECKING:
    from onnxcam.diagnose.report import Report

_COLORS = {"ok": "green", "failed": "red", "broken": "red", "unsure": "yellow", "advice": "yellow"}


def show(
    report: Report,
    as_json: bool,
    about: Mapping[str, Any] | None = None,
    error: str = "",
    code: ExitCode = ExitCode.MODEL,
) -> None:
    """Print a report as text or as one JSON document; exit if it did not pass.

    Arguments:
        about: what the JSON says besides the report, in front of it.
        error: the sentence for standard error if the report did not pass.
        code: the exit status if it did not pass.
    """
    if as_json:
        options.print_json({**(about or {}), **report.to_dict()})
    else:
        for line in report.lines():
            terminal.echo(*_colored(line))
    if not report.passed:
        if error:
            terminal.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(code)


def _colored(line: str) -> list[str | terminal.Colored]:
    """Color the status that begins a line."""
    status = re.match(rf"( *)({'|'.join(_COLORS)})(?= {{2}})", line)
    if status is None:
        return [line]
    return [status[1], terminal.Colored(status[2], _COLORS[status[2]]), line[status.end() :]]
