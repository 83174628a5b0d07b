"""Cuts an explainable model at a target layer: the head makes scores and features, the tail explains from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnxcam.errors import ModelError
from onnxcam.graph import edit
from onnxcam.graph.load import Source
from onnxcam.graph.view import Graph
from onnxcam.network import manifest
from onnxcam.network.cut import crossing
from onnxcam.network.manifest import Manifest
from onnxcam.network.network import prepare


@dataclass(frozen=True)
class Tail:
    """The graph behind one target layer.

    Attributes:
        model: inputs `cut` and the target; outputs `outputs`.
        cut: values the head passes on: the layer's own, and what else the tail reads from before it.
        outputs: gradients and heatmaps of the layer, by the manifest's names.
        rowwise: whether every cut value has one row per picture, so that rows can be repeated for several targets.
    """

    model: onnx.ModelProto
    cut: tuple[str, ...]
    outputs: tuple[str, ...]
    rowwise: bool


def split(source: Source, layers: Sequence[str] | None = None) -> tuple[onnx.ModelProto, dict[str, Tail]]:
    """The head of an explainable model, and one tail per target layer.

    Arguments:
        source: an explainable model.
        layers: which of its layers, all by default.

    Returns:
        the head (picture in; original outputs, scores and every tail's cut values out) and the tails by layer name.

    Raises:
        ModelError: the model has no manifest.
    """
    graph = prepare(source)
    held = manifest.read(graph.model)
    if held is None:
        raise ModelError("only an explainable model can be split; make one with onnxcam.augment")
    entries = [e for e in held["layers"] if layers is None or e["name"] in layers]
    tails = {entry["name"]: tail_of(graph, held, entry) for entry in entries}
    return head_of(graph, held, (value for tail in tails.values() for value in tail.cut)), tails


def head_of(graph: Graph, held: Manifest, cut: Iterable[str] = ()) -> onnx.ModelProto:
    """Picture in; original outputs, scores and the `cut` values out. Nothing is differentiated."""
    kept = {*(held.get("source") or {}).get("outputs", []), held["scores"]["name"]}
    outputs = [o for o in graph.model.graph.output if o.name in kept]
    exposed = {o.name for o in outputs}
    for value in dict.fromkeys(cut):
        if value not in exposed:
            outputs.append(edit.info(value, graph.dtype(value), graph.shape(value)))
    pictures = [i for i in graph.inputs if i.name == held["input"]["name"]]
    model = edit.extract(graph, pictures, outputs)
    edit.prune(model)
    return model


def tail_of(graph: Graph, held: Manifest, entry: dict[str, Any], outputs: Sequence[str] | None = None) -> Tail:
    """The tail of one target layer; `outputs` are its gradients and heatmaps unless others are named."""
    value = entry["value"]
    names = list(outputs or [])
    if outputs is None:
        names = [entry["gradients"]] if entry["gradients"] else []
        names += entry["heatmaps"].values()
    cut = crossing(graph, held["input"]["name"], value, names)
    inputs = [edit.info(v, graph.dtype(v), graph.shape(v)) for v in cut]
    wanted = [o for o in graph.model.graph.output if o.name in names]
    rows = (graph.shape(held["input"]["name"]) or (None,))[0]
    free = [(graph.shape(v) or (None,))[0] for v in cut]
    rowwise = not isinstance(rows, int) and all(dim is not None and dim == rows for dim in free)
    return Tail(edit.extract(graph, inputs, wanted), cut, tuple(o.name for o in wanted), rowwise)
