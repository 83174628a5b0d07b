"""A classifier read from any source, ready to be explained: its graph, picture, readout and layers."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxcam.errors import ModelError
from onnxcam.graph import edit, layers
from onnxcam.graph.batch_positions import batch_positions
from onnxcam.graph.large_model import LargeModel
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import input_layout
from onnxcam.graph.load import Source, load, serialize
from onnxcam.graph.normalize import normalize
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import describe, refresh
from onnxcam.graph.view import FLOATS, Graph, Shape
from onnxcam.network import columns, heads
from onnxcam.network import cut as cuts
from onnxcam.network import manifest as manifests
from onnxcam.network.agreement import Interface, require_agreement
from onnxcam.network.cut import Cut
from onnxcam.network.gate import ungate
from onnxcam.network.input_size import sized
from onnxcam.network.layout import crops_of, window_of
from onnxcam.network.manifest import Manifest
from onnxcam.network.names import INPUT
from onnxcam.network.pixels import unwrap
from onnxcam.network.pyramid import levels_of
from onnxcam.network.single_picture import with_batch_axis
from onnxcam.targets.readout import Readout

# element types of a picture, as the manifest names them
PICTURE_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.UINT8: "uint8",
}
# operators that leave whole numbers what they are, up to the Cast that makes floats of them
_MOVING = having(Trait.MOVES) | {"Pad"}


class Network:
    """One classifier, normalised, without what `augment` added to it.

    Arguments:
        source: a classifier or an explainable model: path, bytes or `ModelProto`.
        scores: the output (or any value) that holds the class scores, where there are several candidates; those that
            an explainable model was made for by default.
        kind: what the scores are, one of `onnxcam.targets.readout.KINDS`; None to find out, or as an explainable model
            was declared.
        task: one of `onnxcam.targets.tasks.TASKS`, for a model that is no classifier; None to find out.
        boxes_output: the output with the boxes, of a detector with several candidates for it.
        scale: what probabilities sum to, with `kind` "probabilities" and a graph that does not tell; 1 if None.

    Attributes:
        graph: the normalised graph.
        picture: its one input.
        readout: the class scores, or the columns of another task.
        labels: class names that the graph itself holds, None without.
        values: the values that are joined to the columns of a task; none of a classifier.
        manifest: of an explainable model, without its gate; None of any other.
        pixels: whether an explainable model took the picture itself, which this network does not.
        condition: the condition of an explainable model's gate, None without a gate.
        recalibrate: why the calibration of an explainable model no longer fits it, None where it does or has none.
        layers: the layers that an explainable model exposes, by name.
        opset: of the source, before it was upgraded.
        rewrites: sentences about operators of the source that were written as others.

    Raises:
        ModelError: the model is invalid, cannot be brought to opset 18, or is not an image classifier.
    """

    def __init__(
        self,
        source: Source,
        *,
        scores: str | None = None,
        kind: str | None = None,
        task: str | None = None,
        boxes_output: str | None = None,
        scale: float | None = None,
    ) -> None:
        model = load(source)
        self.pixels = unwrap(model) is not None
        self.condition = ungate(model)
        self.recalibrate = _stale_calibration(model)
        graph = normalize(model)
        self.opset, self.rewrites = graph.source_opset, graph.rewrites
        graph = with_batch_axis(graph)
        self.manifest = manifests.read(graph.model)
        self.layers: dict[str, Layer] = {}
        if self.manifest is not None:
            require_agreement(self.manifest, Interface.of_graph(graph))
            entries = self.manifest["layers"]
            self.layers = {entry["name"]: layer_of(entry) for entry in entries if entry.get("value")}
            graph = restore(graph, self.manifest)
            for entry in entries:
                layer, output = self.layers.get(entry["name"]), entry["activations"]
                if layer is not None and layer.value not in graph and output in graph:
                    # a tool such as onnxsim has given the layer's value the name of the output that showed it
                    self.layers[layer.name] = replace(layer, value=output)
        self.picture = _picture(graph)
        head = self._recorded_task(graph, scores, kind, task, boxes_output)
        if head is None:
            if self.manifest is not None:
                kind = kind or (self.manifest.get("source") or {}).get("kind")
                scores = scores or _recorded_scores(graph, self.manifest)
                scale = scale or float(self.manifest["scores"].get("scale", 1))
            head = heads.attach(
                graph, self.picture.name, scores, kind,
                task=task, boxes_output=boxes_output, recognise=self.manifest is None, scale=scale,
            )  # fmt: skip
        self.graph, self.readout, self.labels, self.values = head.graph, head.readout, head.labels, head.values
        self._cuts: dict[str, Cut] = {}
        self._floating: Graph | None = None

    def _recorded_task(
        self, graph: Graph, scores: str | None, kind: str | None, task: str | None, boxes_output: str | None
    ) -> heads.Head | None:
        """The head that an explainable model has on record; None of a classifier, or where another one is asked for."""
        if self.manifest is None or (scores, kind, boxes_output) != (None, None, None):
            return None
        recorded = Readout.from_manifest(self.manifest["scores"])
        values = (self.manifest.get("source") or {}).get("values") or []
        if recorded.task is None or task not in (None, recorded.task.name):
            return None
        if not values or any(value not in graph for value in values):
            raise ModelError("the explainable model no longer has the outputs its manifest names; export it again")
        attached, readout = columns.attach(graph, values, recorded.task, recorded.warnings)
        return heads.Head(attached, readout, None, tuple(values))

    @property
    def score_type(self) -> np.dtype[Any]:
        """The element type of the scores."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.graph.dtype(self.readout.value)))

    def cut(self, name: str) -> Cut:
        """Where the network is cut for a layer, `INPUT` for the picture itself.

        Raises:
            LayerError: no such layer.
        """
        if name not in self._cuts:
            self._cuts[name] = cuts.cut(
                self.graph, self.picture.name, self.readout.value, self.layers, name, self._positions
            )
        return self._cuts[name]

    @cached_property
    def _positions(self) -> set[str]:
        """The values that count over the whole batch; none where that is one picture."""
        alone = (self.graph.shape(self.picture.name) or (None,))[0] == 1
        return set() if alone else batch_positions(self.graph, self.picture.name)

    @property
    def singly(self) -> bool:
        """Whether the scores may depend on where in a batch a picture stands, see `Cut`."""
        return self.cut(INPUT).singly

    def graph_from(self, name: str) -> Graph:
        """The graph behind a cut. Whole numbers have no gradient: behind the picture they are taken as floats."""
        if name != INPUT or self.graph.dtype(self.picture.name) in FLOATS:
            return self.graph
        if self._floating is None:
            self._floating = _float_picture(self.graph, self.picture.name)
        return self._floating


