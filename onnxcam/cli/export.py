"""`onnxcam export`: write an explainable ONNX file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from onnxcam import files, image
from onnxcam.cli import options, terminal
from onnxcam.cli.export_summary import lines, outputs_of
from onnxcam.cli.options import parse_size
from onnxcam.errors import LabelsError, LayerError, ModelError, OutputError, TrustError, VerificationError
from onnxcam.explain.warnings import input_size_warnings, layer_warnings
from onnxcam.exporters import frameworks
from onnxcam.exporters import source as sources
from onnxcam.targets import labels
from onnxcam.targets.classes import by_text

EPILOG = """\
\b
Examples:
  onnxcam export classifier.onnx -o explainable.onnx --preprocess 0..1 --labels labels.txt
  onnxcam export torchvision:resnet50 -o resnet50.onnx
  onnxcam export flowers.keras -o flowers.onnx --layer efficientnetb0/top_conv --labels labels.json
  onnxcam export mypackage.model:build --weights state.pt -o model.onnx --layer layer3 --layer layer4
  onnxcam export classifier.onnx -o triton.onnx --target required --outputs heatmap
  onnxcam export classifier.onnx -o pixels.onnx --preprocess imagenet --target required --pixels
  onnxcam export explainable.onnx -o gated.onnx --gate "confidence < 0.6 or margin < 0.1"
  onnxcam export detector.onnx -o boxes.onnx --preprocess 0..1 --target required
