"""Cuts an explainable model at a target layer: the head makes scores and features, the tail explains from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from onnxcam.errors import ModelError
from onnxcam.graph import edit, manifest
from onnxcam.graph.load import Source
from onnxcam.graph.manifest import Manifest
from onnxcam.graph.normalize import prepare
from onnxcam.graph.view import Graph


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
    tails = {entry["name"]: _tail(graph, held, entry) for entry in entries}
    kept = [*(held.get("source") or {}).get("outputs", []), held["scores"]["name"]]
    outputs = [o for o in graph.model.graph.output if o.name in kept]
    exposed = {o.name for o in outputs}
    for value in dict.fromkeys(v for tail in tails.values() for v in tail.cut):
        if value not in exposed:
            outputs.append(edit.info(value, graph.dtype(value), graph.shape(value)))
    pictures = [i for i in graph.inputs if i.name == held["input"]["name"]]
    return edit.extract(graph, pictures, outputs), tails


def _tail(graph: Graph, held: Manifest, entry: dict[str, object]) -> Tail:
    value = str(entry["value"])
    heatmaps = entry["heatmaps"]
    names = [str(entry["gradients"])] if entry["gradients"] else []
    names += list(heatmaps.values()) if isinstance(heatmaps, dict) else []
    from_picture = graph.downstream([held["input"]["name"]])
    given = (from_picture - graph.downstream([value])) | {value}
    _, outside = graph.upstream(names, stop=given)
    cut = tuple(sorted(outside & given, key=lambda v: graph.position.get(v, -1)))
    inputs = [edit.info(v, graph.dtype(v), graph.shape(v)) for v in cut]
    outputs = [o for o in graph.model.graph.output if o.name in names]
    rows = (graph.shape(held["input"]["name"]) or (None,))[0]
    free = [(graph.shape(v) or (None,))[0] for v in cut]
    rowwise = not isinstance(rows, int) and all(dim is not None and dim == rows for dim in free)
    model = edit.extract(graph, inputs, outputs)
    return Tail(model, cut, tuple(o.name for o in outputs), rowwise)
