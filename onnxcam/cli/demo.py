"""`onnxcam demo`: explain the bundled pictures with the bundled model."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcam import runtime
from onnxcam.cli import options, terminal

EPILOG = """\
\b
Examples:
  onnxcam demo
  onnxcam demo -o pictures --json
"""


@click.command("demo", context_settings=options.CONTEXT, epilog=EPILOG)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("onnxcam-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for the pictures; created if missing.",
)
@options.provider_option
@options.json_option
def demo(output: Path, provider: str, as_json: bool) -> None:
    """Explain the bundled pictures with the bundled model.

    One picture shows a cat on the left and a cup of coffee on the right: the map of "tiger cat" should lie on the left
    half, that of "espresso" on the right. The other is the photograph of the cat. Needs no network and no training
    framework.

    Exit status: 0 done, 1 the pictures could not be written, 4 no usable runtime or provider.
    """
    import onnxcam.demo

    result = onnxcam.demo.run(output, runtime.parse_provider(provider))
    if as_json:
        options.print_json(result)
        return
    for example in result["pictures"]:
        terminal.echo(f"{example['picture']}, the five best classes:")
        for guess in example["predictions"]:
            terminal.echo(f"  {guess['probability']:7.2%}  {guess['label']}")
        for explained in example["maps"]:
            line = f"  {explained['method']} of {explained['label']!r}"
            if "energy" in explained:
                left, right = explained["energy"]["left"], explained["energy"]["right"]
                line += f": {left:.1%} of its energy on the left half, {right:.1%} on the right"
            terminal.echo(line)
    terminal.echo(f"Pictures: {output / 'demo.png'} and {len(result['files']) - 1} more in {output}")
