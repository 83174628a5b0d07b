"""The `onnxcam` command."""

from __future__ import annotations

import click

from onnxcam import __version__
from onnxcam.cli.group import CommandGroup

# name: where the command is, and its line in `onnxcam --help`, so that neither help nor `--version` imports a command
COMMANDS = {
    "export": ("onnxcam.cli.export:export", "Write an explainable ONNX file."),
    "explain": ("onnxcam.cli.explain:explain", "Explain what a model sees in pictures."),
    "evaluate": ("onnxcam.cli.evaluate:evaluate", "Judge methods by numbers."),
    "layers": ("onnxcam.cli.layers:layers", "List the layers that can be explained."),
    "check": ("onnxcam.cli.check:check", "Check a model's gradients against finite differences, or its preprocessing."),
    "monitor": ("onnxcam.cli.monitor:monitor", "Read what monitors wrote: records, drift, reports."),
    "doctor": ("onnxcam.cli.doctor:doctor", "Find what is broken in this installation."),
    "demo": ("onnxcam.cli.demo:demo", "Explain the bundled pictures with the bundled model."),
}


@click.group(cls=CommandGroup, places=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnxcam", message="%(prog)s %(version)s")
def main() -> None:
    """Which pixels made a deployed image classifier say that, from its ONNX file alone."""
