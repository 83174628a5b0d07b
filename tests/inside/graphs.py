"""Networks of these tests, written as ONNX text."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def text(graph: str, **weights: np.ndarray) -> onnx.ModelProto:
    """The model of a graph, with these weights."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {graph}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model
