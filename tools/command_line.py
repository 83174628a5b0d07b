"""The page docs/reference/command-line.md, from the commands' own help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from onnxcam.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "command-line.md"
INTRODUCTION = """# Command line

Written by `make pages` from the commands' own help; do not edit. `python -m onnxcam` is the same
as `onnxcam`. Results go to standard output, progress and notes to standard error. No traceback reaches you unless
`ONNXCAM_DEBUG=1` is set.

Exit status: 0 done; 1 some or all inputs failed or could not be written; 2 wrong usage, unknown class, layer or method;
3 bad or untrusted model, failed check; 4 no usable runtime or execution provider; 5 a --fail-on
condition holds; 130 interrupted.
"""


def page() -> str:
    """The page as Markdown."""
    parent = click.Context(
        main, info_name="onnxcam", max_content_width=100, terminal_width=100, **main.context_settings
    )
    return "\n".join([INTRODUCTION, *sections(main, parent)])


def sections(group: click.Group, parent: click.Context) -> Iterator[str]:
    """One section for each command; the commands of a group follow the group."""
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100)
        yield f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            yield from sections(command, context)
