"""`onnxcam layers`: list the layers that can be explained."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import click

from onnxcam.cli import options, terminal
from onnxcam.errors import LayerError, escaped
from onnxcam.explain.warnings import input_size_warnings, layer_warnings
from onnxcam.network.layout import Layout

EPILOG = """\
\b
Examples:
  onnxcam layers model.onnx
  onnxcam layers model.onnx --json | jq -r '.layers[].name'
  onnxcam layers flowers.keras
"""


@click.command("layers", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.option("--trust-model", is_flag=True, help="Allow a Keras MODEL and --import to run code while they are loaded.")
@click.option("--import", "import_file", metavar="FILE.py", help="Python file that defines a Keras model's classes.")
@options.input_size_option
@options.readout_options
@options.task_options
@options.json_option
def layers(
    model: str,
    trust_model: bool,
    import_file: str | None,
    input_size: list[int] | None,
    scores: str | None,
    kind: str | None,
    task: str | None,
    boxes_output: str | None,
    as_json: bool,
) -> None:
    """List the layers that can be explained.

    For each layer of MODEL (any image classifier in ONNX form): its name for --layer, the shape and layout of its
    output, and which one is taken when none is named (*); whether all paths to the scores pass it, or a part of
    them, and which part of the input it shows, where that is not all of it. Of an explainable model it also says
    which outputs hold a layer's activations, gradients and heatmaps. Any other value or node of the graph can be
    named too, if it is spatial. MODEL may also be a Keras file (.keras, .h5) or keras:NAME: its layers come under
    the names that `onnxcam export --layer` takes.
    """
    keras = model.startswith("keras:") or model.lower().endswith((".keras", ".h5", ".hdf5"))
    if keras:
        listing = describe_keras(model, trust_model, import_file)
    else:
        listing = describe(model, input_size, scores, kind, task, boxes_output)
    terminal.warn(listing["warnings"])
    if as_json:
        options.print_json(listing)
        return
    terminal.echo_lines(_table(listing["layers"]))
    explainable = listing["explainable"]
    if explainable is not None:
        names = ", ".join(f"{key} {value}" for key, value in explainable["outputs"].items() if value)
        target = f"{explainable['target']['name']} ({explainable['target']['mode']})"
        terminal.echo_lines(["", f"explainable: target {target}; {names}"])
        gate = explainable["gate"]
        if gate is not None:
            terminal.echo(f"  gate {gate['condition']}: maps where {gate['output']} holds, else zero")
        for layer in listing["layers"]:
            if layer["outputs"] is not None:
                maps = ", ".join(layer["outputs"]["heatmaps"].values())
                raw = ", ".join(name for key, name in layer["outputs"].items() if key != "heatmaps" and name)
                terminal.echo(f"  {layer['name']}: {', '.join(part for part in (raw, maps) if part)}")


def describe(
    model: str,
    input_size: Sequence[int] | None = None,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
) -> dict[str, Any]:
    """Describe the layers of a model file, and the outputs of an explainable one.

    Raises:
        ModelError: not an image classifier, or one without a spatial layer.
    """
    from onnxcam.graph import file
    from onnxcam.network import manifest
    from onnxcam.network.network import survey

    stored = manifest.parse(file.metadata(model).get(manifest.KEY))
    entries = {} if stored is None else {entry["name"]: entry for entry in stored["layers"]}
    try:
        size = None if input_size is None else (input_size[0], input_size[1])
        candidates, picture = survey(model, size, scores=scores, kind=kind, task=task, boxes_output=boxes_output)
    except LayerError as error:
        raise options.not_explainable(error, ()) from error
    listed = [
        {
            "name": layer.name,
            "shape": _dims(layer.shape),
            "layout": layer.layout,
            "grid": None if layer.grid is None else list(layer.grid),
            "prefix_tokens": layer.prefix_tokens,
            "default": layer.default,
            "covers": layer.covers,
            "window": None if layer.window is None else layer.window.describe(),
            "outputs": _outputs(entries.pop(layer.name, None)),
        }
        for layer in candidates
    ]
    # a file may expose other values than those of candidate layers
    listed += [
        {key: entry.get(key) for key in ("name", "shape", "layout", "grid", "prefix_tokens", "covers", "window")}
        | {"default": False, "outputs": _outputs(entry)}
        for entry in entries.values()
    ]
    if stored is not None:
        for layer in listed:
            layer["default"] = layer["name"] == stored["layers"][-1]["name"]
    explainable = stored and {
        "target": stored["target"],
        "outputs": {"scores": stored["scores"]["name"], "probabilities": stored["scores"].get("probabilities")},
        "gate": stored.get("gate"),
    }
    default = [
        {"name": layer.name, "beside": layer.beside, "window": layer.window and layer.window.describe()}
        for layer in [one for one in candidates if one.default]
    ]
    doubtful = input_size_warnings(picture) + layer_warnings(default if stored is None else stored["layers"])
    doubtful += picture["warnings"]
    return {"model": model, "explainable": explainable, "layers": listed, "warnings": doubtful}


def describe_keras(model: str, trust: bool = False, import_file: str | None = None) -> dict[str, Any]:
    """Describe the layers of a Keras model.

    Raises:
        ModelError, TrustError: it cannot be loaded, or is not an image classifier.
        DependencyError: TensorFlow is missing.
    """
    keras_source = importlib.import_module("onnxcam.exporters.keras_source")
    exporter = importlib.import_module("onnxcam.exporters.keras")
    weights = "none" if model.startswith("keras:") else None
    loaded = keras_source.load(model, weights=weights, trust=trust, import_file=import_file)
    layers = [
        {
            "name": layer.name,
            "shape": _dims(layer.shape),
            "layout": layer.layout,
            "grid": None if layer.grid is None else list(layer.grid),
            "prefix_tokens": layer.prefix_tokens,
            "default": layer.default,
            "covers": layer.covers,
            "window": None if layer.window is None else layer.window.describe(),
            "outputs": None,
        }
        for layer in exporter.list_layers(loaded.model)
    ]
    return {"model": model, "explainable": None, "layers": layers, "warnings": []}


def _outputs(entry: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if entry is None else {key: entry[key] for key in ("activations", "gradients", "heatmaps")}


def _dims(shape: Sequence[int | str | None] | None) -> list[int | str | None] | None:
    """Write a shape as the manifest does: N for the batch, None for an open dimension."""
    if shape is None:
        return None
    first = shape[0] if isinstance(shape[0], int) else "N"
    return [first, *(d if isinstance(d, int) else None for d in shape[1:])]


def _layout(layer: dict[str, Any]) -> str:
    """The layout, of tokens with how they lie, and the part of the input: `NTC, 14 x 14 after 1, rows 0 to 224, …`."""
    layout = Layout.of(layer)
    part = "" if layout.window is None else f", {layout.window.words()}"
    if not layout.tokens:
        return layout.name + part
    if layout.grid is None:
        return f"{layout.name}, grid unknown (--grid)"
    before = f" after {layout.prefix_tokens}" if layout.prefix_tokens else ""
    return f"{layout.name}, {layout.grid[0]} x {layout.grid[1]}{before}{part}"


def _table(layers: Sequence[dict[str, Any]]) -> list[str]:
    rows = [("", "layer", "shape", "covers", "layout")]
    for layer in layers:
        shape = (
            "?"
            if layer["shape"] is None
            else "[" + ", ".join("?" if d is None else str(d) for d in layer["shape"]) + "]"
        )
        rows.append(
            ("*" if layer["default"] else "", escaped(layer["name"]), shape, layer["covers"] or "?", _layout(layer))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join([*(f"{row[column]:{widths[column]}}" for column in range(4)), row[4]]) for row in rows]
