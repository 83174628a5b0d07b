"""`onnxcam export`: an explainable ONNX file from a Keras, PyTorch or ONNX model."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from onnxcam import image
from onnxcam.cli import options
from onnxcam.errors import LabelsError, LayerError, ModelError, OutputError, TrustError, VerificationError
from onnxcam.explain.warnings import input_size_warnings
from onnxcam.targets import labels

EPILOG = """\
\b
Examples:
  onnxcam export classifier.onnx -o explainable.onnx --preprocess 0..1 --labels labels.txt
  onnxcam export torchvision:resnet50 -o resnet50.onnx
  onnxcam export flowers.keras -o flowers.onnx --layer efficientnetb0/top_conv --labels labels.json
  onnxcam export mypackage.model:build --weights state.pt -o model.onnx --layer layer3 --layer layer4
  onnxcam export classifier.onnx -o triton.onnx --target required --outputs heatmap
  onnxcam export explainable.onnx -o gated.onnx --gate "confidence < 0.6 or margin < 0.1"
"""
KERAS, TORCH, ONNX, CODE = "Keras", "PyTorch", "ONNX", "Python"
_KERAS_FILES = {".keras", ".h5", ".hdf5"}
_TORCH_FILES = {".pt2", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}
_FAMILIES = {"keras": KERAS, "torchvision": TORCH, "timm": TORCH}
_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Request:
    """What the file is to hold."""

    layers: list[str] | None
    methods: tuple[str, ...]
    target: str
    outputs: str
    labels: list[str] | None
    preprocess: str | None
    scores: str | None
    gate: str | None
    opset: int | None
    verify: bool
    grid: tuple[int, int] | None
    prefix_tokens: int | None


@dataclass(frozen=True)
class Loading:
    """How a framework's model is loaded."""

    weights: str | None
    trust: bool
    import_file: str | None
    size: list[int] | None


