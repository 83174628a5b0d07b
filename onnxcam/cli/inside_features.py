"""`onnxcam inside features`: show feature maps, the activations of a layer's channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from onnxcam import image
from onnxcam.cli import inside_options, options, terminal
from onnxcam.cli.errors import about
from onnxcam.cli.progress import Progress
from onnxcam.errors import OnnxcamError, OutputError
from onnxcam.explain import pictures

EPILOG = """\
\b
Examples:
  onnxcam inside features model.onnx cat.jpg -o out
  onnxcam inside features model.onnx cat.jpg -o out --activation-layers block3_conv3,block4_conv3 --max-channels 64
  onnxcam inside features model.onnx photos/ -o out --order mean --scale layer --values npy
"""


@click.command("features", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.argument("named", nargs=-1, metavar="PICTURE...")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder for the results; it is made if need be.")
@options.layer_option("Layer; repeatable.  [default: an early, a middle and a deep one]")
@click.option("--activation-layers", metavar="A,B", help="Several layers, separated by commas.")
@click.option(
    "--max-channels", type=click.IntRange(min=1), default=64, show_default=True, help="Channels shown of each layer."
)
@click.option(
    "--order",
    type=click.Choice(("variance", "mean", "max", "index")),
    default="variance",
    show_default=True,
    help="Which channels come first: the highest variance, mean or maximum over the picture, or index.",
)
@click.option(
    "--scale",
    type=click.Choice(("channel", "layer")),
    default="channel",
    show_default=True,
    help="One colour scale for each channel, or one for the whole layer.",
)
@click.option(
    "--colormap", type=click.Choice(image.COLORMAPS), default="viridis", show_default=True, help="Colours of the maps."
)
@click.option(
    "--values",
    type=click.Choice(("none", "npy", "tiff")),
    default="none",
    show_default=True,
    help="Also write the values of all channels: float32, [C, h, w] as npy, or a TIFF page for each.",
)
@inside_options.model_options
@options.seed_option
@options.json_option
def features(
    model: str,
    named: tuple[str, ...],
    output: str,
    layers: tuple[str, ...],
    activation_layers: str | None,
    max_channels: int,
    order: str,
    scale: str,
    colormap: str,
    values: str,
    opening: dict[str, Any],
    seed: int,
    as_json: bool,
) -> None:
    """Show feature maps, the activations of a layer's channels.

    For each PICTURE: features.png, one page over an early, a middle and a deep layer of MODEL (or those named);
    features_LAYER.png with up to 64 channels of each, the most informative first, each with its number and the share
    of its places that are exactly zero; and features.json with the numbers of all channels. Any layer, value or node
    with a height and a width can be named, and tokens that lie on a grid. One picture is written into DIR itself,
    several into DIR/NAME/.
    """
    from onnxcam.inside import depths
    from onnxcam.inside.feature_files import Style

    if not named:
        raise click.UsageError("no PICTURE was given: name files, folders or globs.")
    folder = inside_options.folder_of(output)
    collection = pictures.collect(named, folder)
    if not collection.items:
        raise collection.failures[0][1]
    explainer = inside_options.opened(model, opening, [item.source for item in collection.items])
    names = depths.requested(explainer, [*layers, *listed(activation_layers)] or None)
    for name in names:
        explainer.sessions.cut(name)  # a wrong name ends the command before a picture is read
    record = {"model": model, "layers": names, "pictures": []}
    failed = write_all(
        explainer, collection, names, folder, Style(order, max_channels, scale, colormap, values), record, as_json
    )
    if as_json:
        options.print_json(record)
    if failed:
        raise click.exceptions.Exit(1)


def writer(explainer: Any, names: str, max_channels: int) -> Callable[[pictures.Collection, Path], int]:
    """What writes the feature maps of layers into the folder of each picture, and returns how many failed.

    Raises:
        LayerError: no such layer, or one that is neither a map nor tokens on a grid.
        UsageError: no layer is named.
    """
    from onnxcam.inside.feature_files import Style

    layers = list(dict.fromkeys(listed(names)))
    if not layers:
        raise click.UsageError("--activation-layers: expected names of layers, separated by commas.")
    for name in layers:
        explainer.sessions.cut(name)

    def write(collection: pictures.Collection, folder: Path) -> int:
        readable = pictures.Collection(collection.items)  # of the others explain has told
        return write_all(explainer, readable, layers, folder, Style(max_channels=max_channels), {"pictures": []})

    return write


def listed(names: str | None) -> list[str]:
    """The names in a list separated by commas."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def write_all(
    explainer: Any,
    collection: pictures.Collection,
    layers: Sequence[str],
    folder: Path,
    style: Any,
    record: dict[str, Any],
    quiet: bool = True,
) -> int:
    """Write the feature maps of every picture into its folder; return how many failed, each named on standard error.

    A line about each goes to standard output, or with `quiet` to standard error.
    """
    from onnxcam.inside import feature_files

    failures = [str(error) for _, error in collection.failures]
    with Progress(len(collection.items)) as progress:
        for item in collection.items:
            where = folder / item.folder
            try:
                try:
                    where.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise OutputError(f"the folder {str(where)!r} cannot be made ({error.strerror})") from error
                entry = feature_files.write(explainer, explainer.prepare(item.source), layers, where, style)
            except OnnxcamError as error:
                failures.append(about(item.name, error))
                record["pictures"].append({"name": item.name, "error": str(error)})
            else:
                record["pictures"].append({"name": item.name, "folder": item.folder.as_posix(), "error": None} | entry)
                line = f"{item.name} -> {where / 'features.png'}: {_line(entry)}"
                if quiet:
                    progress.note(line)
                else:
                    progress.result([line])
            progress.advance()
    for text in failures:
        terminal.echo(f"Error: {text}", err=True)
    progress.finish()
    return len(failures)


def _line(entry: dict[str, Any]) -> str:
    shapes = [f"{layer['layer']} {' x '.join(map(str, layer['shape']))}" for layer in entry["layers"]]
    return ", ".join(shapes)
