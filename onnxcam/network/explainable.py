"""`onnxcam.augment`: any classifier in, the explainable model out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx

from onnxcam import image
from onnxcam.autodiff.sweep import require_path, sweep
from onnxcam.cam import methods as cam
from onnxcam.cam.registry import default_method
from onnxcam.errors import LayerError, ModelError, PreprocessError, listing
from onnxcam.graph import dynamic_size, edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.input_normalization import normalization
from onnxcam.graph.layers import Layer, default, members, placed_in, resolve
from onnxcam.graph.layout import input_layout
from onnxcam.graph.load import Source
from onnxcam.graph.training import operators_in_training
from onnxcam.graph.view import Dim, Graph
from onnxcam.network import gate as gates
from onnxcam.network import level_maps, metadata_labels, target_input
from onnxcam.network import manifest as manifests
from onnxcam.network.calibration.nodes import renew, seal
from onnxcam.network.calibration.record import of_manifest
from onnxcam.network.input_size import Sized, sized
from onnxcam.network.layout import Layout
from onnxcam.network.manifest import Manifest
from onnxcam.network.network import PICTURE_TYPES, Network, describe_source, dims
from onnxcam.network.pixels import wrap
from onnxcam.network.probe.application import contradiction, correct, describe_facts, recorded
from onnxcam.network.probe.facts import Probe
from onnxcam.network.probe.measurement import measure
from onnxcam.network.pyramid import levels_among, levels_of, record
from onnxcam.network.readout import settle
from onnxcam.targets.readout import Readout
from onnxcam.targets.task_labels import check_labels, fitting_labels, names_of_values

# the oldest onnxruntime that ran augmented models at each opset, tried from 1.15.1 on
OLDEST_RUNTIME = {18: "1.15.1", 19: "1.16.3", 20: "1.17.3", 21: "1.18.1", 22: "1.21.1", 23: "1.23.2", 24: "1.24.4"}
OLDEST_RUNTIME |= {25: "1.24.4", 26: "1.25.0", 27: "1.32.0", 28: "1.32.0"}
# up to 1.18.1 its graph optimiser aborts on an augmented ConvNeXt
OLDEST_WITH_LAYER_NORMALIZATION = "1.19.2"
_RAW = ("activations", "gradients")
_Methods = Mapping[str, Callable[..., str]]


def augment(
    source: Source,
    layers: Sequence[str | Layer] | str | None = None,
    methods: Sequence[str] | None = None,
    target: str | int = "optional",
    *,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
    outputs: str = "all",
    labels: Sequence[str] | None = None,
    preprocess: Any = None,
    origin: dict[str, Any] | None = None,
    gate: str | None = None,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    input_size: tuple[int, int] | None = None,
    portable: bool | None = None,
    pixels: bool | None = None,
    probe: bool | Probe = True,
    on_warning: Callable[[str], None] | None = None,
) -> onnx.ModelProto:
    """Make a classifier explainable: scores, activations, gradients and heatmaps from one plain ONNX file.

    Arguments:
        source: path, bytes or `ModelProto` of an image classifier; an explainable model is augmented anew.
        layers: target layers by value or node name; None for the default layer (or the ones the model already has).
        methods: CAM methods whose heatmaps the file computes; None for Grad-CAM, of a detector LayerCAM, of a
            segmentation HiResCAM.
        target: `optional`, `required`, or the one class (index or label) the file explains; `none` for a file without
            maps, such as one of a segmentation whose picture may have any size.
        scores: the output holding the class scores, where the model has several candidates.
        kind: what the scores are: `logits`, `probabilities`, `binary_logit`, `multilabel` (a sigmoid outside the file),
            or `regression` (one number per picture that is a quantity); None to find out from the file.
        task: `detect`, `segment`, `embed` or `regress`, of a model that is no classifier; None to find out.
        boxes_output: the output with the boxes of a detector, where the model has several candidates.
        outputs: `all`, or `heatmap` to leave activations and gradients out.
        labels: class names by index, kept in the manifest; if None those in the graph (a table that an ArgMax is
            looked up in, a ZipMap) or in the model's metadata (`names`, …).
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
        probe: whether to measure facts about the model on 12 pictures, see `onnxcam.probe`, or what was measured of it
            before; an explainable model whose manifest has them keeps them.
        on_warning: called with each doubt that was measured; None for Python's `warnings.warn`.
        portable: write a file that more runtimes compute right (tract, WebGPU, IREE), at some cost: one `target` for
            all rows of a batch, maximum pools differentiated by convolutions, a gate that decides in float32. None: as
            an explainable model is already.
        pixels: write a file that takes one picture, uint8 `[H, W, 3]` RGB of any size, instead of the prepared tensor,
            does the preprocessing itself, and returns `predictions`, `target_class`, `picture_heatmap` and `overlay`
            of the picture's own size as well. None: as an explainable model does already.

    Returns:
        a new `ModelProto`: the original outputs, `logits` where needed (`log_probabilities` where no logit can be
        reached), `activations` and `gradients` of the layers' shapes, `heatmap` float32 `[N, h, w]` after ReLU, with a
        gate also `fired`, bool `[N]`: the rows that meet it; of a calibrated file its calibration, unless its scores
        are others now; the manifest says which is which. Where the model has an output of such a name already, ours
        begins with `onnxcam.`.

    Raises:
        ModelError: not an image classifier, or invalid; `kind` contradicts the file.
        LayerError, MethodError, TargetError: no such layer, method or class.
        SettingError: the gate's condition cannot be read.
        LabelsError: not one label per class. PreprocessError: unknown, or not for this input.
        UnsupportedOperator: an operator between a target layer and the scores has no gradient rule.
    """
    if outputs not in ("all", "heatmap"):
        raise ModelError(f"outputs={outputs!r}; expected 'all' or 'heatmap'")
    names = [methods] if isinstance(methods, str) else methods or ()
    functions = {name: cam.find_graph(name).function for name in dict.fromkeys(names)}
    scale = probe.scale if isinstance(probe, Probe) else None
    network = Network(source, scores=scores, kind=kind, task=task, boxes_output=boxes_output, scale=scale)
    if methods is None:
        methods = (default_method(network.readout),)
        functions = {name: cam.find_graph(name).function for name in methods}
    previous = network.manifest or {}
    origin = dict(previous.get("source") or origin or describe_source(source, network.opset))
    named_scores = None if scores is None else network.graph.find(scores)
    labels = _labels(network, labels if labels is not None else previous.get("labels"))
    if preprocess is None:
        preprocess = previous.get("input", {}).get("preprocess")
    if gate is None:
        gate = network.condition or ""
    if portable is None:
        portable = previous.get("target", {}).get("rows") == manifests.SHARED
    if pixels is None:
        pixels = network.pixels
    if pixels and network.readout.task is not None:
        raise ModelError(
            f"a file of pixels predicts classes, and this model's task is {network.readout.task.name!r}: leave pixels "
            "out, and prepare pictures as the manifest says"
        )
    terms = previous if network.recalibrate is None else {**previous, "calibration": None}
    condition = gates.parse(gate, labels, network.readout.size, terms)
    if condition is not None:
        network.readout.require_probabilities(f"gate={gate!r}", in_file=True)
    requested = _requested(network, layers)
    fitted = sized(
        network.graph,
        network.readout.value,
        requested,
        size=input_size,
        likely=_likely_size(preprocess) if dynamic_size.is_dynamic(network.graph) else None,
    )
    where = fitted.graph, network.picture.name, network.readout
    levels = levels_of(*where, fitted.layers or ()) if requested is None else []
    requested = [level.layer for level in levels] or requested
    target_layers = _target_layers(network, fitted, requested, grid, prefix_tokens)
    levels = levels or levels_among(*where, target_layers, previous.get("layers", ()))
    facts = _measure(network, fitted.graph, target_layers, probe, preprocess)
    graph, target_layers = correct(fitted.graph, network.picture.name, target_layers, facts)
    measured = describe_facts(facts, network.manifest, target_layers, singly=network.singly)
    readout = network.readout
    if readout.task is None and facts is not None and facts.scores is not None and facts.value == readout.value:
        settled = settle(readout, facts.scores, declared=kind is not None)
        readout = settled if settled.kind == readout.kind else readout
        if readout is not settled:
            with contextlib.suppress(ModelError):  # the graph contradicts the numbers: that is said below
                return augment(
                    source, layers, methods, target, scores=scores, kind=settled.kind, outputs=outputs, labels=labels,
                    preprocess=preprocess, origin=origin, gate=gate, grid=grid, prefix_tokens=prefix_tokens,
                    input_size=input_size, portable=portable, pixels=pixels, on_warning=on_warning,
                    probe=replace(facts, notes=settled.warnings, scale=settled.scale),
                )  # fmt: skip
            readout = replace(readout, warnings=(*readout.warnings, contradiction(readout.value, facts.scores)))
    elif facts is not None and readout.task is None:
        readout = replace(readout, warnings=(*readout.warnings, *facts.notes))
    graph, target_layers, readout, tensor_names = _reserve(
        graph, target_layers, functions, readout, gated=condition is not None
    )

    op = Builder(graph, portable=portable)
    model = graph.model
    flat = _emit_logits(op, readout)
    size = Layout(input_layout(graph, network.picture.name)).size(dims(graph.shape(network.picture.name)))
    fixed = (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None
    gradients: list[str | None] = [None] * len(target_layers)
    seed = None
    if target == manifests.NONE:
        target_entry = {"name": target_input.names(readout)[0], "mode": manifests.NONE}
    else:
        seed = target_input.emit(op, readout, flat, target, labels, tensor_names, fixed)
        gradients[:] = sweep(op, seed.start, seed.cotangent, [layer.value for layer in target_layers])
        target_entry = seed.entry
    origin["outputs"] = [output.name for output in model.graph.output]
    if readout.output is None:
        _declare_logits(graph, readout)
    entries = []
    for layer, gradient in zip(target_layers, gradients, strict=True):
        tag = f"/{layer.name}" if len(target_layers) > 1 else ""
        raw = _expose(op, layer, gradient, tag, tensor_names) if outputs == "all" else dict.fromkeys(_RAW)
        heatmaps = {} if gradient is None else _emit_heatmaps(op, layer, gradient, functions, tag, tensor_names)
        entries.append({"name": layer.name, **raw, **_described(layer), "heatmaps": heatmaps, "value": layer.value})
    record(levels, entries, previous.get("layers", ()), getattr(readout.task, "candidates", None))
    if seed is not None and seed.box is not None:
        joined = {name: tensor_names["heatmap" + (f"/{name}" if len(functions) > 1 else "")] for name in functions}
        by_level = level_maps.join(op, entries, list(filter(None, gradients)), seed.box, joined)
        seed.entry.update({"heatmaps": by_level} if by_level else {})
    fires = None
    if condition is not None:
        fires = gates.emit(op, condition, flat, readout, tensor_names[gates.FIRED], of_manifest(terms))
    edit.add(model, op)
    if fires is not None:
        gates.enclose(model, fires, (graph.shape(flat) or ("N",))[0], target_layers, entries, tensor_names[gates.FIRED])
    edit.prune(model)
    edit.write_out_windows(model)

    if scores is not None:  # where there are several candidates, augmenting again means the same one
        origin["scores"] = named_scores if named_scores is not None and named_scores in graph else readout.value
    if kind is not None:
        origin["kind"] = kind
    if network.values:
        origin["values"] = list(network.values)
    manifest = _manifest(graph, network.picture, readout, target_entry, entries, labels, preprocess, origin)
    doubt = fitted.doubt if network.manifest is None else network.manifest["input"].get("size")
    if doubt is not None and input_size is None:
        manifest["input"]["size"] = doubt
    rewrites = list(dict.fromkeys([*previous.get("rewrites", []), *network.rewrites]))
    if rewrites:
        manifest["rewrites"] = rewrites
    if condition is not None:
        manifest["gate"] = {"condition": gate, "output": tensor_names[gates.FIRED]}
    if measured.file is not None:
        manifest["measured"] = measured.file
    for entry, layer_facts in zip(entries, measured.layers, strict=True):
        entry.update(layer_facts)
    stale = renew(previous, network.recalibrate, model, manifest, named_scores) if previous else []
    if pixels:
        wrap(model, manifest)
    seal(model, manifest)
    manifests.write(model, manifest)
    for sentence in [*stale, *manifests.measured_warnings(manifest)]:
        if on_warning is not None:
            on_warning(sentence)
        else:
            warnings.warn(sentence, stacklevel=2)
    return model


def _measure(
    network: Network, graph: Graph, target_layers: Sequence[Layer], probe: bool | Probe, preprocess: Any
) -> Probe | None:
    """Facts about a model and its target layers; None where its manifest has them, or without `probe`."""
    if isinstance(probe, Probe):
        return probe
    if not probe or recorded(network.manifest, target_layers):
        return None
    picture = network.picture.name
    shape = dims(graph.shape(picture))
    resolved = None
    with contextlib.suppress(PreprocessError):  # what is wrong with it is said when the manifest is written
        resolved = image.resolve(preprocess, shape, layout=input_layout(graph, picture)) if preprocess else None
    return measure(graph, picture, network.readout, target_layers, preprocess=resolved)


def _labels(network: Network, labels: Sequence[str] | None) -> list[str] | None:
    """Class names by index: those of the caller, else those in the graph or in the model's metadata.

    Raises:
        LabelsError: not one per class.
    """
    readout = network.readout
    named = check_labels(labels, readout) or network.labels
    if named is None and readout.numeric:
        return names_of_values(readout)
    if named is not None or not readout.size:
        return named
    properties = {p.key: p.value for p in network.graph.model.metadata_props}
    return fitting_labels(readout, lambda size: metadata_labels.find(properties, size).labels)


def _requested(network: Network, layers: Sequence[str | Layer] | str | None) -> Sequence[str | Layer] | None:
    """Resolve names of the file: the layers of the caller, else those of an explainable model; None for the default."""
    if layers is None:
        return list(network.layers.values()) or None
    names = [layers] if isinstance(layers, (str, Layer)) else layers
    return [network.layers.get(name, name) if isinstance(name, str) else name for name in names]


def _likely_size(preprocess: Any) -> tuple[int, int] | None:
    """Height and width that a preprocessing makes, as far as it tells without the model."""
    with contextlib.suppress(PreprocessError):  # what is wrong with it is said once the model's input is known
        return image.resolve(preprocess).output_size
    return None


def _target_layers(
    network: Network,
    fitted: Sized,
    requested: Sequence[str | Layer] | None,
    grid: tuple[int, int] | None,
    prefix_tokens: int | None,
) -> list[Layer]:
    """The layers to explain, resolved.

    Raises:
        LayerError: none, no such layer, one named twice, or a grid for a layer without tokens.
    """
    if requested is None:
        requested = [default(fitted.layers or ())]
    if not requested:
        raise LayerError("`layers` is empty; name at least one target layer, or pass None for the default")
    scores = network.readout.value
    resolved = [
        placed_in(fitted.graph, resolve(fitted.graph, layer, scores, grid=grid, prefix_tokens=prefix_tokens), scores)
        for layer in requested
    ]
    resolved = [members(fitted.graph, layer, scores) if layer.default else layer for layer in resolved]
    if (grid is not None or prefix_tokens is not None) and not any(Layout.of_layer(layer).tokens for layer in resolved):
        raise LayerError(
            f"layer {listing(layer.name for layer in resolved)} is not a layer of tokens: leave grid and prefix_tokens "
            "out"
        )
    names = [layer.name for layer in resolved]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise LayerError(f"layer {listing(sorted(twice))} is named twice; name each target layer once")
    return resolved


class _Names(dict[str, str]):
    """The names of what is added: the usual ones, others where the model has an input or output of that name."""

    def __missing__(self, name: str) -> str:
        return name


def _reserve(
    graph: Graph, target_layers: list[Layer], functions: _Methods, readout: Readout, *, gated: bool
) -> tuple[Graph, list[Layer], Readout, _Names]:
    """Free the names that the explainable model needs: internal values that have one are renamed."""
    fixed = {*target_input.names(readout), *_RAW, "heatmap"}
    fixed |= ({readout.appended} if readout.output is None else set()) | ({gates.FIRED} if gated else set())
    fixed |= {f"{stem}/{layer.name}" for layer in target_layers for stem in (*_RAW, "heatmap")}
    fixed |= {f"heatmap/{layer.name}/{name}" for layer in target_layers for name in functions}
    fixed |= {f"heatmap/{name}" for name in functions}
    public = {o.name for o in graph.outputs} | {i.name for i in graph.inputs}
    names = _Names()
    for name in sorted(fixed & public):
        names[name] = f"onnxcam.{name}"
        while names[name] in graph or names[name] in public:
            names[name] += "_"
    readout = replace(readout, name=names[readout.appended]) if readout.appended in names else readout
    occupied = sorted(name for name in fixed if name in graph and name not in public)
    if not occupied:
        return graph, target_layers, readout, names
    require_path(graph, readout.value, [layer.value for layer in target_layers])  # errors have the file's own names
    new_names = {name: f"{name}_renamed" for name in occupied}
    while any(new in graph for new in new_names.values()):
        new_names = {old: new + "_" for old, new in new_names.items()}
    edit.rename(graph.model, new_names)
    renamed = [replace(layer, value=new_names.get(layer.value, layer.value)) for layer in target_layers]
    return Graph(graph.model), renamed, replace(readout, value=new_names.get(readout.value, readout.value)), names


def _emit_logits(op: Builder, readout: Readout) -> str:
    """Emit the scores under their name where no original output is them; return them as `[N, K]`."""
    op.dtype = op.graph.dtype(readout.value)
    rank = len(op.graph.shape(readout.value) or (0, 0))
    if readout.output is not None:
        return readout.value
    if rank == 2:
        op.Identity(readout.value, name=readout.appended)
        return readout.value
    return op.Flatten(readout.value, axis=1, name=readout.appended)


def _declare_logits(graph: Graph, readout: Readout) -> None:
    """Make the emitted scores an output."""
    rows: Dim = (graph.shape(readout.value) or ("N",))[0]
    graph.model.graph.output.append(
        edit.info(readout.appended, graph.dtype(readout.value), [rows, readout.columns or None])
    )


def _expose(op: Builder, layer: Layer, gradient: str | None, tag: str, names: _Names) -> dict[str, Any]:
    """Make a layer's activations and gradients outputs; return their names as in the manifest."""
    graph = op.graph
    outputs: dict[str, str | None] = {}
    for key, value in zip(_RAW, (layer.value, gradient), strict=True):
        if value is None:
            outputs[key] = None
            continue
        name = op.Identity(value, name=names[key + tag])
        outputs[key] = name
        graph.model.graph.output.append(edit.info(name, graph.dtype(layer.value), layer.shape))
    return outputs