@click.command("export", context_settings=options.CONTEXT, epilog=EPILOG)
@click.argument("source", metavar="SOURCE")
@click.option("-o", "--output", required=True, metavar="OUT.onnx", help="The file to write.")
@options.layer_option(
    "Target layer, by the framework's name.  [default: the last convolution, or the last tokens that matter]"
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="CAM method whose heatmap the file computes; repeatable.  [default: gradcam]",
)
@click.option(
    "--target",
    "--class",
    "target",
    default="optional",
    show_default=True,
    metavar="MODE",
    help="How the class to explain gets in: optional (clients may feed it), required (JavaScript, Java and Triton need "
    "that), or the one class, index or label, that the file explains.",
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
@click.option("--scores", metavar="NAME", help="Output with the class scores, where the model has several candidates.")
@click.option(
    "--gate",
    metavar="CONDITION",
    help="Compute gradients and heatmaps only where a prediction meets it, such as 'confidence < 0.6'; '' takes the "
    "gate out of a gated SOURCE, which else keeps it.",
)
@click.option(
    "--grid",
    metavar="ROWSxCOLUMNS",
    help="How the patches in a transformer's layer of tokens lie on the picture, such as 14x14, where the model does "
    "not tell.",
)
@click.option(
    "--prefix",
    "prefix_tokens",
    type=click.IntRange(0),
    metavar="COUNT",
    help="How many tokens come before the patches (class token, registers), where the model does not tell.",
)
@click.option(
    "--weights", metavar="FILE|none|imagenet", help="Weights for a model named by its code or its zoo's name."
)
@click.option("--trust-model", is_flag=True, help="Allow SOURCE and --import to run code while they are loaded.")
@click.option("--import", "import_file", metavar="FILE.py", help="Python file that defines the model's own classes.")
@click.option(
    "--input-size",
    "--input-shape",
    "input_size",
    metavar="SIZE",
    help="Of the input picture, where SOURCE does not tell: 224, 240x320 (height x width) or 1x28x28 (channels first).",
)
@click.option("--opset", type=click.IntRange(18, 21), metavar="N", help="ONNX opset, 18 to 21, of a framework's model.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Prove the numbers before writing.")
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
    gate: str | None,
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
    their heatmaps. Labels and preprocessing are stored in it. Numbers are proved first: those of a framework's model
    against its own autograd, those of an ONNX file against finite differences. If they are wrong, nothing is written.

    Exit status: 0 written, 1 OUT.onnx cannot be written, 2 wrong usage or unknown class, layer or method, 3 bad or
    untrusted model or failed proof, 4 a library is missing.
    """
    kind = kind_of(source)
    if kind == ONNX:
        foreign = {"--weights": weights, "--import": import_file, "--opset": opset}
        named = [name for name, value in foreign.items() if value is not None]
        if named:
            raise click.UsageError(f"{named[0]} is for PyTorch and Keras models, and SOURCE is an ONNX file.")
    how = Loading(weights, trust_model, import_file, parse_size(input_size))
    if kind == ONNX and how.size is not None and len(how.size) != 2:
        raise click.UsageError(f"--input-size {input_size!r}: of an ONNX file give 224 or 240x320 (height x width).")
    if import_file is not None and not trust_model:
        raise TrustError(f"{import_file} would be run; if you trust it, say so with --trust-model")
    check_output(source, Path(output))
    request = Request(
        list(dict.fromkeys(layers)) or None,
        tuple(dict.fromkeys(methods)) or ("gradcam",),
        target,
        outputs,
        read_labels(labels, preprocess),
        preprocess,
        scores,
        gate,
        opset,
        verify,
        parse_grid(grid),
        prefix_tokens,
    )
    try:
        if kind == ONNX:
            held = _from_onnx(source, output, request, how.size)
        else:
            write = {TORCH: _from_torch, KERAS: _from_keras, CODE: _from_callable}[kind]
            held = write(source, output, request, how)
    except LayerError as error:
        said = layers or [option for option in (grid, prefix_tokens) if option is not None]
        raise options.not_explainable(error, said) from error
    except LabelsError as error:
        raise LabelsError(f"labels file {labels!r}: {error}" if labels else str(error)) from error
    if as_json:
        written = {"path": output, "bytes": Path(output).stat().st_size}
        options.print_json(written | {"outputs": _outputs(held), "manifest": held})
    else:
        click.echo("\n".join(_lines(output, held)))
    for doubt in input_size_warnings(held["input"]):
        click.echo(f"Warning: {doubt}", err=True)
    if not held["input"].get("preprocess"):
        click.echo("Note: no preprocessing is stored (--preprocess); `onnxcam explain` will ask for it", err=True)


def kind_of(source: str) -> str:
    """Which kind of model SOURCE names.

    Raises:
        UsageError: none that is known.
        ModelError: a file that is not there, or is no model.
    """
    path = Path(source)
    suffix = path.suffix.lower()
    family = source.partition(":")[0]
    if family in _FAMILIES and ":" in source and not path.exists():
        return _FAMILIES[family]
    if _CALLABLE.fullmatch(source) and not path.exists():
        return CODE
    for kind, suffixes in ((KERAS, _KERAS_FILES), (TORCH, _TORCH_FILES)):
        if suffix in suffixes:
            if not path.is_file():
                raise ModelError(f"{source}: no such file; expected a {kind} model")
            return kind
    if (path / "saved_model.pb").is_file():
        raise ModelError(
            f"{source} is a TensorFlow SavedModel, which no longer knows its layers; save the model as .keras, or "
            "convert it (python -m tf2onnx.convert --saved-model) and give the .onnx file"
        )
    if suffix != ".onnx" and not path.exists():
        raise click.UsageError(
            f"SOURCE {source!r} is neither a file nor the name of a model: give an .onnx, .keras, .h5 or .pt2 file, "
            "package.module:callable, torchvision:NAME, timm:NAME or keras:NAME."
        )
    return ONNX


def parse_size(text: str | None) -> list[int] | None:
    """(h, w) or (c, h, w) from 224, 240x320 or 3,240,320; a batch dimension in front is dropped."""
    if text is None:
        return None
    parts = re.split(r"[x×,]", text.strip().strip("[]()"))
    if not 1 <= len(parts) <= 4 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.UsageError(f"--input-size {text!r}: expected 224, 240x320 (height x width) or 3x240x320.")
    sizes = [int(part) for part in parts]
    return sizes * 2 if len(sizes) == 1 else sizes[-3:]


def parse_grid(text: str | None) -> tuple[int, int] | None:
    """(rows, columns) from 14x14."""
    found = re.fullmatch(r"\s*(\d+)\s*[x×]\s*(\d+)\s*", text or "")
    if text is not None and (found is None or 0 in (int(found[1]), int(found[2]))):
        raise click.UsageError(f"--grid {text!r}: expected rows x columns, such as 14x14.")
    return None if found is None else (int(found[1]), int(found[2]))


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


def read_labels(path: str | None, preprocess: str | None) -> list[str] | None:
    """Class names from a file, or from the configuration that the preprocessing names."""
    return labels.beside(preprocess) if path is None else labels.read(path)


def _from_onnx(source: str, output: str, request: Request, size: Sequence[int] | None) -> dict[str, Any]:
    from onnxcam.graph import file, load
    from onnxcam.network import manifest
    from onnxcam.network.explainable import augment

    known = manifest.parse(file.metadata(source).get(manifest.KEY)) or {}
    model = augment(
        source,
        request.layers,
        request.methods,
        _target(request.target, request.labels or known.get("labels")),
        scores=request.scores,
        outputs=request.outputs,
        labels=request.labels,
        preprocess=request.preprocess,
        gate=request.gate,
        grid=request.grid,
        prefix_tokens=request.prefix_tokens,
        input_size=None if size is None else (size[0], size[1]),
    )
    held = manifest.read(model)
    if held is None:
        raise ModelError("the augmented model carries no manifest; report this as a bug")
    if request.verify:
        _verify(model)
    load.save(model, output)
    return held


def _verify(model: Any) -> None:
    """Finite differences, and the original outputs, in ONNX Runtime.

    Raises:
        VerificationError: a number is wrong.
    """
    from onnxcam.diagnose.gradients import check

    report = check(model, providers=["CPUExecutionProvider"])
    failed = [f"{finding.name}: {finding.detail}" for finding in report.findings if finding.status == "failed"]
    if failed:
        raise VerificationError(
            f"nothing was written, as the explainable model failed its check ({'; '.join(failed)}); --no-verify writes "
            "it all the same"
        )
    for finding in report.findings:
        if finding.status == "unsure":
            click.echo(f"Note: {finding.name}: {finding.detail}", err=True)


def _from_torch(source: str, output: str, request: Request, how: Loading, found: Any = None) -> dict[str, Any]:
    torch_source = importlib.import_module("onnxcam.exporters.torch_source")
    pytorch = importlib.import_module("onnxcam.exporters.pytorch")
    if found is not None:
        loaded = torch_source.from_object(found, source, how.weights, how.size)
    else:
        loaded = torch_source.load(
            source, weights=how.weights, trust=how.trust, import_file=how.import_file, input_size=how.size
        )
    names = request.labels if request.labels is not None else loaded.info.labels
    held: dict[str, Any] = pytorch.export(
        loaded.model,
        loaded.example_inputs,
        output,
        preprocess=_preprocess(request.preprocess, loaded),
        origin={"name": loaded.info.name},
        **_options(request, names),
    )
    return held


def _from_keras(source: str, output: str, request: Request, how: Loading, found: Any = None) -> dict[str, Any]:
    keras_source = importlib.import_module("onnxcam.exporters.keras_source")
    keras = importlib.import_module("onnxcam.exporters.keras")
    if found is not None:
        loaded = keras_source.from_object(found, source, how.weights)
    else:
        loaded = keras_source.load(
            source, weights=how.weights, trust=how.trust, import_file=how.import_file, input_size=how.size
        )
    names = request.labels if request.labels is not None else loaded.info.labels
    held: dict[str, Any] = keras.export(
        loaded.model,
        output,
        preprocess=request.preprocess if request.preprocess is not None else loaded.info.preprocess,
        input_size=how.size,
        origin={"name": loaded.info.name},
        **_options(request, names),
    )
    return held


def _from_callable(source: str, output: str, request: Request, how: Loading) -> dict[str, Any]:
    """A model made by code; which framework it is of shows only then."""
    named = importlib.import_module("onnxcam.exporters.named")
    with named.imported(how.import_file), named.importable_here():
        found = named.call(source)
        # a PyTorch model may come with example inputs
        framework = named.framework_of(found[0] if isinstance(found, (tuple, list)) and found else found)
        if framework is None:
            raise ModelError(
                f"{source} returned a {type(found).__name__}; expected a Keras model, a torch.nn.Module, or a module "
                "and example inputs"
            )
        write = _from_torch if framework == "torch" else _from_keras
        return write(source, output, request, how, found)


def _options(request: Request, names: Sequence[str] | None) -> dict[str, Any]:
    """What both exporters take alike."""
    return {
        "layers": request.layers,
        "labels": names,
        "methods": request.methods,
        "target": _target(request.target, names),
        "opset": request.opset,
        "verify": request.verify,
        "scores": request.scores,
        "outputs": request.outputs,
        "gate": request.gate,
        "grid": request.grid,
        "prefix_tokens": request.prefix_tokens,
    }


def _preprocess(spec: str | None, loaded: Any) -> dict[str, Any] | None:
    """What SPEC means for the loaded model; `timm` and `hf` alone stand for what the model itself tells."""
    own: dict[str, Any] | None = loaded.info.preprocess
    if spec is None or (spec in ("timm", "hf") and own is not None):
        return own
    example = loaded.example_inputs
    shape = ["N", *example.shape[1:]] if hasattr(example, "shape") and len(example.shape) == 4 else None
    return image.resolve(spec, shape).to_dict()


def _target(text: str, names: Sequence[str] | None) -> str | int:
    if text in ("optional", "required"):
        return text
    found = options.parse_class(text, names)
    return text if found is None else found


def _outputs(held: dict[str, Any]) -> list[str]:
    """Names of the file's outputs, in order, as far as the manifest tells."""
    original = list((held.get("source") or {}).get("outputs") or [])
    names = [*original, held["scores"]["name"]]
    names += [entry[key] for entry in held["layers"] for key in ("activations", "gradients") if entry[key]]
    names += [name for entry in held["layers"] for name in entry["heatmaps"].values()]
    names += [held["gate"]["output"]] if held.get("gate") else []
    return list(dict.fromkeys(names))


def _lines(output: str, held: dict[str, Any]) -> list[str]:
    entry, scores, parity = held["input"], held["scores"], held.get("parity")
    names = held.get("labels")
    labelled = f"labels {names[0]!r} to {names[-1]!r}" if names else "no labels"
    target = held["target"]
    fixed = f" {target['class']}" if "class" in target else ""
    lines = [
        f"{output}  {_size(Path(output).stat().st_size)}",
        f"  input    {entry['name']} {entry['dtype']} {_shape(entry['shape'])} {entry['layout']}",
        f"  scores   {scores['name']}, {scores['classes']} classes, {labelled}",
        f"  target   {target['mode']}{fixed}",
        *(f"  layer    {layer['name']} {_shape(layer['shape'])} {layer['layout']}" for layer in held["layers"]),
        *([f"  gate     {held['gate']['condition']}"] if held.get("gate") else []),
        f"  outputs  {', '.join(_outputs(held))}",
    ]
    if parity:
        figures = ", ".join(
            f"{key} {parity[key]:.1e}" for key in ("scores", "activations", "gradients") if key in parity
        )
        lines.append(f"  parity   {figures} off {parity['against']} on {parity['samples']} samples")
    return lines


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _shape(dims: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
