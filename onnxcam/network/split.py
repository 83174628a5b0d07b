"""Split an explainable model at its target layers: the head runs where the model serves, the rest explains later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnxcam.errors import ModelError
from onnxcam.graph import edit
from onnxcam.graph.load import Source
from onnxcam.graph.view import Graph
from onnxcam.network import manifest as manifests
from onnxcam.network.agreement import Interface, require_agreement
from onnxcam.network.cut import crossing
from onnxcam.network.manifest import Manifest
from onnxcam.network.network import prepare


@dataclass(frozen=True)
class Part:
    """The part of an explainable model that follows a target layer.

    Attributes:
        model: `cut` and the target in, `outputs` out.
        cut: values that the head passes on: the layer's, and whatever else the part reads from before the layer.
        outputs: gradients and heatmaps of the layer, by the manifest's names.
        rowwise: whether every cut value has one row per picture, so that rows can be repeated for several targets.
    """

    model: onnx.ModelProto
    cut: tuple[str, ...]
    outputs: tuple[str, ...]
    rowwise: bool


def split(source: Source, layers: Sequence[str] | None = None) -> tuple[onnx.ModelProto, dict[str, Part]]:
    """Split an explainable model into its head and one part per target layer.

    Arguments:
        source: an explainable model.
        layers: which of its layers, all by default.

    Returns:
        the head (picture in; original outputs, scores and every part's cut values out) and the parts by layer name.

    Raises:
        ModelError: the model has no manifest.
    """
    graph = prepare(source)
    manifest = manifests.read(graph.model)
    if manifest is None:
        raise ModelError("only an explainable model can be split; make one with onnxcam.augment")
    require_agreement(manifest, Interface.of_graph(graph))
    entries = [entry for entry in manifest["layers"] if layers is None or entry["name"] in layers]
    parts = {entry["name"]: part_after(graph, manifest, entry) for entry in entries}
    return head_of(graph, manifest, (value for part in parts.values() for value in part.cut)), parts


def head_of(graph: Graph, manifest: Manifest, cut: Iterable[str] = ()) -> onnx.ModelProto:
    """Extract the head: picture in; original outputs, scores and the `cut` values out. Nothing is differentiated."""
    names = {*(manifest.get("source") or {}).get("outputs", []), manifest["scores"]["name"]}
    outputs = [output for output in graph.model.graph.output if output.name in names]
    exposed = {output.name for output in outputs}
    for value in dict.fromkeys(cut):
        if value not in exposed:
            outputs.append(edit.info(value, graph.dtype(value), graph.shape(value)))
    pictures = [info for info in graph.inputs if info.name == manifest["input"]["name"]]
    model = edit.extract(graph, pictures, outputs)
    edit.prune(model)
    return model


def part_after(graph: Graph, manifest: Manifest, entry: dict[str, Any], outputs: Sequence[str] | None = None) -> Part:
    """Extract the part after one target layer.

    Arguments:
        entry: the layer's, of the manifest.
        outputs: of the model, those that the part computes; gradients and heatmaps of the layer by default.
    """
    value = entry["value"]
    names = list(outputs or [])
    if outputs is None:
        names = [entry["gradients"]] if entry["gradients"] else []
        names += entry["heatmaps"].values()
    picture = manifest["input"]["name"]
    cut = crossing(graph, picture, value, names)
    inputs = [edit.info(name, graph.dtype(name), graph.shape(name)) for name in cut]
    infos = [output for output in graph.model.graph.output if output.name in names]
    rows = (graph.shape(picture) or (None,))[0]
    leading = [(graph.shape(name) or (None,))[0] for name in cut]
    rowwise = not isinstance(rows, int) and all(dim is not None and dim == rows for dim in leading)
    return Part(edit.extract(graph, inputs, infos), cut, tuple(info.name for info in infos), rowwise)
