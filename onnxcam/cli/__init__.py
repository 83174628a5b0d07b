"""The `onnxcam` command."""

from __future__ import annotations

import click

from onnxcam.cli.group import CommandGroup

# name: where the command is, and its line in `onnxcam --help`, so that neither help nor `--version` imports a command
COMMANDS = {
    "export": ("onnxcam.cli.export:export", "Write an explainable ONNX file."),
    "explain": ("onnxcam.cli.explain:explain", "Explain what a model sees in pictures."),
    "methods": ("onnxcam.cli.methods:methods", "List the methods of explaining."),
    "evaluate": ("onnxcam.cli.evaluate:evaluate", "Judge methods by numbers."),
    "layers": ("onnxcam.cli.layers:layers", "List the layers that can be explained."),
    "check": ("onnxcam.cli.check:check", "Check a model's gradients against finite differences, or its preprocessing."),
    "bench": ("onnxcam.cli.bench:bench", "Measure what explaining costs on this machine."),
    "monitor": ("onnxcam.cli.monitor:monitor", "Read what monitors wrote: records, drift, reports."),
    "doctor": ("onnxcam.cli.doctor:doctor", "Find what is broken in this installation."),
    "demo": ("onnxcam.cli.demo:demo", "Explain the bundled pictures with the bundled model."),
}


def _version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from onnxcam import __version__

        click.echo(f"onnxcam {__version__}")
        ctx.exit()


@click.group(cls=CommandGroup, places=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
def main() -> None:
    """Which pixels made a deployed image classifier say that, from its ONNX file alone."""
