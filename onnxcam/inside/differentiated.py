"""The part of a network from the picture up to one value, alone and with the gradient back to the picture."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxcam.autodiff.seed import unrounded
from onnxcam.autodiff.sweep import sweep
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.normalize import at_size
from onnxcam.graph.shape_inference import undeclare
from onnxcam.graph.view import Graph
from onnxcam.network.layout import Layout
from onnxcam.network.names import COTANGENT, GRADIENT, INPUT
from onnxcam.network.network import Network

VALUE = "onnxcam.value"


def fixed(graph: Graph, picture: str, shape: Sequence[int]) -> Graph:
    """The graph of pictures of one shape; the original stays unchanged."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for info in model.graph.input:
        if info.name == picture:
            for dim, size in zip(info.type.tensor_type.shape.dim, shape, strict=True):
                dim.dim_value = size
    for info in model.graph.output:
        undeclare(info)
    del model.graph.value_info[:]
    return at_size(Graph(model))


def forward(network: Network, values: Sequence[str]) -> onnx.ModelProto:
    """Picture in, in the model's own element type; these values out, and nothing behind them is computed."""
    graph, picture = network.graph, network.picture.name
    outputs = [edit.info(value, graph.dtype(value), graph.shape(value)) for value in dict.fromkeys(values)]
    inputs = [edit.info(picture, graph.dtype(picture), graph.shape(picture))]
    model = edit.extract(graph, inputs, outputs)
    edit.prune(model)
    return model


def ascent(network: Network, value: str, shape: Sequence[int], *, portable: bool = False) -> onnx.ModelProto:
    """Picture and `COTANGENT` in; `VALUE`, Σ cotangent · value in float32, and the `GRADIENT` at the picture out.

    Nothing behind the value is computed. The picture is of floats also where the model takes whole numbers; rounding
    in quantized models is passed straight through.

    Arguments:
        value: of the network, downstream of the picture.
        shape: of the picture.
        portable: prefer operators that more runtimes have.

    Raises:
        UnsupportedOperator: an operator on the way has no gradient rule.
        ModelError: the model computes with the whole numbers of its picture.
    """
    picture = network.picture.name
    graph = fixed(network.graph_from(INPUT), picture, shape)
    op = Builder(graph, portable=portable)
    op.dtype = graph.dtype(value)
    start = unrounded(graph, value) if value == network.readout.value else value
    (gradient,) = sweep(op, start, COTANGENT, [picture])
    op.dtype = onnx.TensorProto.FLOAT
    real, weights = (value, COTANGENT) if graph.dtype(value) == op.dtype else (op.cast(value), op.cast(COTANGENT))
    op.ReduceSum(op.Mul(real, weights), keepdims=0, name=VALUE)
    op.dtype = graph.dtype(picture)
    op.Identity(gradient, name=GRADIENT)
    whole = onnx.ModelProto()
    whole.CopyFrom(graph.model)
    edit.add(whole, op)
    inputs = [
        edit.info(picture, graph.dtype(picture), graph.shape(picture)),
        edit.info(COTANGENT, graph.dtype(value), graph.shape(value)),
    ]
    outputs = [
        edit.info(VALUE, onnx.TensorProto.FLOAT, []),
        edit.info(GRADIENT, graph.dtype(picture), graph.shape(picture)),
    ]
    model = edit.extract(Graph(whole), inputs, outputs)
    edit.prune(model)
    return model


def picture_shape(network: Network, layout: Layout, size: tuple[int, int], channels: int) -> tuple[int, ...]:
    """The shape of a batch of pictures of this size: of the model's own number of rows, or of one."""
    declared = (network.graph.shape(network.picture.name) or (None,))[0]
    return layout.shape(declared if isinstance(declared, int) and declared > 0 else 1, channels, *size)
