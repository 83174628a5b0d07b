"""A click group that imports a command when it is invoked, and ends its errors as one sentence and an exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

import click

from onnxcam import files
from onnxcam.cli import terminal
from onnxcam.cli.errors import ExitCode, reported, sentence_and_code
from onnxcam.cli.signals import interruptible
from onnxcam.errors import OnnxcamError

# OpenBLAS starts threads in numpy and OpenCV that spin for a tenth of a second each, on the core that opens the model.
# These commands multiply no large matrices outside the model.
_ONE_THREAD = ("explain", "demo")
_COLLECTION = 10_000  # objects made until garbage is collected


@contextlib.contextmanager
def _pipes_read_once() -> Iterator[None]:
    """Let a command read a pipe as often as any other file, such as `--labels <(sort names.txt)`."""
    outer, files.pipes = files.pipes, {} if files.pipes is None else files.pipes
    try:
        yield
    finally:
        files.pipes = outer


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Collect garbage more rarely: imports make many objects, which all stay, and looking through them takes 15 ms."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], _COLLECTION) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


class CommandGroup(click.Group):
    """A group whose commands are registered by name, place (`module:attribute`) and summary."""

    def __init__(self, *args: Any, places: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = places or {}

    @property
    def places(self) -> Mapping[str, tuple[str, str]]:
        """Place and summary of each command, so that `--help` imports none."""
        return self._places

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.places:
            return None
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
        with reported(ctx), interruptible(), _pipes_read_once():
            result = super().invoke(ctx)
            terminal.flush()
        return result

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run as a program: usage errors are escaped, and what cannot be written ends with a sentence, too."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        with terminal.prepared(), _rare_collections():
            try:
                code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            except click.ClickException as error:
                terminal.show(error)
                code = error.exit_code
            except click.Abort:
                terminal.echo("Interrupted.", err=True)
                code = ExitCode.INTERRUPTED
            except (OSError, OnnxcamError) as error:  # help or version could not be written
                sentence, code = sentence_and_code(error)
                terminal.echo(f"Error: {sentence}", err=True)
            sys.exit(int(code) if isinstance(code, int) else 0)


class PackageGroup(CommandGroup):
    """A group whose commands are modules of one package.

    A module is a command if its docstring begins with ``` `onnxcam NAME`: summary``` (NAME is the module's) and it
    defines the click command NAME. Nothing else registers it.
    """

    def __init__(self, *args: Any, package: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._package = package

    @cached_property
    def places(self) -> Mapping[str, tuple[str, str]]:
        """Place and summary of each command, read from the modules' sources without importing them."""
        import pkgutil  # only help lists the commands

        places = {}
        for finder, name, _ in pkgutil.iter_modules(import_module(self._package).__path__):
            module = f"{self._package}.{name}"
            spec = finder.find_spec(module, None)
            source = getattr(getattr(spec, "loader", None), "get_source", lambda module: None)(module)
            # a program frozen without sources imports the module instead
            text = import_module(module).__doc__ if source is None else source.partition('"""')[2].partition('"""')[0]
            summary = _summary(text, name)
            if summary is not None:
                places[name] = (f"{module}:{name}", summary)
        return places

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if not cmd_name.isidentifier():
            return None
        if cmd_name in _ONE_THREAD:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read once, while the libraries are loaded
            # Not deep in the imports of a command: beyond 16 KiB of frames, Python maps and unmaps memory at
            # every call, 1,300 times in `numpy._typing`.
            import_module("numpy")
        name = f"{self._package}.{cmd_name}"
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            return None
        command: click.Command | None = getattr(module, cmd_name, None)
        return None if _summary(module.__doc__, cmd_name) is None else command


def _summary(docstring: str | None, name: str) -> str | None:
    """The summary in a command module's docstring; None for other modules."""
    match = re.match(rf"`onnxcam {name}`: (.+?\.)(\s|$)", " ".join((docstring or "").split()))
    return match and match[1][:1].upper() + match[1][1:]
