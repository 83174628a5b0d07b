"""Target layers: which values of a graph a CAM can be computed at, and which one by default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from onnxcam.errors import LayerError, listing, nearest
from onnxcam.graph.normalize import describe
from onnxcam.graph.view import Graph, Shape, attributes

NORMALIZATIONS = {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization"}
ELEMENTWISE = {
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Clip", "Sigmoid", "HardSigmoid",
    "HardSwish", "Gelu", "Mish", "Swish", "Tanh", "Erf", "Softplus", "Softsign", "Identity", "Dropout", "Cast",
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Sqrt", "Exp", "Abs", "Reciprocal", "Min", "Max",
    "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip
_TO_NHWC, _TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]
_CHANNELS_FIRST = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
                   "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN"}  # fmt: skip
_KEEP_LAYOUT = ELEMENTWISE | {"Concat", "Where", "Sum", "Slice", "Pad", "Resize"}


@dataclass(frozen=True)
class Layer:
    """A target layer.

    Attributes:
        name: what users call it.
        value: the graph value that holds its output.
        layout: `NCHW`, `NHWC` or `NTC` (tokens).
        shape: dimensions of the value: ints, symbols, or None.
        grid: height and width of the map, None where they are free.
        prefix_tokens: tokens before the grid (`NTC` only).
        default: whether it is the one taken when none is named.
    """

    name: str
    value: str
    layout: str | None = None
    shape: Shape | None = None
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    default: bool = False


def candidates(graph: Graph, scores: str) -> list[Layer]:
    """Target layers in graph order: each spatial convolution and residual Add, followed to where it settles.

    The last one is the default: in most networks a convolution's, in ConvNeXt or Swin the last block's residual Add.
    """
    found: dict[str, Layer] = {}
    last = None
    for node in _between(graph, scores):
        made = node.op_type in ("Conv", "ConvTranspose") or _residual(graph, node)
        if not made or not _spatial(graph.shape(node.output[0])):
            continue
        last = follow(graph, node.output[0])
        found.setdefault(last, describe_layer(graph, Layer(last, last)))
    if last is None:
        for node in _between(graph, scores):  # token models: the last block's token map
            shape = graph.shape(node.output[0])
            tokens = shape[1] if shape is not None and len(shape) == 3 else None
            if _residual(graph, node) and isinstance(tokens, int) and tokens >= 4:
                last = node.output[0]
                found[last] = describe_layer(graph, Layer(last, last))
    ordered = sorted(found.values(), key=lambda layer: graph.position[layer.value])
    return [replace(layer, default=layer.value == last) for layer in ordered]


def _residual(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node adds a value to what a block made of it: of one shape, no constants, not elementwise alone."""
    shape = graph.shape(node.output[0])
    if node.op_type != "Add" or shape is None:
        return False
    if any(graph.is_constant(name) or graph.shape(name) != shape for name in node.input):
        return False
    # x + 0.044715 x^3 inside GELU's tanh form joins nothing: one side is made of the other elementwise
    first, second = node.input
    if first in _elementwise_sources(graph, second) or second in _elementwise_sources(graph, first):
        return False
    # neither do the sums of siblings that an adaptive pooling is written as
    return _made_of(graph, first, second) or _made_of(graph, second, first)


def _made_of(graph: Graph, value: str, source: str) -> bool:
    """Whether a value is computed from another."""
    return any(source in node.input for node in graph.upstream([value])[0])


def _elementwise_sources(graph: Graph, value: str) -> set[str]:
    """The value and everything it is computed from by elementwise operators alone."""
    found = [value]
    for name in found:
        node = graph.producer.get(name)
        if node is not None and node.op_type in ELEMENTWISE:
            found.extend(source for source in node.input if source and source not in found)
    return set(found)


def default(graph: Graph, scores: str) -> Layer:
    """The layer taken when none is named.

    Raises:
        LayerError: the model has no spatial layer.
    """
    for layer in candidates(graph, scores):
        if layer.default:
            return layer
    raise LayerError(
        "the model has no spatial layer: no convolution with a height and width lies between the picture and the "
        "scores, so there is nothing a heatmap could be computed at"
    )


def resolve(graph: Graph, layer: str | Layer, scores: str) -> Layer:
    """A layer from a value name, a node name, or a `Layer` whose value is known.

    Raises:
        LayerError: no such value, or one that is not a spatial map.
    """
    if isinstance(layer, str):
        named = [node for node in graph.nodes if node.name == layer and layer not in graph]
        if layer not in graph and len(named) != 1:
            names = [c.name for c in candidates(graph, scores)] or list(graph.producer)
            near = nearest(layer, [*names, *(n.name for n in graph.nodes), *graph.producer])
            raise LayerError(
                f"no layer {layer!r} in the model; the nearest are {listing(near)} (`onnxcam layers` lists them all)"
            )
        layer = Layer(layer, layer if layer in graph else named[0].output[0])
    if layer.value not in graph:
        raise LayerError(f"layer {layer.name!r} should be the value {layer.value!r}, which the model does not have")
    return describe_layer(graph, layer)


