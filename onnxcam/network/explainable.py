"""`onnxcam.augment`: any classifier in, the explainable model out. `onnxcam.layers`: where it can be explained."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcam import image
from onnxcam.autodiff.seed import score_cotangent
from onnxcam.autodiff.sweep import sweep
from onnxcam.cam import methods as cam
from onnxcam.errors import LabelsError, LayerError, ModelError, PreprocessError, TargetError, listing, miscounted
from onnxcam.graph import branch, dynamic_size, edit, layers
from onnxcam.graph.builder import Builder
from onnxcam.graph.input_normalization import normalization
from onnxcam.graph.large_model import LargeModel
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import input_layout
from onnxcam.graph.load import Source, serialize
from onnxcam.graph.shape_inference import describe, refresh
from onnxcam.graph.view import Dim, Graph
from onnxcam.network import gate as gates
from onnxcam.network import manifest
from onnxcam.network.input_size import Sized, sized
from onnxcam.network.manifest import Manifest
from onnxcam.network.network import prepare
from onnxcam.network.readout import find as find_readout
from onnxcam.targets import classes as targets
from onnxcam.targets.readout import APPENDED, Readout

# the oldest onnxruntime that ran augmented models at each opset, tried from 1.15.1 on
OLDEST_RUNTIME = {18: "1.15.1", 19: "1.16.3", 20: "1.17.3", 21: "1.18.1"}
# up to 1.18.1 its graph optimiser aborts on an augmented ConvNeXt
OLDEST_WITH_LAYER_NORMALIZATION = "1.19.2"
TARGET = "target"
_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.UINT8: "uint8",
}


def augment(
    source: Source,
    layers: Sequence[str | Layer] | str | None = None,
    methods: Sequence[str] = ("gradcam",),
    target: str | int = "optional",
    *,
    scores: str | None = None,
    outputs: str = "all",
    labels: Sequence[str] | None = None,
    preprocess: Any = None,
    origin: dict[str, Any] | None = None,
    gate: str | None = None,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    input_size: tuple[int, int] | None = None,
) -> onnx.ModelProto:
    """Make a classifier explainable: scores, activations, gradients and heatmaps from one plain ONNX file.

    Arguments:
        source: path, bytes or `ModelProto` of an image classifier; an explainable model is augmented anew.
        layers: target layers by value or node name; None for the default layer (or the ones the model already has).
        methods: CAM methods whose heatmaps the file computes.
        target: `optional`, `required`, or the one class (index or label) the file explains.
        scores: the output holding the class scores, where the model has several candidates.
        outputs: `all`, or `heatmap` to leave activations and gradients out.
        labels: class names by index, kept in the manifest.
        preprocess: how pictures become tensors, kept in the manifest: its own form, a preset's name, a JSON file.
        origin: the manifest's `source` entry; what is known of `source` itself by default.
        gate: which predictions are explained, such as `confidence < 0.6` (the grammar of `onnxcam.Monitor`'s `when`):
            gradients and heatmaps cost nothing, and are zero, unless some row of the batch meets it. None: as an
            explainable model has it already; an empty text: all are explained, always.
        grid, prefix_tokens: rows and columns of the patches in layers of tokens, and how many tokens come before them,
            where the graph does not tell; one of the two is enough where the other follows.
        input_size: height and width of the picture, where the model leaves them open: the explainable model takes that
            size alone. Where none is given and layers of tokens need one, it is the one that `preprocess` makes, or
            else 224 x 224, which the manifest then calls assumed.

    Returns:
        a new `ModelProto`: the original outputs, `logits` where needed, `activations` and `gradients` of the layers'
        shapes, `heatmap` float32 `[N, h, w]` after ReLU, with a gate also `fired`, bool `[N]`: the rows that meet it;
        the manifest says which is which.

    Raises:
        ModelError: not an image classifier, or invalid.
        LayerError, MethodError, TargetError: no such layer, method or class.
        SettingError: the gate's condition cannot be read.
        LabelsError: not one label per class. PreprocessError: unknown, or not for this input.
        UnsupportedOperator: an operator between a target layer and the scores has no gradient rule.
    """
    if outputs not in ("all", "heatmap"):
        raise ModelError(f"outputs={outputs!r}; expected 'all' or 'heatmap'")
    functions = {
        name: cam.find_graph(name).function
        for name in dict.fromkeys([methods] if isinstance(methods, str) else methods)
    }
    named = scores is not None
    graph = prepare(source)
    gate = graph.source_gate or "" if gate is None else gate
    held = manifest.read(graph.model)
    known = origin if held is None else held.get("source") or origin
    origin = dict(known or describe_source(source, graph.source_opset))
    if held is not None:
        graph = restore(graph, held)
        labels = labels if labels is not None else held.get("labels")
        preprocess = preprocess if preprocess is not None else held["input"].get("preprocess")
        scores = scores or held_scores(graph, held)
    picture = picture_input(graph)
    asked = None if scores is None else graph.find(scores)
    found = find_readout(graph, asked)
    labels = _check_labels(labels, found.size)
    condition = gates.parse(gate, labels, found.size)
    asked_layers = [layers] if isinstance(layers, (str, Layer)) else layers
    if asked_layers is None and held is not None:
        asked_layers = [layer_of(entry) for entry in held["layers"] if entry.get("value")] or None
    likely = _likely(preprocess) if dynamic_size.is_dynamic(graph) else None
    fitted = sized(graph, found.value, asked_layers, size=input_size, likely=likely)
    graph = fitted.graph
    wanted = _wanted(fitted, asked_layers, held, found.value, grid, prefix_tokens)
    graph, wanted, found = _reserve(graph, wanted, functions, found, set() if condition is None else {gates.FIRED})

    op = Builder(graph)
    flat = _append_logits(op, found)
    _target(op, target, found, labels)
    fixed = fixed_class(target, found.size, labels)
    explained = TARGET if fixed is None else fixed
    start, cotangent = score_cotangent(op, found, flat, explained)
    grads = sweep(op, start, cotangent, [layer.value for layer in wanted])

    model = graph.model
    original = [o.name for o in model.graph.output]
    if found.output is None:
        rows: Dim = (graph.shape(found.value) or ("N",))[0]
        model.graph.output.append(edit.info(APPENDED, graph.dtype(found.value), [rows, found.columns]))
    entries = []
    for layer, gradient in zip(wanted, grads, strict=True):
        tag = f"/{layer.name}" if len(wanted) > 1 else ""
        entry: dict[str, Any] = {"name": layer.name, "activations": None, "gradients": None}
        if outputs == "all":
            for key, value in (("activations", layer.value), ("gradients", gradient)):
                entry[key] = op.Identity(value, name=key + tag)
                model.graph.output.append(edit.info(key + tag, graph.dtype(layer.value), layer.shape))
        entry |= {
            "layout": layer.layout,
            "shape": _dims(layer.shape),
            "grid": None if layer.grid is None else list(layer.grid),
            "prefix_tokens": layer.prefix_tokens,
            "heatmaps": {},
            "value": layer.value,
        }
        a, da = canonical(op, layer, layer.value), canonical(op, layer, gradient)
        for name, method in functions.items():
            output = "heatmap" + tag + (f"/{name}" if len(functions) > 1 else "")
            op.dtype = onnx.TensorProto.FLOAT
            op.Relu(method(op, a, da), name=output)
            height, width = layer.grid or (None, None)
            model.graph.output.append(
                edit.info(output, onnx.TensorProto.FLOAT, [(layer.shape or ("N",))[0], height, width])
            )
            entry["heatmaps"][name] = output
        entries.append(entry)
    unsure = None if condition is None else gates.emit(op, condition, flat, found)
    edit.add(model, op)
    if unsure is not None:
        model.graph.output.append(edit.info(gates.FIRED, onnx.TensorProto.BOOL, [(graph.shape(flat) or ("N",))[0]]))
        blank = Builder(Graph(model))
        branch.enclose(model, unsure, gates.blanks(blank, wanted, entries), blank)
    edit.prune(model)
    origin["outputs"] = original
    if named:  # where there are several candidates, augmenting again means the same one
        origin["scores"] = asked if asked is not None and asked in graph else found.value
    made = _manifest(graph, picture, found, target, entries, labels, preprocess, origin)
    doubt = fitted.doubt if held is None else held["input"].get("size")
    if doubt is not None and input_size is None:
        made["input"]["size"] = doubt
    if condition is not None:
        made["gate"] = {"condition": gate, "output": gates.FIRED}
    manifest.write(model, made)
    return model


def list_layers(source: Source) -> list[Layer]:
    """Candidate target layers in graph order; exactly one is the default.

    Arguments:
        source: path, bytes or `ModelProto` of an image classifier; of an explainable model, the layers it exposes
            come under their own names.

    Returns:
        layers with `name`, `shape`, `layout` and `default`.

    Raises:
        ModelError: not an image classifier.
        LayerError: the model has no spatial layer.
    """
    return survey(source)[0]


def survey(source: Source) -> tuple[list[Layer], dict[str, Any]]:
    """The same, and the picture as these layers need it: the manifest's `layout`, `shape` and `size`."""
    graph = prepare(source)
    held = manifest.read(graph.model)
    known = {} if held is None else {e["value"]: layer_of(e) for e in held["layers"] if e.get("value")}
    if held is not None:
        graph = restore(graph, held)
    picture = picture_input(graph).name
    asked = held_scores(graph, held) if held is not None else None
    fitted = sized(graph, find_readout(graph, asked).value)
    found = fitted.layers or []
    layers.default(found)
    for place, layer in enumerate(found):
        own = known.get(layer.value)
        if own is not None:  # the file may say more of its tokens than the graph
            found[place] = replace(layer, name=own.name, grid=own.grid, prefix_tokens=own.prefix_tokens)
    graph = fitted.graph
    doubt = fitted.doubt if held is None else held["input"].get("size")
    return found, {"layout": input_layout(graph, picture), "shape": _dims(graph.shape(picture)), "size": doubt}


def restore(graph: Graph, held: Manifest) -> Graph:
    """The classifier inside an explainable model: everything onnxcam added taken away."""
    model = graph.model
    original = (held.get("source") or {}).get("outputs")
    if original is None:
        added = {"logits"} | {entry[key] for entry in held["layers"] for key in ("activations", "gradients")}
        added |= {name for entry in held["layers"] for name in entry["heatmaps"].values()}
        original = [o.name for o in model.graph.output if o.name not in added]
    kept = [o for o in model.graph.output if o.name in original]
    if not kept:
        raise ModelError("the explainable model no longer has the outputs its manifest names; export it again")
    del model.graph.output[:]
    model.graph.output.extend(kept)
    inputs = [i for i in model.graph.input if i.name != held["target"]["name"]]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    edit.prune(model)
    manifest.write(model, None)
    return refresh(model)


def describe_source(source: Source, opset: int) -> dict[str, Any]:
    """The manifest's `source` entry for a plain ONNX model that came with this opset."""
    if isinstance(source, onnx.ModelProto):
        data, name = serialize(source), source.graph.name
    elif isinstance(source, (str, os.PathLike)):
        data, name = Path(source).read_bytes(), Path(source).stem
    else:
        data, name = source if isinstance(source, LargeModel) else bytes(source), "model"
    digest = data.sha256() if isinstance(data, LargeModel) else hashlib.sha256(data).hexdigest()
    return {"framework": "onnx", "name": name, "sha256": digest, "opset": opset}


def picture_input(graph: Graph) -> onnx.ValueInfoProto:
    """The one input, a picture batch.

    Raises:
        ModelError: several inputs, or one that is not a batch of pictures.
    """
    inputs: list[onnx.ValueInfoProto] = [i for i in graph.inputs if graph.consumers.get(i.name)]
    if len(inputs) != 1:
        shapes = ", ".join(f"{i.name!r} {describe(graph.shape(i.name))}" for i in inputs)
        raise ModelError(f"the model has {len(inputs)} inputs ({shapes}); expected exactly one, a batch of pictures")
    shape = graph.shape(inputs[0].name)
    if shape is None or len(shape) != 4 or graph.dtype(inputs[0].name) not in _DTYPES:
        kind = onnx.TensorProto.DataType.Name(graph.dtype(inputs[0].name))
        raise ModelError(
            f"the model's input {inputs[0].name!r} is {kind} {describe(shape)}; expected a batch of pictures, "
            "[N, C, H, W] or [N, H, W, C]"
        )
    return inputs[0]


def held_scores(graph: Graph, held: Manifest) -> str | None:
    """The scores an explainable model was made for, as a name the restored model has."""
    asked = (held.get("source") or {}).get("scores")
    outputs = {o.name for o in graph.outputs}
    if isinstance(asked, str) and asked in graph:
        return asked
    return next((name for key in ("name", "probabilities") if (name := held["scores"].get(key)) in outputs), None)


def _check_labels(labels: Sequence[str] | None, classes: int) -> list[str] | None:
    if labels is None:
        return None
    if len(labels) != classes:
        raise LabelsError(miscounted(len(labels), classes))
    return [str(label) for label in labels]


def _likely(preprocess: Any) -> tuple[int, int] | None:
    """Height and width that a preprocessing makes, as far as it tells without the model."""
    with contextlib.suppress(PreprocessError):  # what is wrong with it is said once the model's input is known
        return image.resolve(preprocess).output_size
    return None


def _wanted(
    fitted: Sized,
    asked: Sequence[str | Layer] | None,
    held: Manifest | None,
    value: str,
    grid: tuple[int, int] | None,
    prefix_tokens: int | None,
) -> list[Layer]:
    known = {} if held is None else {e["name"]: layer_of(e) for e in held["layers"] if e.get("value")}
    graph = fitted.graph
    if asked is None:
        chosen: list[str | Layer] = [layers.default(fitted.layers or ())]
    else:
        chosen = [known.get(layer, layer) if isinstance(layer, str) else layer for layer in asked]
    if not chosen:
        raise LayerError("`layers` is empty; name at least one target layer, or pass None for the default")
    found = [layers.resolve(graph, layer, value, grid=grid, prefix_tokens=prefix_tokens) for layer in chosen]
    if (grid is not None or prefix_tokens is not None) and all(layer.layout != "NTC" for layer in found):
        raise LayerError(
            f"layer {listing(layer.name for layer in found)} is no layer of tokens, so that grid and prefix say nothing"
        )
    names = [layer.name for layer in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise LayerError(f"layer {listing(sorted(twice))} is named twice; name each target layer once")
    return found


def layer_of(entry: dict[str, Any]) -> Layer:
    """The layer that a manifest's entry describes."""
    grid = entry.get("grid")
    return Layer(
        entry["name"],
        entry["value"],
        layout=entry["layout"],
        grid=None if grid is None else (grid[0], grid[1]),
        prefix_tokens=entry.get("prefix_tokens", 0),
    )


def _reserve(
    graph: Graph, wanted: list[Layer], functions: dict[str, Any], found: Readout, further: set[str]
) -> tuple[Graph, list[Layer], Readout]:
    """Free the fixed names: an internal value that has one of them is renamed."""
    fixed = {TARGET, "activations", "gradients", "heatmap"} | further | ({APPENDED} if found.output is None else set())
    fixed |= {f"{stem}/{layer.name}" for layer in wanted for stem in ("activations", "gradients", "heatmap")}
    fixed |= {f"heatmap/{layer.name}/{name}" for layer in wanted for name in functions}
    fixed |= {f"heatmap/{name}" for name in functions}
    public = {o.name for o in graph.outputs} | {i.name for i in graph.inputs}
    clash = sorted(fixed & public)
    if clash:
        raise ModelError(
            f"the model already has an input or output called {clash[0]!r}, a name the explainable model needs; "
            "rename it at export"
        )
    taken = sorted(name for name in fixed if name in graph and name not in public)
    if not taken:
        return graph, wanted, found
    names = {name: f"{name}_renamed" for name in taken}
    while any(new in graph for new in names.values()):
        names = {old: new + "_" for old, new in names.items()}
    edit.rename(graph.model, names)
    wanted = [replace(layer, value=names.get(layer.value, layer.value)) for layer in wanted]
    return Graph(graph.model), wanted, replace(found, value=names.get(found.value, found.value))


def _append_logits(op: Builder, found: Readout) -> str:
    """The scores as `[N, K]`; under the name `logits` where no original output already is that value."""
    op.dtype = op.graph.dtype(found.value)
    rank = len(op.graph.shape(found.value) or (0, 0))
    if found.output is not None:
        return found.value
    if rank == 2:
        op.Identity(found.value, name=APPENDED)
        return found.value
    return op.Flatten(found.value, axis=1, name=APPENDED)


def _target(op: Builder, mode: str | int, found: Readout, labels: list[str] | None) -> None:
    """Declare the `target` input."""
    if mode not in ("optional", "required"):
        return
    model = op.graph.model
    model.graph.input.append(edit.info(TARGET, onnx.TensorProto.INT64, ["targets"]))
    if mode == "optional":
        model.graph.initializer.append(numpy_helper.from_array(np.asarray([targets.TOP1], np.int64), TARGET))


def fixed_class(mode: str | int, classes: int, labels: Sequence[str] | None) -> int | None:
    """The class a file is bound to by its target mode, None where the mode is `optional` or `required`."""
    if mode in ("optional", "required"):
        return None
    index = int(targets.resolve(mode, 1, classes, labels)[0])
    if index < 0:
        raise TargetError(
            f"target {mode!r}: a fixed target is a class from 0 to {classes - 1}; use 'optional' for top-1"
        )
    return index


def canonical(op: Builder, layer: Layer, value: str) -> str:
    """A value of the layer as float32 `[N, C, h, w]`."""
    if op.graph.dtype(layer.value) != onnx.TensorProto.FLOAT:
        value = op.Cast(value, to=onnx.TensorProto.FLOAT)
    if layer.layout == "NHWC":
        return op.Transpose(value, perm=[0, 3, 1, 2])
    if layer.layout == "NTC":
        height, width = layer.grid or (0, 0)
        if layer.prefix_tokens:
            value = op.Slice(value, [layer.prefix_tokens], [np.iinfo(np.int64).max], [1])
        return op.Reshape(op.Transpose(value, perm=[0, 2, 1]), [0, 0, height, width])
    return value


def _dims(shape: Sequence[Dim] | None) -> list[int | str | None]:
    """A shape for the manifest; a free batch dimension is called N."""
    dims = list(shape or ())
    if dims and not isinstance(dims[0], int):
        dims[0] = "N"
    return dims


def _preprocess(spec: Any, shape: list[int | str | None], layout: str) -> dict[str, Any]:
    """The manifest's entry: one in its own form stays as it was given, anything else is spelled out in full."""
    if not spec:
        return {}
    resolved = image.resolve(spec, shape, layout=layout).to_dict()
    if not isinstance(spec, dict) or not spec.keys() <= resolved.keys():
        return resolved
    # what an unmentioned resize means depends on the model's input: other clients must not have to work it out
    return dict(spec) if "resize" in spec else {**spec, "resize": resolved["resize"]}


def _oldest_runtime(graph: Graph) -> str:
    if any(node.op_type == "LayerNormalization" for node in graph.nodes):
        return OLDEST_WITH_LAYER_NORMALIZATION
    return OLDEST_RUNTIME.get(graph.opset, OLDEST_WITH_LAYER_NORMALIZATION)


def _manifest(
    graph: Graph,
    picture: onnx.ValueInfoProto,
    found: Readout,
    target: str | int,
    entries: list[dict[str, Any]],
    labels: list[str] | None,
    preprocess: Any,
    origin: dict[str, Any],
) -> Manifest:
    shape, layout = _dims(graph.shape(picture.name)), input_layout(graph, picture.name)
    held: Manifest = {
        "format": manifest.FORMAT,
        "requires": {
            "onnxruntime": _oldest_runtime(graph),
            "opset": graph.opset,
            "ir": graph.model.ir_version,
        },
        "input": {
            "name": picture.name,
            "layout": layout,
            "dtype": _DTYPES[graph.dtype(picture.name)],
            "shape": shape,
            "preprocess": _preprocess(preprocess, shape, layout),
        },
        "scores": found.describe(),
        "target": {"name": TARGET, "mode": target if target in ("optional", "required") else "constant"},
        "layers": entries,
        "labels": labels,
        "source": origin,
        "parity": None,
    }
    if any(node.op_type == "QuantizeLinear" for node in graph.nodes):
        held["approximations"] = ["quantization: rounding is taken for the identity, saturation for clipping"]
    own = normalization(graph, picture.name, layout == "NHWC")
    if own is not None:
        held["input"]["normalization"] = own
    fixed = fixed_class(target, found.size, labels)
    if fixed is not None:
        held["target"]["class"] = fixed
    return held
