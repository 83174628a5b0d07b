"""`onnxcam inside dead`: find dead channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcam.cli import inside_options, options, terminal
from onnxcam.cli.progress import Bar
from onnxcam.errors import OnnxcamError
from onnxcam.explain import pictures

if TYPE_CHECKING:
    from onnxcam.inside.dead_channels import Dead

_LISTED = 12

EPILOG = """\
\b
Examples:
  onnxcam inside dead model.onnx photos/
  onnxcam inside dead model.onnx photos/ --layer block1_conv1 --json
"""


@click.command("dead", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.argument("named", nargs=-1, metavar="PICTURES...")
@options.layer_option("Layer; repeatable.  [default: all that can be explained]")
@inside_options.model_options
@options.seed_option
@options.json_option
def dead(
    model: str,
    named: tuple[str, ...],
    layers: tuple[str, ...],
    opening: dict[str, Any],
    seed: int,
    as_json: bool,
) -> None:
    """Find dead channels.

    Observed: channels of MODEL that are never above 0 on any of the PICTURES; more pictures may revive some. Proven:
    channels that no picture can bring above 0, by bounds of every value from the range of the input, rounded outward.
    They can be removed from the model without changing it.
    """
    from onnxcam.inside import dead_channels

    if not named:
        raise click.UsageError("no PICTURES were given: name files, folders or globs.")
    collection = pictures.collect(named, Path(".onnxcam-none"))
    if not collection.items:
        raise collection.failures[0][1]
    explainer = inside_options.opened(model, opening, [item.source for item in collection.items], many=True)
    for name in layers:
        explainer.sessions.cut(name)  # a wrong name ends the command before a picture is read
    failures = [str(error) for _, error in collection.failures]
    readable = []
    for item in collection.items:
        try:
            explainer.preparation.read(item.source)
        except OnnxcamError as error:
            failures.append(f"{item.name!r}: {error}")
        else:
            readable.append(item.source)
    for text in failures:
        terminal.echo(f"Error: {text}", err=True)
    if not readable:
        raise click.exceptions.Exit(1)
    with Bar() as bar:
        results = dead_channels.dead(explainer, readable, list(layers) or None, progress=bar.to)
    if as_json:
        record = {"model": model, "n": len(readable), "failed": failures, "layers": [one.describe() for one in results]}
        options.print_json(record)
    else:
        terminal.echo_lines(lines(results, len(readable)))
    if failures:
        raise click.exceptions.Exit(1)


def lines(results: Sequence[Dead], count: int) -> list[str]:
    """One line that answers, then a table of the layers that have dead channels."""
    observed, proven = sum(len(one.observed) for one in results), sum(len(one.proven) for one in results)
    channels = sum(one.channels for one in results)
    some = "1 picture" if count == 1 else f"{count} pictures"
    answer = f"{observed} of {channels} channels in {len(results)} layers are never above 0 on {some}"
    rows = [("layer", "channels", "observed", "proven", "which (proven in brackets)")]
    for one in results:
        if one.observed:
            names = [f"[{channel}]" if channel in one.proven else str(channel) for channel in one.observed[:_LISTED]]
            more = len(one.observed) - _LISTED
            names += [f"and {more} more"] if more > 0 else []
            numbers = (str(one.channels), str(len(one.observed)), str(len(one.proven)))
            rows.append((one.layer, *numbers, ", ".join(names)))
    unbounded = [one.layer for one in results if not one.bounded]
    text = [f"{answer}; for {proven} of them it is proven: no picture can bring them above 0."]
    if len(rows) > 1:
        text.extend(inside_options.table(rows))
    if unbounded:
        text.append(f"No bounds are known for {len(unbounded)} layers, so nothing can be proven of them.")
    return text
