"""`onnxcam inside fields`: compute receptive fields, and draw them on a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxcam import image
from onnxcam.cli import inside_options, options, terminal

if TYPE_CHECKING:
    from onnxcam.inside.receptive_fields import Field

_DRAWN = 4  # layers, unless they are named

EPILOG = """\
\b
Examples:
  onnxcam inside fields model.onnx
  onnxcam inside fields model.onnx --layer block3_conv3 --layer block5_conv3 cat.jpg -o out
  onnxcam inside fields model.onnx --json | jq '.fields[] | [.layer, .size]'
"""


@click.command("fields", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.argument("picture", required=False, metavar="[PICTURE]")
@click.option("-o", "--output", metavar="DIR", help="Draw the fields on PICTURE: fields.png and fields.json.")
@options.layer_option("Layer; repeatable.  [default: all that can be explained; drawn are four of them]")
@inside_options.model_options
@options.seed_option
@options.json_option
def fields(
    model: str,
    picture: str | None,
    output: str | None,
    layers: tuple[str, ...],
    opening: dict[str, Any],
    seed: int,
    as_json: bool,
) -> None:
    """Compute receptive fields, and draw them on a picture.

    For each layer of MODEL: the size of the part of the input that one cell can see (before any clipping to the
    picture), how far the next cell's lies, and where the first one's begins; "whole picture" where attention or
    pooling over all places mixes everything. With PICTURE and -o the fields of the middle cells are drawn, and with
    them the effective fields: how much each pixel changes the cell in this picture. Outside the theoretical field that
    is exactly 0.
    """
    from onnxcam.inside import receptive_fields

    if (picture is None) != (output is None):
        raise click.UsageError("PICTURE and -o DIR go together: the fields are drawn on the picture.")
    size = opening["input_size"]
    if picture is None:
        computed = receptive_fields.fields(
            model,
            list(layers) or None,
            input_size=None if size is None else (size[0], size[1]),
            preprocess=opening["preprocess"],
            **inside_options.readout(opening),
        )
        record: dict[str, Any] = {"model": model, "fields": [field.describe() for field in computed]}
    else:
        from onnxcam.inside import field_pages

        explainer = inside_options.opened(model, opening, [picture])
        folder = inside_options.folder_of(output or "")
        prepared = explainer.prepare(picture)
        computed = receptive_fields.fields_of(explainer, prepared[1], list(layers) or None)
        measured = field_pages.measure(explainer, prepared, computed if layers else _spread(computed))
        title = f"Receptive fields, input {computed[0].input_size[1]} x {computed[0].input_size[0]}"
        image.write_png(folder / "fields.png", field_pages.draw(prepared, measured, title))
        record = {"model": model, "picture": picture, "fields": [field.describe() for field in computed]}
        record["drawn"] = field_pages.describe(measured)
        inside_options.write_json(folder / "fields.json", record)
    if as_json:
        options.print_json(record)
        return
    terminal.echo_lines(inside_options.table(_rows(computed)))
    if output is not None:
        terminal.echo(f"drawn on the picture: {output}/fields.png", err=True)


def _spread(fields: list[Field]) -> list[Field]:
    """A few layers from the first to the last."""
    count = min(_DRAWN, len(fields))
    return [fields[round(k * (len(fields) - 1) / max(count - 1, 1))] for k in range(count)]


def _rows(fields: list[Field]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("layer", "field", "stride", "begins at", "map", "")]
    for field in fields:
        grid = f"{field.grid[0]} x {field.grid[1]}"
        if field.mixing is not None and field.whole:
            rows.append((field.layer, "whole picture", "", "", grid, f"mixed by {field.mixing}"))
            continue
        note = f"of the largest: cells mix in {field.mixing}" if field.mixing else "covers the picture" * field.whole
        size, stride, offset = (f"{a:g} x {b:g}" for a, b in (field.size, field.stride, field.offset))
        rows.append((field.layer, size, stride, offset.replace(" x ", ", "), grid, note))
    return rows
