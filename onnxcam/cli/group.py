"""A click group whose commands are imported when run, and whose errors end as one sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from onnxcam.cli.errors import reported

# Threads that OpenBLAS starts in numpy and OpenCV spin for a tenth of a second each, on the core that opens the model.
# These commands multiply no large matrices outside the model.
_ONE_THREAD = ("explain", "demo")


class CommandGroup(click.Group):
    """Knows its commands by name, place (`module:attribute`) and summary; imports one when it is asked for."""

    def __init__(self, *args: Any, places: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.places:
            return None
        if cmd_name in _ONE_THREAD:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read once, while the libraries are loaded
        module, _, attribute = self.places[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"No command {args[0]!r}; there are {', '.join(self.places)}.", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.places.items()])

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                # a label the terminal cannot show must not end the run
                stream.reconfigure(errors="backslashreplace")
        with reported(ctx):
            result = super().invoke(ctx)
            sys.stdout.flush()
        return result
