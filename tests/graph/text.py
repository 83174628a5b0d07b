"""Models written as ONNX text, weights as arrays."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser


def model(text: str, opset: int = 18, ir: int = 8, extra: str = "", **initializers: np.ndarray) -> onnx.ModelProto:
    """Parse a graph; `extra` is further operator sets, such as `, "ai.onnx.ml" : 3`."""
    proto = parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{extra}]>\n{text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in initializers.items())
    return proto