def _emit_heatmaps(
    op: Builder, layer: Layer, gradient: str, functions: _Methods, tag: str, names: _Names
) -> dict[str, str]:
    """Emit a layer's heatmaps and make them outputs; return their names by method."""
    layout, kind = Layout.of_layer(layer), op.graph.dtype(layer.value)
    a, da = layout.emit_canonical(op, layer.value, kind), layout.emit_canonical(op, gradient, kind)
    float32 = onnx.TensorProto.FLOAT
    size = [(layer.shape or ("N",))[0], *(layer.grid or (None, None))]
    outputs = {}
    for name, method in functions.items():
        outputs[name] = names["heatmap" + tag + (f"/{name}" if len(functions) > 1 else "")]
        op.dtype = float32
        op.Relu(method(op, a, da), name=outputs[name])
        op.graph.model.graph.output.append(edit.info(outputs[name], float32, size))
    return outputs


def _described(layer: Layer) -> dict[str, Any]:
    """How a layer's positions lie, for the manifest."""
    return {
        "layout": layer.layout,
        "shape": dims(layer.shape),
        "grid": None if layer.grid is None else list(layer.grid),
        "prefix_tokens": layer.prefix_tokens,
        **({} if layer.window is None else {"window": layer.window.describe()}),
        **({} if layer.crops is None else {"crops": [window.describe() for window in layer.crops]}),
        "covers": layer.covers,
        **({} if layer.beside is None else {"beside": list(layer.beside)}),
    }