"""
# kinds of SOURCE that are not a framework's
ONNX, CODE = "ONNX", "Python"


@dataclass(frozen=True)
class Request:
    """What the file is to hold: the keyword arguments of `onnxcam.exporters.export.export`."""

    layers: list[str] | None
    methods: tuple[str, ...] | None
    target: str | int
    outputs: str
    labels: Sequence[str] | None
    preprocess: Any
    scores: str | None
    kind: str | None
    task: str | None
    boxes_output: str | None
    gate: str | None
    portable: bool
    pixels: bool
    opset: int | None
    verify: bool
    grid: tuple[int, int] | None
    prefix_tokens: int | None


@dataclass(frozen=True)
class Loading:
    """How a framework's model is loaded: the keyword arguments of its exporter's `load`."""

    weights: str | None
    trust: bool
    import_file: str | None
    input_size: list[int] | None


@click.command("export", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("source", metavar="SOURCE")
@click.option("-o", "--output", required=True, metavar="OUT.onnx", help="The file to write.")
@options.layer_option(
    "Target layer, by the framework's name.  [default: the last convolution, or a transformer's last layer whose "
    "patches still reach the scores]"
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="CAM method whose heatmap the file computes; repeatable.  [default: gradcam; of a detector "
    "layercam, of a segmentation hirescam]",
)
@click.option(
    "--target",
    "--class",
    "target",
    default="optional",
    show_default=True,
    metavar="MODE",
    help="The class to explain: optional (an input with a default, top-1), required (an ordinary input, as JavaScript, "
    "Java and Triton need it), or the index or label of the one class that the file explains. Of a detector it is the "
    "input `box`, of an embedding `reference`, of several values `target`.",
)
@click.option(
    "--outputs",
    type=click.Choice(["all", "heatmap"]),
    default="all",
    show_default=True,
    help="heatmap leaves activations and gradients out.",
)
@options.labels_option
@options.preprocess_option
@options.readout_options
@options.task_options
@click.option(
    "--gate",
    metavar="CONDITION",
    help="Compute gradients and heatmaps only where a prediction meets it, such as 'confidence < 0.6'; '' removes the "
    "gate of a gated SOURCE, which is kept otherwise.",
)
@click.option(
    "--portable",
    is_flag=True,
    help="Write a file that more runtimes compute right (tract, WebGPU, IREE): one target for all rows of a batch, "
    "maximum pools differentiated by convolutions, a gate in float32.",
)
@click.option(
    "--pixels",
    is_flag=True,
    help="Write a file that takes the picture itself, uint8 [height, width, 3] of any size, and returns predictions, "
    "heatmap and overlay of its own size: clients need no preprocessing code. Needs a stored preprocessing.",
)
@click.option(
    "--grid",
    metavar="ROWSxCOLUMNS",
    help="Rows and columns of the patches in a transformer's layer of tokens, such as 14x14, where the model does not "
    "tell.",
)
@click.option(
    "--prefix",
    "prefix_tokens",
    type=click.IntRange(0),
    metavar="COUNT",
    help="Number of tokens before the patches (class token, registers), where the model does not tell.",
)
@click.option(
    "--weights",
    metavar="FILE|none|imagenet",
    help="Weights of a model named by its code or by a zoo, such as torchvision:resnet50.",
)
@click.option("--trust-model", is_flag=True, help="Allow SOURCE and --import to run code while they are loaded.")
@click.option("--import", "import_file", metavar="FILE.py", help="Python file that defines the model's custom classes.")
@click.option(
    "--input-size",
    "--input-shape",
    "input_size",
    metavar="SIZE",
    help="Size of the picture, where SOURCE does not tell: 224, 240x320 (height x width) or 1x28x28 (channels first).",
)
@click.option("--opset", type=click.IntRange(18, 21), metavar="N", help="ONNX opset, 18 to 21, of a framework's model.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Check the numbers before writing.")
@options.json_option
def export(
    source: str,
    output: str,
    layers: tuple[str, ...],
    methods: tuple[str, ...],
    target: str,
    outputs: str,
    labels: str | None,
    preprocess: str | None,
    scores: str | None,
    kind: str | None,
    task: str | None,
    boxes_output: str | None,
    gate: str | None,
    portable: bool,
    pixels: bool,
    grid: str | None,
    prefix_tokens: int | None,
    weights: str | None,
    trust_model: bool,
    import_file: str | None,
    input_size: str | None,
    opset: int | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Write an explainable ONNX file.

    SOURCE is a plain .onnx file; a Keras file (.keras, .h5) or keras:NAME; package.module:callable, which is imported
    and called (naming it is consent to run it); torchvision:NAME or timm:NAME; a torch.export archive (.pt2); or a
    pickled PyTorch module, which needs --trust-model.

    OUT.onnx is an ordinary ONNX file: the original outputs, the activations and gradients of the target layers, and
    their heatmaps. Labels and preprocessing are stored in it. Numbers are checked first: those of a framework's model
    against its own autograd, those of an ONNX file against finite differences. If they are wrong, nothing is written.

    Exit status: 0 written, 1 OUT.onnx cannot be written, 2 wrong usage or unknown class, layer or method, 3 bad or
    untrusted model or failed check, 4 a library is missing.
    """
    framework = kind_of(source)
    if framework == ONNX:
        foreign = {"--weights": weights, "--import": import_file, "--opset": opset}
        named = [name for name, value in foreign.items() if value is not None]
        if named:
            raise click.UsageError(f"{named[0]} is for PyTorch and Keras models, and SOURCE is an ONNX file.")
    loading = Loading(weights, trust_model, import_file, parse_size(input_size))
    if framework == ONNX and loading.input_size is not None and len(loading.input_size) != 2:
        raise click.UsageError(f"--input-size {input_size!r}: for an ONNX file give 224 or 240x320 (height x width).")
    if import_file is not None and not trust_model:
        raise TrustError(f"{import_file} would be run; if you trust it, say so with --trust-model")
    check_output(source, Path(output))
    piped = files.is_standard_output(output)  # what is printed would end up in the model
    request = Request(
        list(dict.fromkeys(layers)) or None,
        tuple(dict.fromkeys(methods)) or None,
        target,
        outputs,
        read_labels(labels, preprocess),
        preprocess,
        scores,
        kind,
        task,
        boxes_output,
        gate,
        portable,
        pixels,
        opset,
        verify,
        parse_grid(grid),
        prefix_tokens,
    )
    try:
        if framework == ONNX:
            manifest = _from_onnx(source, output, request, loading.input_size)
        elif framework == CODE:
            manifest = _from_callable(source, output, request, loading)
        else:
            manifest = _from_framework(framework, source, output, request, loading)
    except LayerError as error:
        about_layers = layers or [option for option in (grid, prefix_tokens) if option is not None]
        raise options.not_explainable(error, about_layers) from error
    except LabelsError as error:
        raise LabelsError(f"labels file {labels!r}: {error}" if labels else str(error)) from error
    size = Path(output).stat().st_size if files.is_replaced(output) else None
    if as_json:
        written = {"path": output, "bytes": size}
        options.print_json(written | {"outputs": outputs_of(manifest), "manifest": manifest}, err=piped)
    else:
        terminal.echo_lines(lines(output, size, manifest), err=piped)
    warnings = [*input_size_warnings(manifest["input"]), *layer_warnings(manifest["layers"])]
    terminal.warn([*warnings, *manifest["scores"].get("warnings", ())])
    if not manifest["input"].get("preprocess"):
        terminal.echo("Note: no preprocessing is stored (--preprocess); `onnxcam explain` will ask for it", err=True)


