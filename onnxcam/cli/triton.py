"""`onnxcam triton`: write a model repository for the Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxcam.cli import options, terminal
from onnxcam.errors import InputError, LayerError, OutputError
from onnxcam.explain.warnings import input_size_warnings, layer_warnings

EPILOG = """\
\b
Examples:
  onnxcam triton model.cam.onnx -o repository
  onnxcam triton classifier.onnx -o repository --name flowers --preprocess imagenet --labels labels.txt
  docker run -v $PWD/repository:/models nvcr.io/nvidia/tritonserver:26.10-py3 tritonserver --model-repository=/models
"""


@click.command("triton", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", required=True, metavar="REPOSITORY", help="The model repository, a folder.")
@click.option("--name", metavar="NAME", help="What clients call the model.  [default: the file's name]")
@click.option(
    "--max-batch",
    type=click.IntRange(1, 4096),
    default=8,
    show_default=True,
    metavar="ROWS",
    help="Rows that Triton puts into one run, of several clients' requests.",
)
@click.option(
    "--model-version",
    type=click.IntRange(1, 2**31 - 1),
    default=1,
    show_default=True,
    metavar="N",
    help="The version's folder; Triton serves the highest.",
)
@options.layer_option("Target layer; repeatable.  [default: those of an explainable MODEL, else the default layer]")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="CAM method whose heatmap the model computes; repeatable.  [default: those of an explainable MODEL, else "
    "gradcam]",
)
@options.labels_option
@options.preprocess_option
@options.input_size_option
@options.readout_options
@options.json_option
def triton(
    model: str,
    output: str,
    name: str | None,
    max_batch: int,
    model_version: int,
    layers: tuple[str, ...],
    methods: tuple[str, ...],
    labels: str | None,
    preprocess: str | None,
    input_size: list[int] | None,
    scores: str | None,
    kind: str | None,
    as_json: bool,
) -> None:
    """Write a model repository for the Triton Inference Server.

    MODEL is an explainable ONNX file, or a plain one, which is made explainable. The repository gets
    NAME/config.pbtxt, NAME/labels.txt where class names are known, and NAME/1/model.onnx, whose target is an ordinary
    input: Triton batches the requests of several clients only for models without optional inputs. Where requests may
    not be batched (a fixed batch axis, rows that depend on each other), it says so and turns batching off.

    config.pbtxt says in comments and parameters how a picture becomes the model's input.
    """
    from onnxcam.cli.export import read_labels
    from onnxcam.server import triton as repositories

    name = repositories.model_name(model) if name is None else name
    try:
        repositories.check_name(name)
    except InputError as error:
        raise click.UsageError(f"--name: {error}.") from error
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{output!r} is not a folder; name the model repository")
    explainable = _explainable(
        model, layers, methods, read_labels(labels, preprocess), preprocess, input_size, scores, kind
    )
    repository = repositories.Repository.of(explainable, name, max_batch)
    written = repository.write(folder, model_version)
    manifest = repository.manifest
    terminal.warn([*input_size_warnings(manifest["input"]), *layer_warnings(manifest["layers"])])
    terminal.warn(manifest["scores"].get("warnings", ()))
    if as_json:
        options.print_json({
            "name": repository.name,
            "max_batch_size": repository.max_batch,
            "files": [str(path) for path in written],
            "inputs": [_described(tensor) for tensor in repository.inputs],
            "outputs": [_described(tensor) for tensor in repository.outputs],
            "preprocess": manifest["input"].get("preprocess") or None,
            "notes": list(repository.notes),
        })  # fmt: skip
        return
    batching = f"up to {repository.max_batch} rows a run" if repository.max_batch else "no batching"
    terminal.echo(f"{folder / repository.name}: {batching}")
    rows = [("takes", repository.inputs), ("gives", repository.outputs)]
    for verb, tensors in rows:
        for tensor in tensors:
            terminal.echo(f"  {verb} {tensor.name}  {tensor.data_type[5:]} {list(tensor.dims)}")
    for note in repository.notes:
        terminal.echo(f"Note: {note}", err=True)
    if not manifest["input"].get("preprocess"):
        terminal.echo("Note: no preprocessing is stored (--preprocess): clients have to know it", err=True)


def _explainable(
    model: str,
    layers: tuple[str, ...],
    methods: tuple[str, ...],
    labels: list[str] | None,
    preprocess: str | None,
    input_size: list[int] | None,
    scores: str | None,
    kind: str | None,
) -> Any:
    """The explainable model to be served: the file itself, or one made of it where it lacks what was named."""
    from onnxcam.network.explainable import augment
    from onnxcam.network.opening import read_source

    where, manifest = read_source(model)
    named: dict[str, Any] = {"labels": labels, "preprocess": preprocess, "scores": scores, "kind": kind}
    named["input_size"] = None if input_size is None else (input_size[0], input_size[1])
    if manifest is not None and not layers and not methods and not any(value is not None for value in named.values()):
        return where
    present = [] if manifest is None else [name for entry in manifest["layers"] for name in entry["heatmaps"]]
    raw = manifest is None or any(entry["gradients"] for entry in manifest["layers"])
    try:
        return augment(
            model, list(dict.fromkeys(layers)) or None, tuple(dict.fromkeys(methods or present)) or ("gradcam",),
            "required", outputs="all" if raw else "heatmap",
            on_warning=lambda sentence: terminal.warn([sentence]), **named,
        )  # fmt: skip
    except LayerError as error:
        raise options.not_explainable(error, layers) from error


def _described(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": tensor.data_type, "dims": list(tensor.dims)}
