"""What measured facts change in an explainable model, and what its manifest says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from onnxcam.graph.layers import Layer, describe_layer
from onnxcam.graph.shape_inference import refresh
from onnxcam.graph.view import Graph
from onnxcam.network.manifest import COUPLED, Manifest
from onnxcam.network.probe.facts import Probe
from onnxcam.network.score_facts import ScoreFacts


class Entries(NamedTuple):
    """What a manifest says of measured facts.

    Attributes:
        file: its `measured` entry; None where nothing was measured.
        layers: of each target layer, what its entry says.
    """

    file: dict[str, Any] | None
    layers: list[dict[str, Any]]


def correct(graph: Graph, picture: str, layers: Sequence[Layer], facts: Probe | None) -> tuple[Graph, list[Layer]]:
    """Correct what the graph suggests where the numbers say otherwise clearly: a layer's layout, and a batch that is
    declared free and can only be of one row.

    The model is edited in place.
    """
    if facts is None:
        return graph, list(layers)
    if facts.batch is not None:
        graph = _fix_batch(graph, picture, facts.batch)
    corrected = []
    for layer in layers:
        measured = facts.layer(layer.value)
        layout = None if measured is None else measured.place.layout
        if layout is not None and layout != layer.layout:
            layer = describe_layer(graph, replace(layer, layout=layout, grid=None))
        elif facts.batch is not None:
            layer = replace(layer, shape=graph.shape(layer.value))
        corrected.append(layer)
    return graph, corrected


def recorded(manifest: Manifest | None, layers: Sequence[Layer]) -> bool:
    """Whether a manifest has facts about the file and about all of these layers."""
    if manifest is None or manifest.get("measured") is None:
        return False
    placed = {entry.get("value") for entry in manifest["layers"] if entry.get("place") is not None}
    return all(layer.value in placed for layer in layers)


def contradiction(value: str, scores: ScoreFacts) -> str:
    """Say that scores look like probabilities by their numbers and cannot be any by their graph."""
    return (
        f"the scores {value!r} sum to {scores.total:g} and are never negative on the {scores.rows} pictures measured, "
        "as probabilities are, although the graph computes numbers without a bound: a softmax of them may be one too "
        "many; name the value to explain with `scores=` (on the command line: --scores NAME)"
    )


def describe_facts(
    facts: Probe | None, manifest: Manifest | None, layers: Sequence[Layer], *, singly: bool = False
) -> Entries:
    """The manifest's entries: of what was measured, or else as an explainable model had them.

    Arguments:
        manifest: of an explainable model, None of a plain one.
        layers: the target layers, corrected.
        singly: whether rows count as coupled where that was not measured.
    """
    previous = manifest or {}
    by_value = {entry.get("value"): entry for entry in previous.get("layers", [])}
    described = []
    for layer in layers:
        measured = None if facts is None else facts.layer(layer.value)
        if measured is None:
            entry = by_value.get(layer.value, {})
            described.append({key: entry[key] for key in ("place",) if key in entry})
            continue
        entry = measured.describe()
        if measured.place.corrected is not None and measured.place.layout == layer.layout:
            entry["place"] = measured.place.corrected.describe()
        described.append(entry)
    of_file: dict[str, Any] | None = previous.get("measured") if facts is None else facts.describe()
    single = facts is not None and facts.batch == 1
    if singly and not single and (of_file or {}).get("rows") is None:
        of_file = {**(of_file or {}), "rows": COUPLED}
    return Entries(of_file, described)


def _fix_batch(graph: Graph, picture: str, rows: int) -> Graph:
    """Declare the batch to be of so many rows, in place."""
    model = graph.model
    symbol = (graph.shape(picture) or (None,))[0]
    for info in model.graph.input:
        if info.name == picture:
            info.type.tensor_type.shape.dim[0].dim_value = rows
    for info in model.graph.output:
        dim = info.type.tensor_type.shape.dim
        if dim and not dim[0].HasField("dim_value") and (dim[0].dim_param or None) == symbol:
            dim[0].dim_value = rows
    del model.graph.value_info[:]
    return refresh(model)
