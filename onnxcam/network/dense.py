"""The first linear layer behind a layer of the network, where only what acts channel by channel lies in between.

So end VGG, AlexNet and their kind: pooling, flattening, and a linear layer that holds most of the network's weights. A
change of one channel, or at one place, reaches few of its columns; the rest need not be multiplied again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcam.graph.view import Graph, attributes
from onnxcam.network.names import INPUT
from onnxcam.network.network import Network

_BY_CHANNEL = frozenset(
    {"AveragePool", "Clip", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "Relu"}
)
_FEWEST = 1 << 20  # weights of a layer for which this pays


@dataclass(frozen=True)
class Dense:
    """A linear layer u = z W + b.

    Attributes:
        features: name of z, `[N, channels * cells]`, channel by channel.
        result: name of u, `[N, O]`.
        cells: columns of z per channel.
    """

    features: str
    result: str
    channels: int
    cells: int
    weights_name: str
    transposed: bool
    bias_name: str | None

    def weights(self, graph: Graph) -> np.ndarray:
        """W, float32 `[channels * cells, O]`, contiguous: a copy of the weights where they are stored transposed."""
        stored = numpy_helper.to_array(graph.initializers[self.weights_name])
        return np.ascontiguousarray(stored.T if self.transposed else stored)

    def bias(self, graph: Graph) -> np.ndarray:
        """b, float32 `[O]` or one number."""
        if self.bias_name is None:
            return np.zeros(1, np.float32)
        return np.asarray(numpy_helper.to_array(graph.initializers[self.bias_name]).reshape(-1), np.float32)


def dense_after(network: Network, layer: str) -> Dense | None:
    """The linear layer behind a layer, None where the network does not end so."""
    if layer == INPUT:
        return None
    graph, cut = network.graph, network.cut(layer)
    value, shape = cut.layer.value, graph.shape(cut.layer.value)
    sizes = [size for size in (shape or ())[1:] if isinstance(size, int)]
    if cut.values != (value,) or not cut.free or cut.affine or cut.layer.layout != "NCHW" or len(sizes) != 3:
        return None
    while (node := _only_consumer(graph, value)) is not None:
        if node.op_type in ("Gemm", "MatMul"):
            return _dense(graph, node, value, sizes[0])
        if not _by_channel(graph, node, sizes[0]):
            return None
        value = node.output[0]
    return None


def _only_consumer(graph: Graph, value: str) -> onnx.NodeProto | None:
    """The one node that reads a value, as its first input, None if there are several or the file gives it out."""
    nodes = graph.consumers.get(value, [])
    if len(nodes) != 1 or list(nodes[0].input).count(value) != 1 or nodes[0].input[0] != value:
        return None
    return nodes[0] if graph.dtype(value) == onnx.TensorProto.FLOAT else None


def _by_channel(graph: Graph, node: onnx.NodeProto, channels: int) -> bool:
    """Whether a node computes each channel from that channel alone, and keeps their order."""
    if any(graph.consumers.get(name) for name in node.output[1:]):
        return False
    if any(name and not graph.is_constant(name) for name in node.input[1:]):
        return False
    shapes = [graph.shape(name) or () for name in (node.input[0], node.output[0])]
    if node.op_type in _BY_CHANNEL:
        return len(shapes[0]) == len(shapes[1]) and shapes[1][1] == shapes[0][1]
    if node.op_type not in ("Flatten", "Reshape") or len(shapes[0]) != 4 or len(shapes[1]) != 2:
        return False
    sizes = [size for size in shapes[0][1:] if isinstance(size, int)]
    # with as many columns as a picture has values, one row per picture stays one
    return len(sizes) == 3 and sizes[0] == channels and shapes[1][1] == prod(sizes)


def _dense(graph: Graph, node: onnx.NodeProto, value: str, channels: int) -> Dense | None:
    attrs, shape = attributes(node), graph.shape(value) or ()
    weights = graph.initializers.get(node.input[1])
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    plain = attrs.get("alpha", 1.0) == attrs.get("beta", 1.0) == 1.0 and not attrs.get("transA", 0)
    if weights is None or (bias is not None and bias not in graph.initializers) or not plain or len(shape) != 2:
        return None
    columns, transposed = shape[1], bool(attrs.get("transB", 0))
    fits = weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) == 2 and prod(weights.dims) >= _FEWEST
    if not fits or not isinstance(columns, int) or columns % channels or weights.dims[int(transposed)] != columns:
        return None
    if bias is not None and prod(graph.initializers[bias].dims) not in (1, weights.dims[1 - int(transposed)]):
        return None
    return Dense(value, node.output[0], channels, columns // channels, node.input[1], transposed, bias)