def _preprocess(spec: Any, shape: list[int | str | None], layout: str) -> dict[str, Any]:
    """The manifest's entry: a dict in the manifest's form is kept, any other form is written out in full."""
    if not spec:
        return {}
    resolved = image.resolve(spec, shape, layout=layout).to_dict()
    if not isinstance(spec, dict) or not spec.keys() <= resolved.keys():
        return resolved
    # what an unmentioned resize means depends on the model's input: other clients must not have to work it out
    return dict(spec) if "resize" in spec else {**spec, "resize": resolved["resize"]}


def _oldest_runtime(graph: Graph) -> str:
    if graph.opset <= 21 and any(node.op_type == "LayerNormalization" for node in graph.nodes):
        return OLDEST_WITH_LAYER_NORMALIZATION
    return OLDEST_RUNTIME[graph.opset]


def _manifest(
    graph: Graph,
    picture: onnx.ValueInfoProto,
    readout: Readout,
    target: dict[str, Any],
    entries: list[dict[str, Any]],
    labels: list[str] | None,
    preprocess: Any,
    origin: dict[str, Any],
) -> Manifest:
    shape, layout = dims(graph.shape(picture.name)), input_layout(graph, picture.name)
    manifest: Manifest = {
        "format": manifests.FORMAT,
        "requires": {
            "onnxruntime": _oldest_runtime(graph),
            "opset": graph.opset,
            "ir": graph.model.ir_version,
        },
        "input": {
            "name": picture.name,
            "layout": layout,
            "dtype": PICTURE_TYPES[graph.dtype(picture.name)],
            "shape": shape,
            "preprocess": _preprocess(preprocess, shape, layout),
        },
        "scores": readout.describe(),
        "target": target,
        "layers": entries,
        "labels": labels,
        "source": origin,
        "parity": None,
    }
    if any(node.op_type in ("DynamicQuantizeLinear", "QuantizeLinear") for node in graph.nodes):
        manifest["approximations"] = ["quantization: rounding is taken for the identity, saturation for clipping"]
    training = operators_in_training(graph)
    if training:
        manifest.setdefault("approximations", []).append(
            f"training mode: {listing(training)} makes a picture's results depend on its batch, or on chance"
        )
    inside = normalization(graph, picture.name, Layout(layout).channels == 3)
    if inside is not None:
        manifest["input"]["normalization"] = inside
    return manifest
