"""`onnxcam inside filters`: show the filters of a convolution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from onnxcam import image
from onnxcam.cli import inside_options, options, terminal
from onnxcam.cli.errors import about
from onnxcam.cli.progress import Bar
from onnxcam.errors import OnnxcamError
from onnxcam.explain import pictures

EPILOG = """\
\b
Examples:
  onnxcam inside filters model.onnx -o out
  onnxcam inside filters model.onnx -o out --layer block2_conv1
  onnxcam inside filters model.onnx -o out --pictures photos/
"""


@click.command("filters", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder for the results; it is made if need be.")
@options.layer_option(
    "A convolution, or a layer whose convolution it is; repeatable.  [default: the first convolution]"
)
@click.option(
    "--pictures",
    "folders",
    multiple=True,
    metavar="DIR",
    help="Pictures (a folder, file or glob; repeatable): for the filters that vary most also show where they respond.",
)
@click.option(
    "--scale",
    type=click.Choice(("layer", "filter")),
    default="layer",
    show_default=True,
    help="One scale of colours for the whole layer, or one for each filter.",
)
@inside_options.model_options
@options.seed_option
@options.json_option
def filters(
    model: str,
    output: str,
    layers: tuple[str, ...],
    folders: tuple[str, ...],
    scale: str,
    opening: dict[str, Any],
    seed: int,
    as_json: bool,
) -> None:
    """Show the filters of a convolution.

    Writes filters_LAYER.png and filters.json. Filters that read the colours of the picture are drawn as colours;
    others red where positive, blue where negative and white at 0, with their values where they fit; all on one scale.
    Grouped, depthwise, transposed and 1 x 1 convolutions and quantised weights too. With --pictures each page begins
    with the filters that vary most: the filter, where it responds, and that laid over the picture.
    """
    from onnxcam.inside import filter_activity, filter_weights
    from onnxcam.inside.files import stems
    from onnxcam.network.network import Network

    collection = pictures.collect(folders, Path(output)) if folders else None
    if collection is not None and not collection.items:
        raise collection.failures[0][1]
    failures: list[str] = [] if collection is None else [str(error) for _, error in collection.failures]
    explainer = None
    if collection is not None:
        explainer = inside_options.opened(model, opening, [item.source for item in collection.items], many=True)
        network = explainer.sessions.network
    else:
        network = Network(model, **inside_options.readout(opening))
    every = [filter_weights.filters_of(network, name) for name in dict.fromkeys(layers) or [None]]
    folder = inside_options.folder_of(output)

    def prepared(bar: Bar) -> Iterator[Any]:
        items = collection.items if collection is not None else []
        for number, item in enumerate(items):
            try:
                yield explainer.prepare(item.source) if explainer is not None else None
            except OnnxcamError as error:
                failures.append(about(item.name, error))
            bar.to(number + 1, len(items))

    record: dict[str, Any] = {"model": model, "layers": []}
    names = stems(one.layer for one in every)
    for one in every:
        entry = one.describe() | {"file": f"filters_{names[one.layer]}.png"}
        page = one.grid(scale=scale)
        if explainer is not None:
            with Bar() as bar:
                activities = filter_activity.activity(explainer, one, prepared(bar))
            entry["responses"] = [activity.describe() for activity in activities]
            page = filter_activity.page(one, activities, scale)
        image.write_png(folder / entry["file"], page)
        record["layers"].append(entry)
        if not as_json:
            terminal.echo(f"{one.layer}: {one.notes()[0]} -> {folder / entry['file']}")
    inside_options.write_json(folder / "filters.json", record)
    if as_json:
        options.print_json(record)
    for text in dict.fromkeys(failures):
        terminal.echo(f"Error: {text}", err=True)
    if failures:
        raise click.exceptions.Exit(1)
