"""A classifier read from any source, ready to be explained."""

from __future__ import annotations

from onnxcam.graph.load import Source, load
from onnxcam.graph.normalize import normalize
from onnxcam.graph.view import Graph
from onnxcam.network.gate import ungate


def prepare(source: Source) -> Graph:
    """Load a model and normalise it; a gated explainable model computes its maps always then.

    Raises:
        ModelError: the model is invalid or cannot be brought to opset 18.
    """
    model = load(source)
    condition = ungate(model)
    graph = normalize(model)
    graph.source_gate = condition
    return graph
