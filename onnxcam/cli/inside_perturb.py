"""`onnxcam inside perturb`: show what a covered part of a picture changes at each depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcam import image
from onnxcam.cli import inside_options, options, terminal
from onnxcam.cli.progress import Bar
from onnxcam.errors import InputError

EPILOG = """\
\b
Examples:
  onnxcam inside perturb model.onnx cat.jpg -o out --cover 120,80,200,160
  onnxcam inside perturb model.onnx cat.jpg -o out --cover 120,80,200,160 --fill blur --places 7
"""


def _cover(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise click.UsageError(f"--cover {text!r}: expected four whole numbers, X0,Y0,X1,Y1 in the picture's pixels.")
    return numbers


@click.command("perturb", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.argument("picture", metavar="PICTURE")
@click.option("-o", "--output", required=True, metavar="DIR", help="Folder for the results; it is made if need be.")
@click.option(
    "--cover",
    required=True,
    metavar="X0,Y0,X1,Y1",
    callback=_cover,
    help="The box to cover, in the picture's pixels; the last two numbers are just outside it.",
)
@click.option(
    "--fill",
    type=click.Choice(("0", "mean", "blur")),
    default="0",
    show_default=True,
    help="What covers it: 0 in the prepared tensor, the mean of each channel, or a blur of the picture.",
)
@options.layer_option("Layer; repeatable.  [default: an early, a middle and a deep one]")
@click.option(
    "--places",
    type=click.IntRange(0, 20),
    default=5,
    show_default=True,
    metavar="N",
    help="Places of the box on the page with the slider, N x N; 0: no page.",
)
@inside_options.model_options
@options.seed_option
@options.json_option
def perturb(
    model: str,
    picture: str,
    output: str,
    cover: tuple[int, ...],
    fill: str,
    layers: tuple[str, ...],
    places: int,
    opening: dict[str, Any],
    seed: int,
    as_json: bool,
) -> None:
    """Show what a covered part of a picture changes at each depth.

    Runs MODEL on PICTURE and on PICTURE with a box covered, and writes perturb.png (the change at an early, a middle
    and a deep layer, how far it spreads, the predictions before and after), perturb.json, and perturb.html: a page
    on which the box is moved over the picture by sliders or arrow keys. It needs no server and no network.
    """
    from onnxcam.inside import depths, perturbation, perturbation_pages
    from onnxcam.network.names import INPUT

    explainer = inside_options.opened(model, opening, [picture])
    names = depths.requested(explainer, list(layers) or None)
    for name in names:
        explainer.sessions.cut(name)  # a wrong name ends the command before the picture is read
    prepared = explainer.prepare(picture)
    try:
        (result,) = perturbation.perturb_all(explainer, prepared, [cover], fill=fill, layers=names)
    except InputError as error:
        raise click.UsageError(f"{error}.") from None
    folder = inside_options.folder_of(output)
    layout = explainer.sessions.cut(INPUT).layout
    image.write_png(folder / "perturb.png", perturbation_pages.draw(prepared, result, layout, explainer.preprocess))
    record = {"model": model, "picture": picture, **result.describe()}
    if places:
        boxes = perturbation.positions((places, places), result.cover, prepared[0], prepared[2])
        with Bar() as bar:
            moved = list(perturbation.perturb_all(explainer, prepared, boxes, fill=fill, layers=names, progress=bar.to))
        rows = len({box[1] for box in boxes})
        title = f"{Path(picture).name}: what a covered part changes"
        page = perturbation_pages.slider(prepared, moved, rows, title)
        image.write_bytes(folder / "perturb.html", page.encode(errors="backslashreplace"))
        record["places"] = [{"cover": list(one.cover), "drop": one.drop} for one in moved]
    inside_options.write_json(folder / "perturb.json", record)
    if as_json:
        options.print_json(record)
        return
    terminal.echo(f"Covered: {perturbation_pages.answer(result)}")
    rows_of_text = [("layer", "map", "cells changed", "clearly")]
    for layer, difference in result.differences.items():
        grid = f"{difference.shape[0]} x {difference.shape[1]}"
        shares = (perturbation_pages.share(result.spread[layer]), perturbation_pages.share(result.clear_spread[layer]))
        rows_of_text.append((layer, grid, *shares))
    terminal.echo_lines(inside_options.table(rows_of_text))
    terminal.echo(f"drawn: {folder / 'perturb.png'}" + (f", {folder / 'perturb.html'}" if places else ""), err=True)
