"""The graph of a Gram matrix: inner products of the places of a layer, or of its channels, in double precision.

It runs in a session because NumPy's threads and those of ONNX Runtime, which spin for a while after a run, take the
cores from each other: the products of 49 × 2048 values took longer than ResNet-50.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph
from onnxcam.network.names import ACTIVATIONS, GRAM, POWER

_DOUBLE = onnx.TensorProto.DOUBLE
# the 1,024th power: of eigenvalues that are 2 % apart, the second one has vanished
_SQUARINGS = 10
LARGEST = 200  # rows of a matrix whose powers cost less than its eigenvectors


def gram(*, by_places: bool, power: bool) -> onnx.ModelProto:
    """`ACTIVATIONS` float32 `[N, C, h, w]` in; `GRAM` float64 `[N, n, n]` out, of values minus each channel's mean.

    Arguments:
        by_places: whether n is h·w, or C.
        power: also give `POWER` `[N, n, n]`, a power of the matrix as a multiple v vᵀ + small of its first eigenvector
            v, whose trace is 1 where nothing else is left in it.
    """
    model = onnx.ModelProto()
    model.ir_version = 8
    model.opset_import.add(domain="", version=18)
    model.graph.name = "gram"
    model.graph.input.append(edit.info(ACTIVATIONS, onnx.TensorProto.FLOAT, ["N", "C", "h", "w"]))
    op = Builder(Graph(model))
    emit_gram(op, ACTIVATIONS, by_places=by_places, power=power)
    outputs = [GRAM, POWER] if power else [GRAM]
    model.graph.output.extend(edit.info(name, _DOUBLE, ["N", "n", "n"]) for name in outputs)
    edit.add(model, op)
    return model


def emit_gram(op: Builder, activations: str, *, by_places: bool, power: bool) -> None:
    """Emit `GRAM` and perhaps `POWER` of `gram` from a value float32 `[N, C, h, w]`."""
    values = op.Reshape(op.Cast(activations, to=_DOUBLE), [0, 0, -1])
    # the means go first: of products of values far from zero, what differs would be lost
    centred = op.Sub(values, op.ReduceMean(values, [2], keepdims=1))
    turned = op.Transpose(centred, perm=[0, 2, 1])
    matrix = op.MatMul(turned, centred) if by_places else op.MatMul(centred, turned)
    op.Identity(matrix, name=GRAM)
    if power:
        numbers = op.Range(0, op.Squeeze(op.Slice(op.Shape(matrix), [1], [2]), [0]), 1)
        diagonal = op.Cast(op.Equal(op.Unsqueeze(numbers, [0]), op.Unsqueeze(numbers, [1])), to=_DOUBLE)
        tiny = np.asarray(np.finfo(np.float64).tiny)
        for _ in range(_SQUARINGS):
            trace = op.ReduceSum(op.Mul(matrix, diagonal), [1, 2], keepdims=1)
            share = op.Div(matrix, op.Max(trace, tiny))
            matrix = op.MatMul(share, share)
        op.Identity(matrix, name=POWER)