def kind_of(source: str) -> str:
    """The kind of model that SOURCE names: a framework, `ONNX` or `CODE`.

    Raises:
        UsageError: none of them.
        ModelError: a file that does not exist, or is not a model.
    """
    path = Path(source)
    zoo = frameworks.of_name(source)
    if zoo is not None and not path.exists():
        return zoo
    if sources.is_callable(source):
        return CODE
    framework = frameworks.of_file(source)
    if framework is not None:
        if not path.is_file():
            raise ModelError(f"{source}: no such file; expected a {framework} model")
        return framework
    if (path / "saved_model.pb").is_file():
        raise ModelError(
            f"{source} is a TensorFlow SavedModel, which no longer knows its layers; save the model as .keras, or "
            "convert it (python -m tf2onnx.convert --saved-model) and give the .onnx file"
        )
    if path.is_file():
        from onnxcam.graph import formats

        other = formats.foreign(path)
        if other is not None:
            raise ModelError(f"{source} is {other}")
    elif path.suffix.lower() != ".onnx" and not path.exists():
        entries = frameworks.FRAMEWORKS.values()
        files = ", ".join(f"{entry.suffixes[0]}" for entry in entries if entry.suffixes)
        zoos = ", ".join(f"{zoo}:NAME" for entry in entries for zoo in entry.zoos)
        raise click.UsageError(
            f"SOURCE {source!r} is neither a file nor the name of a model: give a file (.onnx, {files}), "
            f"package.module:callable, or a model of a zoo ({zoos})."
        )
    return ONNX


def parse_grid(text: str | None) -> tuple[int, int] | None:
    """(rows, columns) from 14x14."""
    match = re.fullmatch(r"\s*(\d+)\s*[x×]\s*(\d+)\s*", text or "")
    if text is not None and (match is None or 0 in (int(match[1]), int(match[2]))):
        raise click.UsageError(f"--grid {text!r}: expected rows x columns, such as 14x14.")
    return None if match is None else (int(match[1]), int(match[2]))


def check_output(source: str, output: Path) -> None:
    """Refuse, before any work, an output that cannot be written or is SOURCE itself."""
    if output.is_dir():
        raise OutputError(
            f"{str(output)!r} is a folder; name the file to write, such as {str(output / 'model.onnx')!r}"
        )
    folder = output.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{str(output)!r} cannot be written: there is no folder {str(folder)!r}; make it first")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise click.UsageError(f"{str(output)!r} is SOURCE itself; write to another file.")
    if files.is_standard_output(output) and os.isatty(1):
        raise OutputError(f"{str(output)!r} is a terminal, and a model is not text; redirect it, or name a file")
    files.check_writable(output)


def read_labels(path: str | None, preprocess: str | None) -> list[str] | None:
    """Read class names from a file, or from the configuration that the preprocessing names."""
    return labels.from_configuration(preprocess) if path is None else labels.read(path)