def _stale_calibration(model: onnx.ModelProto) -> str | None:
    """Why the calibration of an explainable model no longer fits its scores."""
    manifest = manifests.read(model)
    if manifest is None or not manifest.get("calibration"):
        return None
    from onnxcam.network.calibration import nodes

    return nodes.changed(model, manifest)


def prepare(source: Source) -> Graph:
    """Load a model and normalise it, with what `augment` added; a gated model computes its maps always then.

    Raises:
        ModelError: the model is invalid or cannot be brought to opset 18.
    """
    model = load(source)
    unwrap(model)
    ungate(model)
    return normalize(model)


def restore(graph: Graph, manifest: Manifest) -> Graph:
    """The classifier inside an explainable model: everything onnxcam added taken away."""
    model = graph.model
    original = (manifest.get("source") or {}).get("outputs")
    if original is None:
        added = {"logits"} | {entry[key] for entry in manifest["layers"] for key in ("activations", "gradients")}
        added |= {name for entry in manifest["layers"] for name in entry["heatmaps"].values()}
        added |= set((manifest.get("calibration") or {}).get("outputs", {}).values())
        original = [o.name for o in model.graph.output if o.name not in added]
    outputs = [o for o in model.graph.output if o.name in original]
    if not outputs:
        raise ModelError("the explainable model no longer has the outputs its manifest names; export it again")
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    added_inputs = {manifest["target"]["name"], manifest["target"].get("region")}
    inputs = [i for i in model.graph.input if i.name not in added_inputs]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    edit.prune(model)
    manifests.write(model, None)
    return refresh(model)


def layer_of(entry: dict[str, Any]) -> Layer:
    """The layer that a manifest's entry describes."""
    grid = entry.get("grid")
    return Layer(
        entry["name"],
        entry["value"],
        layout=entry["layout"],
        grid=None if grid is None else (grid[0], grid[1]),
        prefix_tokens=entry.get("prefix_tokens", 0),
        window=window_of(entry),
        crops=crops_of(entry),
        beside=None if entry.get("beside") is None else tuple(entry["beside"]),
    )


