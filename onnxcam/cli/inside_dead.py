"""`onnxcam inside dead`: find dead channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcam.cli import inside_options, options, terminal
from onnxcam.cli.errors import about
from onnxcam.cli.progress import Bar
from onnxcam.errors import OnnxcamError, PictureError
from onnxcam.explain import pictures

if TYPE_CHECKING:
    import numpy as np

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
    Behind a ReLU they can be removed from the model without changing it; in layers whose values go below 0, which the
    table marks, a channel may say something by its negative values.
    """
    from onnxcam.inside import dead_channels, depths

    if not named:
        raise click.UsageError("no PICTURES were given: name files, folders or globs.")
    collection = pictures.collect(named, Path(".onnxcam-none"))
    if not collection.items:
        raise collection.failures[0][1]
    explainer = inside_options.opened(model, opening, [item.source for item in collection.items], many=True)
    for name in layers:
        explainer.sessions.cut(name)  # a wrong name ends the command before a picture is read
    failures = [str(error) for _, error in collection.failures]
    names = list(dict.fromkeys(layers)) or depths.layers_of(explainer)
    readable = 0

    def prepared(bar: Bar) -> Iterator[np.ndarray]:
        nonlocal readable
        for number, item in enumerate(collection.items):
            try:
                tensor = explainer.prepare(item.source)[1]
            except OnnxcamError as error:
                failures.append(about(item.name, error))
            else:
                readable += 1
                yield tensor
            bar.to(number + 1, len(collection.items))

    results: list[Dead] = []
    try:
        with Bar() as bar:
            results = dead_channels.of_tensors(explainer, prepared(bar), names)
    except PictureError:
        if readable or not failures:  # what was said of each picture is said below
            raise
    for text in failures:
        terminal.echo(f"Error: {text}", err=True)
    if not readable:
        raise click.exceptions.Exit(1)
    if as_json:
        record = {"model": model, "n": readable, "failed": failures, "layers": [one.describe() for one in results]}
        options.print_json(record)
    else:
        terminal.echo_lines(lines(results, readable))
    if failures:
        raise click.exceptions.Exit(1)


def lines(results: Sequence[Dead], count: int) -> list[str]:
    """One line that answers, then a table of the layers that have dead channels."""
    observed, proven = sum(len(one.observed) for one in results), sum(len(one.proven) for one in results)
    channels = sum(one.channels for one in results)
    where, some = (
        f"{terminal.counted(channels, 'channel')} in {terminal.counted(len(results), 'layer')}",
        terminal.counted(count, "picture"),
    )
    answer = f"None of {where} stays at or below 0 on {some}."
    if observed:
        of_them = f"of {proven} of them" if proven else "of none of them"
        answer = (
            f"{observed} of {where} {'is' if observed == 1 else 'are'} never above 0 on {some}; {of_them} it is proven "
            "that no picture can bring it above 0."
        )
    rows = [("layer", "channels", "observed", "proven", "which (proven in brackets)")]
    for one in results:
        if one.observed:
            names = [f"[{channel}]" if channel in one.proven else str(channel) for channel in one.observed[:_LISTED]]
            more = len(one.observed) - _LISTED
            names += [f"and {more} more"] if more > 0 else []
            numbers = (str(one.channels), str(len(one.observed)), str(len(one.proven)))
            rows.append((f"{one.layer}{' ±' if one.signed else ''}", *numbers, ", ".join(names)))
    text = [answer]
    if len(rows) > 1:
        text.extend(inside_options.table(rows))
    if any(one.signed and one.observed for one in results):
        text.append(
            "±: the layer's values go below 0 too, so such a channel is not dead: it may say something by them."
        )
    unbounded = sum(not one.bounded for one in results)
    if unbounded:
        text.append(f"No bounds are known for {terminal.counted(unbounded, 'layer')}, so nothing can be proven there.")
    broken = [one for one in results if one.broken]
    if broken:
        number = terminal.counted(sum(len(one.broken) for one in broken), "channel")
        where = f"{terminal.counted(len(broken), 'layer')} ({broken[0].layer} first)"
        text.append(f"{number} in {where} took values that are not finite: nothing is said of them.")
    return text