def describe_layer(graph: Graph, layer: Layer) -> Layer:
    """Fill in layout, shape and grid.

    Raises:
        LayerError: the value is neither a spatial map nor a sequence of tokens.
    """
    shape = layer.shape or graph.shape(layer.value)
    if shape is None or not graph.is_float(layer.value):
        raise LayerError(f"layer {layer.name!r} has no known floating-point shape; choose another target layer")
    if len(shape) == 3:
        return _tokens(layer, shape)
    if len(shape) != 4 or not _spatial(shape):
        raise LayerError(
            f"layer {layer.name!r} has shape {describe(shape)}; expected a spatial map [N, C, h, w] or [N, h, w, C], "
            "or tokens [N, T, C]: choose an earlier layer (`onnxcam layers` lists them)"
        )
    layout = layer.layout or layout_of(graph, layer.value)
    dims = shape[2:] if layout == "NCHW" else shape[1:3]
    grid = (dims[0], dims[1]) if isinstance(dims[0], int) and isinstance(dims[1], int) else None
    return replace(layer, layout=layout, shape=shape, grid=grid)


def _tokens(layer: Layer, shape: Shape) -> Layer:
    tokens = shape[1]
    if layer.grid is not None:
        return replace(layer, layout="NTC", shape=shape)
    if isinstance(tokens, int):
        for prefix in (0, 1, 2, 5):  # none, class, class and distillation, class and four registers
            side = math.isqrt(max(tokens - prefix, 0))
            if side > 1 and side * side == tokens - prefix:
                return replace(layer, layout="NTC", shape=shape, grid=(side, side), prefix_tokens=prefix)
    raise LayerError(
        f"layer {layer.name!r} has shape {describe(shape)}: {tokens} tokens form no square grid; choose another layer"
    )


def follow(graph: Graph, value: str) -> str:
    """A convolution's output followed through normalisation, activation, residual Add and Concat, never pooling."""
    found = value
    while True:
        following = _activation(graph, value) or _joined(graph, value)
        if following is None:
            return found
        value = following
        if graph.is_float(value):  # not between a quantization and its inverse
            found = value


def _activation(graph: Graph, value: str) -> str | None:
    """The next value that everything computed from `value` goes through, by elementwise operators alone.

    SiLU is Sigmoid and Mul, GELU five operators: what counts is that they converge again.
    """
    inside = {value}
    frontier = {value}
    start = graph.position.get(value, -1)
    names = {o.name for o in graph.outputs}
    for node in graph.nodes[start + 1 :]:
        reads = [name for name in node.input if name in inside]
        if not reads:
            continue
        others = [name for name in node.input if name and name not in inside and not graph.is_constant(name)]
        simple = node.op_type in ELEMENTWISE or node.op_type in NORMALIZATIONS
        if not simple or others or names & inside - {value}:
            return None
        output = node.output[0]
        if graph.shape(output) != graph.shape(value):
            return None
        inside.add(output)
        frontier = {v for v in frontier | {output} if not _spent(graph, v, inside)}
        if frontier == {output}:
            return str(output)
    return None


def _spent(graph: Graph, value: str, inside: set[str]) -> bool:
    consumers = graph.consumers.get(value, [])
    return bool(consumers) and all(node.output[0] in inside for node in consumers)


def _joined(graph: Graph, value: str) -> str | None:
    """The residual Add or channel Concat that is the only reader of the value."""
    consumers = graph.consumers.get(value, [])
    if len(consumers) != 1 or value in {o.name for o in graph.outputs}:
        return None
    node = consumers[0]
    shape, joined = graph.shape(value), graph.shape(node.output[0])
    if shape is None or joined is None or len(shape) != len(joined) or not _spatial(joined):
        return None
    if node.op_type in ("Add", "Sum") and shape[1:] == joined[1:]:
        return str(node.output[0])
    if node.op_type == "Concat" and shape[2:] == joined[2:]:
        return str(node.output[0])
    return None


def layout_of(graph: Graph, value: str) -> str:
    """Whether a rank-4 value is `NCHW` or `NHWC`, found from the nearest operator that fixes it."""
    queue: list[tuple[str, bool]] = [(value, False)]
    seen = {value}
    for name, flipped in queue:
        nodes = [(graph.producer.get(name), True), *((n, False) for n in graph.consumers.get(name, []))]
        for node, made_here in nodes:
            if node is None:
                continue
            if node.op_type in _CHANNELS_FIRST and (made_here or node.input[0] == name):
                return "NHWC" if flipped else "NCHW"
            if node.op_type in ("LayerNormalization", "MatMul") and (made_here or node.input[0] == name):
                return "NCHW" if flipped else "NHWC"
            turns = node.op_type == "Transpose" and list(attributes(node).get("perm", [])) in (_TO_NHWC, _TO_NCHW)
            if not turns and node.op_type not in _KEEP_LAYOUT:
                continue
            for neighbour in (*node.output, *node.input):
                shape = graph.shape(neighbour)
                if neighbour in seen or shape is None or len(shape) != 4 or graph.is_constant(neighbour):
                    continue
                seen.add(neighbour)
                queue.append((neighbour, flipped if neighbour in _side(node, name) else flipped ^ turns))
    return "NCHW"


def _side(node: onnx.NodeProto, name: str) -> Sequence[str]:
    """The values on the same side of a node as `name`."""
    return list(node.input) if name in node.input else list(node.output)


def _spatial(shape: Shape | None) -> bool:
    """Rank 4 with more than one position, as far as the shape is known."""
    return shape is not None and len(shape) == 4 and shape[2:] != (1, 1) and shape[1:3] != (1, 1)


def _between(graph: Graph, scores: str) -> list[onnx.NodeProto]:
    """The nodes between the picture and the scores, in order."""
    reached = graph.downstream(i.name for i in graph.inputs)
    nodes, _ = graph.upstream([scores])
    return [node for node in nodes if any(name in reached for name in node.input)]
