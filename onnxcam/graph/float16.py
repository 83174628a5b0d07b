"""Weights stored as float16 and cast back in the graph: half the file size, the same float32 arithmetic."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxcam.graph.edit import info
from onnxcam.graph.load import Source, load

THRESHOLD = 1024
# rounding to nearest errs by at most 2^-11 = 4.9e-4 of a value in float16's normal range, by more only below 6.1e-5
TOLERANCE = 5e-4


def store_float16(source: Source, threshold: int = THRESHOLD, tolerance: float = TOLERANCE) -> onnx.ModelProto:
    """Copy a model and store its large float32 initializers as float16, each followed by a Cast to float32.

    The Cast takes over the initializer's name, so nothing else changes, and reads a constant, so a runtime folds it
    when it loads the model: the arithmetic stays float32, only the weights are rounded.

    Not converted: initializers of fewer than `threshold` elements, overridable ones (also listed as inputs), those with
    a value outside the range of float16 (beyond ±65504, not finite), and those whose rounding error exceeds
    `tolerance`, which happens where much of the tensor lies below float16's normal range. Constant nodes and
    initializers in subgraphs are ignored.

    Arguments:
        source: path, bytes or `ModelProto` (copied).
        threshold: smallest number of elements that is converted.
        tolerance: largest `‖rounded − weights‖ / ‖weights‖` accepted for a tensor.

    Raises:
        ModelError: the source is not a usable ONNX file.
    """
    model = load(source)
    graph = model.graph
    listed = {i.name for i in graph.input}
    names = listed | {t.name for t in graph.initializer} | {name for node in graph.node for name in node.output}
    names.update(node.name for node in graph.node)
    declared = {v.name for v in (*graph.value_info, *graph.output)}
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in listed:
            continue
        if int(np.prod(tensor.dims, dtype=np.int64)) < threshold:
            continue
        half = _rounded(numpy_helper.to_array(tensor), tolerance)
        if half is None:
            continue
        name, stored = tensor.name, f"{tensor.name}/float16"
        while stored in names:
            stored += "_"
        names.add(stored)
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{stored}/Cast", to=onnx.TensorProto.FLOAT))
        if name not in declared:
            graph.value_info.append(info(name, onnx.TensorProto.FLOAT, list(tensor.dims)))
        tensor.CopyFrom(numpy_helper.from_array(half, stored))
    for index, cast in enumerate(casts):
        graph.node.insert(index, cast)
    return model


def _rounded(weights: np.ndarray, tolerance: float) -> np.ndarray | None:
    """Round weights to float16; None if the error is too large."""
    with np.errstate(over="ignore"):
        half = weights.astype(np.float16)
    if not np.isfinite(half).all():
        return None
    exact = weights.astype(np.float64)
    error = np.linalg.norm((half.astype(np.float64) - exact).ravel())
    return half if error <= tolerance * np.linalg.norm(exact.ravel()) else None