def _from_onnx(source: str, output: str, request: Request, size: Sequence[int] | None) -> dict[str, Any]:
    """Make an ONNX file explainable and write it.

    Nothing of `onnxcam.exporters.export` applies: there is nothing to capture, no autograd to compare with, and what an
    explainable SOURCE already has (layers, labels, gate) is kept.
    """
    from onnxcam.graph import file, load
    from onnxcam.network import manifest, metadata_labels
    from onnxcam.network.explainable import augment

    properties = file.metadata(source)
    previous = manifest.parse(properties.get(manifest.KEY)) or {}
    model = augment(
        source,
        request.layers,
        request.methods,
        _target(request.target, request.labels or previous.get("labels") or metadata_labels.any_names(properties)),
        scores=request.scores,
        kind=request.kind,
        task=request.task,
        boxes_output=request.boxes_output,
        outputs=request.outputs,
        labels=request.labels,
        preprocess=request.preprocess,
        gate=request.gate,
        portable=request.portable or None,
        pixels=request.pixels or None,
        grid=request.grid,
        prefix_tokens=request.prefix_tokens,
        input_size=None if size is None else (size[0], size[1]),
        on_warning=_warn,
    )
    record = manifest.read(model)
    assert record is not None, "augment writes one"
    if not record.get("labels") and record["scores"].get("task") is None:
        doubt = metadata_labels.find(properties, record["scores"]["classes"]).doubt
        if doubt is not None:
            terminal.echo(f"Warning: {doubt}", err=True)
    if request.verify:
        _verify(model)
    load.save(model, output)
    return record


def _warn(sentence: str) -> None:
    """Print a doubt that was measured."""
    terminal.echo(f"Warning: {sentence}", err=True)


def _verify(model: Any) -> None:
    """Check gradients against finite differences, and the original outputs, in ONNX Runtime.

    Raises:
        VerificationError: a number is wrong.
    """
    from onnxcam.diagnose.gradients import check

    report = check(model, providers=["CPUExecutionProvider"], places=False)
    failed = [f"{finding.name}: {finding.detail}" for finding in report.findings if finding.status == "failed"]
    if failed:
        raise VerificationError(
            f"the explainable model failed its check ({'; '.join(failed)}), so nothing was written; --no-verify writes "
            "it anyway"
        )
    for finding in report.findings:
        if finding.status == "unsure":
            terminal.echo(f"Note: {finding.name}: {finding.detail}", err=True)


def _from_callable(source: str, output: str, request: Request, loading: Loading) -> dict[str, Any]:
    """Export a model made by code, whose framework shows only when the code has run."""
    with sources.imported(loading.import_file), sources.importable_here():
        model = sources.call(source)
        # example inputs may come with it
        kind = frameworks.of_model(model[0] if isinstance(model, (tuple, list)) and model else model)
        if kind is None:
            raise ModelError(
                f"{source} returned a {type(model).__name__}; expected a {' or '.join(frameworks.FRAMEWORKS)} "
                "model, or a PyTorch model and example inputs"
            )
        return _from_framework(kind, source, output, request, loading, model=model)


def _from_framework(
    kind: str, source: str, output: str, request: Request, loading: Loading, **result: Any
) -> dict[str, Any]:
    """Load a framework's model and export it.

    Arguments:
        result: `model`, where SOURCE is code that has been run.
    """
    exporter = frameworks.FRAMEWORKS[kind].exporter()
    from onnxcam.exporters.export import export

    loaded = exporter.load(source, **vars(loading), **result)
    names = request.labels if request.labels is not None else loaded.info.labels
    request = replace(
        request, labels=names, target=_target(request.target, names), preprocess=_preprocess(request.preprocess, loaded)
    )
    manifest: dict[str, Any] = export(
        loaded.framework, output, **vars(request), origin={"name": loaded.info.name}, on_warning=_warn
    )
    return manifest


def _preprocess(spec: str | None, loaded: Any) -> Any:
    """The preprocessing that SPEC means for the loaded model; `timm` and `hf` alone mean the model's own."""
    stored = loaded.info.preprocess
    if loaded.shape is None:
        return stored if spec is None else spec
    if spec is None or (spec in ("timm", "hf") and stored is not None):
        return stored
    return image.resolve(spec, loaded.shape).to_dict()


def _target(text: str | int, names: Sequence[str] | None) -> str | int:
    if not isinstance(text, str) or text in ("optional", "required"):
        return text
    return by_text(text, names)