def list_layers(source: Source, *, task: str | None = None, boxes_output: str | None = None) -> list[Layer]:
    """Candidate target layers in graph order; exactly one is the default.

    Arguments:
        source: path, bytes or `ModelProto` of an image classifier; of an explainable model, the layers it exposes
            come under their own names.
        task, boxes_output: of a model that is no classifier, as of `onnxcam.augment`.

    Returns:
        layers with `name`, `shape`, `layout` and `default`.

    Raises:
        ModelError: not an image classifier.
        LayerError: the model has no spatial layer.
    """
    return survey(source, task=task, boxes_output=boxes_output)[0]


def survey(
    source: Source,
    input_size: tuple[int, int] | None = None,
    *,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
) -> tuple[list[Layer], dict[str, Any]]:
    """`list_layers`, and the picture as these layers need it: the manifest's `layout`, `shape` and `size`, and the
    `warnings` about the scores.

    Arguments:
        input_size: height and width of the picture, where the file leaves them open.
        scores, kind, task, boxes_output: as of `onnxcam.augment`.
    """
    network = Network(source, scores=scores, kind=kind, task=task, boxes_output=boxes_output)
    picture = network.picture.name
    fitted = sized(network.graph, network.readout.value, size=input_size)
    candidates = fitted.layers or []
    layers.default(candidates)
    levels = levels_of(fitted.graph, picture, network.readout, candidates)
    if levels:  # of a pyramid the last one is the default of what is no box
        last = levels[-1].layer.value
        candidates = [replace(layer, default=layer.value == last) for layer in candidates]
    exposed = {layer.value: layer for layer in network.layers.values()}
    for place, layer in enumerate(candidates):
        recorded = exposed.get(layer.value)
        if recorded is not None:  # the file may say more of its tokens than the graph
            candidates[place] = replace(
                layer, name=recorded.name, grid=recorded.grid, prefix_tokens=recorded.prefix_tokens
            )
    graph = fitted.graph
    doubt = fitted.doubt if network.manifest is None else network.manifest["input"].get("size")
    doubt = None if input_size is not None else doubt
    described = {"layout": input_layout(graph, picture), "shape": dims(graph.shape(picture)), "size": doubt}
    return candidates, described | {"warnings": list(network.readout.warnings)}


def dims(shape: Shape | None) -> list[int | str | None]:
    """A shape for the manifest; a free batch dimension is called N."""
    sizes = list(shape or ())
    if sizes and not isinstance(sizes[0], int):
        sizes[0] = "N"
    return sizes


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


def _picture(graph: Graph) -> onnx.ValueInfoProto:
    """The one input, a picture batch.

    Raises:
        ModelError: several inputs, or one that is not a batch of pictures.
    """
    inputs: list[onnx.ValueInfoProto] = [i for i in graph.inputs if graph.consumers.get(i.name)]
    if len(inputs) != 1:
        shapes = ", ".join(f"{i.name!r} {describe(graph.shape(i.name))}" for i in inputs)
        raise ModelError(f"the model has {len(inputs)} inputs ({shapes}); expected exactly one, a batch of pictures")
    shape = graph.shape(inputs[0].name)
    if shape is None or len(shape) != 4 or graph.dtype(inputs[0].name) not in PICTURE_TYPES:
        kind = onnx.TensorProto.DataType.Name(graph.dtype(inputs[0].name))
        raise ModelError(
            f"the model's input {inputs[0].name!r} is {kind} {describe(shape)}; expected a batch of pictures, "
            "[N, C, H, W] or [N, H, W, C], or one picture of three channels, [3, H, W] or [H, W, 3]"
        )
    return inputs[0]


def _recorded_scores(graph: Graph, manifest: Manifest) -> str | None:
    """The scores an explainable model was made for, as a name the restored model has."""
    name = (manifest.get("source") or {}).get("scores")
    if isinstance(name, str) and name in graph:
        return name
    outputs = {o.name for o in graph.outputs}
    return next((name for key in ("name", "probabilities") if (name := manifest["scores"].get(key)) in outputs), None)


def _float_picture(graph: Graph, picture: str) -> Graph:
    """The graph of a picture of floats, where nothing but a Cast reads the whole numbers."""
    queue = [picture]
    while queue:
        for node in graph.consumers.get(queue.pop(), []):
            if node.op_type in _MOVING:
                queue += node.output
            elif node.op_type not in ("Cast", "CastLike", "Shape", "Size"):
                raise ModelError(
                    f"the model computes {node.op_type} ({node.name!r}) with the whole numbers of its input "
                    f"{picture!r}: there is no gradient at the input; use a method of a layer"
                )
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for info in model.graph.input:
        if info.name == picture:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del model.graph.value_info[:]
    return refresh(model)
