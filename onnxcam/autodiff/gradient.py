"""`onnxcam.gradient`: the model that also computes the vector-Jacobian product of one value."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxcam.autodiff.sweep import differentiable, sweep
from onnxcam.errors import ModelError
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.load import Source
from onnxcam.graph.normalize import prepare


def gradient(source: Source, of: str, wrt: Sequence[str]) -> onnx.ModelProto:
    """Add reverse-mode differentiation of one value to a model.

    Arguments:
        source: path, bytes or `ModelProto` of any model whose operators on the way have rules.
        of: the value (or node) to differentiate; any floating-point value of the graph.
        wrt: values (or nodes, or weights) to differentiate with respect to.

    Returns:
        the model with one more input, `cotangent.<of>` of the shape and type of `of`, and one more output
        `grad.<wrt>` per `wrt`: the sum over `of` of cotangent · d of / d wrt, in the shape and type of that `wrt`.

    Raises:
        ModelError: no such value, a value that is not floating point, or a `wrt` that does not reach `of`.
        UnsupportedOperator: an operator on the way has no rule.
    """
    wrt = [wrt] if isinstance(wrt, str) else list(dict.fromkeys(wrt))
    if not wrt:
        raise ModelError("`wrt` is empty; name at least one value to differentiate with respect to")
    graph = prepare(source)
    start, ends = graph.find(of), [graph.find(name) for name in wrt]
    for name, value in zip((of, *wrt), (start, *ends), strict=True):
        if not differentiable(graph, value):
            kind = onnx.TensorProto.DataType.Name(graph.dtype(value)) if graph.dtype(value) else "unknown"
            raise ModelError(f"{name!r} has element type {kind}; only floating-point values have gradients")
    op = Builder(graph)
    cotangent = f"cotangent.{of}"
    grads = sweep(op, start, cotangent, list(dict.fromkeys(ends)))
    by_value = dict(zip(dict.fromkeys(ends), grads, strict=True))
    for name, value in zip(wrt, ends, strict=True):
        op.Identity(by_value[value], name=f"grad.{name}")
    model = graph.model
    model.graph.input.append(edit.info(cotangent, graph.dtype(start), graph.shape(start)))
    for name, value in zip(wrt, ends, strict=True):
        model.graph.output.append(edit.info(f"grad.{name}", graph.dtype(value), graph.shape(value)))
    edit.add(model, op)
    return model
