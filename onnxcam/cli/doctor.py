"""`onnxcam doctor`: find what is broken in this installation."""

from __future__ import annotations

import click

from onnxcam.cli import options
from onnxcam.cli.errors import ExitCode
from onnxcam.cli.report import show

EPILOG = """\
\b
Examples:
  onnxcam doctor
  onnxcam doctor --json | jq -r '.findings[] | select(.ok | not) | .remedy'
"""


@click.command("doctor", context_settings=options.CONTEXT, epilog=EPILOG)
@options.json_option
def doctor(as_json: bool) -> None:
    """Find what is broken in this installation.

    For each problem it prints the command that fixes it.

    Exit status: 0 nothing is broken, 4 something is.
    """
    from onnxcam.diagnose import installation

    show(installation.diagnose(), as_json, code=ExitCode.RUNTIME)
