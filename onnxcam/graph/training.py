"""Operators that a model was exported with in training mode: its results then depend on the batch, or on chance."""

from __future__ import annotations

from onnxcam.graph.view import Graph, attributes


def operators_in_training(graph: Graph) -> list[str]:
    """Name each BatchNormalization that takes its statistics from the batch, and each Dropout that drops values."""
    names = []
    for node in graph.nodes:
        if node.op_type == "BatchNormalization":
            # up to opset 13 further outputs meant training; the conversion to 18 keeps them
            training = bool(attributes(node).get("training_mode", 0)) or sum(map(bool, node.output)) > 1
        elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            mode = graph.constant(node.input[2])
            training = mode is None or bool(mode.any())
        else:
            continue
        if training:
            names.append(f"{node.op_type} {node.name!r}")
    return names
