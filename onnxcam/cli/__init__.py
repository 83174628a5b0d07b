"""The `onnxcam` command: each command is a module of this package that names it in its docstring."""

from __future__ import annotations

import click

from onnxcam.cli import terminal
from onnxcam.cli.group import PackageGroup


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from onnxcam import __version__

        terminal.echo(f"onnxcam {__version__}")
        ctx.exit()


@click.group(cls=PackageGroup, package=__name__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
def main() -> None:
    """Which pixels made a deployed image classifier say that, from its ONNX file alone."""
