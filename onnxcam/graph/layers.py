"""Target layers: which values of a graph a CAM can be computed at, and which one by default."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxcam.errors import LayerError, listing, nearest
from onnxcam.graph.layout import has_tokens, layout_of
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.tokens import Patches, positions, shape_of
from onnxcam.graph.view import Graph, Shape

_CONVOLUTIONS, _STEPS = having(Trait.CONVOLVES), having(Trait.ENDS_LAYER)
_NORMALIZATIONS = having(Trait.NORMALIZES)
# none; class; class and distillation; class and four registers
PREFIXES = (0, 1, 2, 5)
_OVERRIDE = "say how they lie with `onnxcam export --grid ROWSxCOLUMNS --prefix COUNT` (grid=, prefix_tokens=)"


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

    Maps of tokens count where it is known how they lie on the picture, or where there is nothing else. The last one
    whose positions still reach the scores is the default: in most networks a convolution's, in ConvNeXt or Swin the
    last block's residual Add; where only a class token is read, what enters the last block's attention.
    """
    nodes = _between(graph, scores)
    patches = Patches(graph, scores) if has_tokens(graph, nodes) else None
    found: dict[str, Layer] = {}
    others: dict[str, Layer] = {}
    summed = None  # the last one that a residual Add made
    for node in nodes:
        value = node.output[0]
        residual = _residual(graph, node)
        if patches is not None and residual:
            layer = _block(graph, patches, value)
            if layer is not None:
                known = _placed(patches, layer)
                (found if known else others).setdefault(layer.value, layer)
                summed = layer.value if known else summed
            continue
        made = residual or node.op_type in _CONVOLUTIONS
        if made and _spatial(shape_of(graph, value)) and (patches is None or patches.reach(value)):
            last = follow(graph, value)
            if patches is None or not patches.positions.scattered(last):
                found.setdefault(last, describe_layer(graph, Layer(last, last)))
    ordered = sorted((found or others).values(), key=lambda layer: graph.position[layer.value])
    chosen = ordered[-1].value if ordered else None
    if patches is not None and summed is not None and chosen is not None and chosen != summed:
        # a convolution beside the stream, such as one that encodes positions, does not stand for the block
        chosen = chosen if patches.all_pass(graph, summed, chosen, scores) else summed
    return [replace(layer, default=layer.value == chosen) for layer in ordered]


def _block(graph: Graph, patches: Patches, value: str) -> Layer | None:
    """The layer that a residual sum in a network with tokens settles at, None where it is no map or of no effect."""
    shape, where = shape_of(graph, value), patches.positions
    if not patches.reach(value) or not (_spatial(shape) or len(shape or ()) == 3):
        return None
    last = follow(graph, value, patches.pass_through)
    moved = None if where.layout(last) else _moved(graph, patches, last)
    if moved is not None:  # put back from tokens or windows to where they lie on the picture
        last = follow(graph, moved, patches.pass_through)
    elif where.scattered(last) or not (_spatial(shape) or _is_tokens(graph, shape)):
        return None
    layer = Layer(last, last, shape=shape_of(graph, last))
    grid = where.grid(last)
    if layer.shape is None or len(layer.shape) != 3:
        return describe_layer(graph, replace(layer, layout=where.layout(last)))
    if grid is not None:
        return replace(layer, layout="NTC", grid=grid[0], prefix_tokens=grid[1])
    return replace(layer, layout="NTC")


def _placed(patches: Patches, layer: Layer) -> bool:
    """Whether it is known how a layer lies on the picture; of a picture of open size it cannot be asked for more."""
    if layer.layout == "NTC":
        return layer.grid is not None
    fixed = all(isinstance(dim, int) for dim in (layer.shape or ())[1:])
    return not fixed or patches.positions.layout(layer.value) is not None


def _moved(graph: Graph, patches: Patches, value: str) -> str | None:
    """The map `[N, C, h, w]` or `[N, h, w, C]` that all positions of a value are only moved to, None without one."""
    found = None
    while True:
        readers = [node for node in graph.consumers.get(value, []) if patches.pass_through(node, value)]
        if len(readers) != 1 or readers[0].op_type not in ("Reshape", "Transpose"):
            return found
        value = readers[0].output[0]
        if patches.positions.layout(value) is not None:
            found = value


def _is_tokens(graph: Graph, shape: Shape | None) -> bool:
    """Whether a shape is `[N, T, C]` with N as the picture has it."""
    if shape is None or len(shape) != 3 or not isinstance(shape[1], int) or shape[1] < 4:
        return False
    return any((graph.shape(i.name) or (None,))[0] == shape[0] for i in graph.inputs)


def _residual(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node adds a value to what a block made of it: of one shape, no constants, not elementwise alone."""
    shape = shape_of(graph, node.output[0])
    if node.op_type != "Add" or shape is None:
        return False
    if any(graph.is_constant(name) or shape_of(graph, name) != shape for name in node.input):
        return False
    # x + 0.044715 x^3 inside GELU's tanh form joins nothing: one side is made of the other elementwise
    first, second = node.input
    if first in _elementwise_sources(graph, second) or second in _elementwise_sources(graph, first):
        return False
    # neither do the sums of siblings that an adaptive pooling is written as
    return _made_of(graph, first, second) or _made_of(graph, second, first)


def _made_of(graph: Graph, value: str, source: str) -> bool:
    """Whether a value is computed from another."""
    start = graph.position.get(source, -1)
    waiting = [value]
    for name in waiting:
        if graph.position.get(name, -1) > start:  # what comes before it cannot read it
            waiting += [read for read in graph.producer[name].input if read and read not in waiting]
    return value != source and source in waiting


def _elementwise_sources(graph: Graph, value: str) -> set[str]:
    """The value and everything it is computed from by elementwise operators alone."""
    found = [value]
    for name in found:
        node = graph.producer.get(name)
        if node is not None and node.op_type in _STEPS:
            found.extend(source for source in node.input if source and source not in found)
    return set(found)


def default(found: Sequence[Layer]) -> Layer:
    """The layer taken when none is named.

    Raises:
        LayerError: the model has no spatial layer.
    """
    for layer in found:
        if layer.default:
            return layer
    raise LayerError(
        "the model has no spatial layer: no convolution with a height and width lies between the picture and the "
        "scores, so there is nothing a heatmap could be computed at"
    )


def resolve(
    graph: Graph,
    layer: str | Layer,
    scores: str,
    *,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
) -> Layer:
    """A layer from a value name, a node name, or a `Layer` whose value is known.

    Arguments:
        grid, prefix_tokens: how tokens lie on the picture, where the graph does not tell or is to be overruled.

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
    if grid is not None or prefix_tokens is not None:
        layer = _laid_out(graph, layer, grid, prefix_tokens)
    return describe_layer(graph, layer)


def _laid_out(graph: Graph, layer: Layer, grid: tuple[int, int] | None, prefix_tokens: int | None) -> Layer:
    """A layer of tokens that lie as the user says, of which one half may be left out; other layers as they are."""
    shape = layer.shape or shape_of(graph, layer.value) or ()
    if len(shape) != 3:
        return layer
    tokens = shape[1]
    if grid is None:
        assert prefix_tokens is not None
        side = math.isqrt(max(tokens - prefix_tokens, 0)) if isinstance(tokens, int) else 0
        found = positions(graph).grid(layer.value)
        grid = found[0] if found is not None and found[1] == prefix_tokens else (side, side)
    elif prefix_tokens is None:
        prefix_tokens = max(tokens - grid[0] * grid[1], 0) if isinstance(tokens, int) else 0
    return replace(layer, layout="NTC", grid=grid, prefix_tokens=prefix_tokens)


def describe_layer(graph: Graph, layer: Layer) -> Layer:
    """Fill in layout, shape and grid.

    Raises:
        LayerError: the value is neither a spatial map nor a sequence of tokens.
    """
    shape = layer.shape or shape_of(graph, layer.value)
    if shape is None or not graph.is_float(layer.value):
        raise LayerError(f"layer {layer.name!r} has no known floating-point shape; choose another target layer")
    if len(shape) == 3:
        return _tokens(graph, layer, shape)
    if len(shape) != 4 or not _spatial(shape):
        raise LayerError(
            f"layer {layer.name!r} has shape {describe(shape)}; expected a spatial map [N, C, h, w] or [N, h, w, C], "
            "or tokens [N, T, C]: choose an earlier layer (`onnxcam layers` lists them)"
        )
    layout = layer.layout
    if layout is None and has_tokens(graph, graph.nodes):
        layout = positions(graph).layout(layer.value)
        if positions(graph).scattered(layer.value):
            raise LayerError(
                f"layer {layer.name!r} has shape {describe(shape)}, but its positions do not lie row by row, as where "
                "they are sorted into windows; choose another layer (`onnxcam layers` lists them)"
            )
    layout = layout or layout_of(graph, layer.value)
    dims = shape[2:] if layout == "NCHW" else shape[1:3]
    grid = (dims[0], dims[1]) if isinstance(dims[0], int) and isinstance(dims[1], int) else None
    return replace(layer, layout=layout, shape=shape, grid=grid)


def _tokens(graph: Graph, layer: Layer, shape: Shape) -> Layer:
    """A layer of tokens, laid out as the layer says, as the graph tells, or on the one square that fits."""
    layer = replace(layer, layout="NTC", shape=shape)
    tokens = shape[1]
    if layer.grid is not None:
        (rows, columns), prefix = layer.grid, layer.prefix_tokens
        if isinstance(tokens, int) and rows * columns + prefix != tokens:
            raise LayerError(
                f"layer {layer.name!r} has {tokens} tokens, but {rows} x {columns} patches and {prefix} tokens before "
                f"them are {rows * columns + prefix}; {_OVERRIDE}"
            )
        return layer
    known = positions(graph)
    found = known.grid(layer.value)
    fitting = [found] if found is not None else []
    if found is None and not known.scattered(layer.value) and isinstance(tokens, int):
        for prefix in PREFIXES:
            side = math.isqrt(max(tokens - prefix, 0))
            if side > 1 and side * side == tokens - prefix:
                fitting.append(((side, side), prefix))
    if len(fitting) == 1:
        return replace(layer, grid=fitting[0][0], prefix_tokens=fitting[0][1])
    if known.scattered(layer.value):
        why = "they are not in the order of the picture's rows"
    elif fitting:
        ways = " or ".join(f"{grid[0]} x {grid[1]} after {prefix} others" for grid, prefix in fitting)
        why = f"{tokens} tokens may be {ways}"
    else:
        why = f"{tokens} tokens form no square grid" if isinstance(tokens, int) else "their number is not fixed"
    raise LayerError(
        f"layer {layer.name!r} has shape {describe(shape)}, and how its tokens lie on the picture is unknown: {why}; "
        f"{_OVERRIDE}, or choose another layer"
    )


def follow(graph: Graph, value: str, counts: Callable[[onnx.NodeProto, str], bool] | None = None) -> str:
    """A convolution's output followed through normalisation, activation, residual Add and Concat, never pooling.

    Arguments:
        counts: whether what a node reads of a value is of interest; everything is by default.
    """
    found = value
    while True:
        following = _activation(graph, value, counts) or _joined(graph, value)
        if following is None:
            return found
        value = following
        if graph.is_float(value):  # not between a quantization and its inverse
            found = value


def _activation(graph: Graph, value: str, counts: Callable[[onnx.NodeProto, str], bool] | None = None) -> str | None:
    """The next value that everything computed from `value` goes through, by elementwise operators alone.

    SiLU is Sigmoid and Mul, GELU five operators: what counts is that they converge again.
    """
    inside = {value}
    frontier = {value}
    start = graph.position.get(value, -1)
    names = {o.name for o in graph.outputs}
    for node in graph.nodes[start + 1 :]:
        reads = [name for name in node.input if name in inside and (counts is None or counts(node, name))]
        if not reads:
            continue
        others = [name for name in node.input if name and name not in inside and not graph.is_constant(name)]
        # a normalisation may be written out, with means over the channels of each token
        statistic = node.op_type == "ReduceMean" and _per_token(graph, value, node.output[0])
        simple = statistic or node.op_type in _STEPS or node.op_type in _NORMALIZATIONS
        if not simple or others or names & inside - {value}:
            return None
        output = node.output[0]
        if shape_of(graph, output) != shape_of(graph, value) and not _per_token(graph, value, output):
            return None
        inside.add(output)
        frontier = {v for v in frontier | {output} if not _spent(graph, v, inside, counts)}
        if frontier == {output} and shape_of(graph, output) == shape_of(graph, value):
            return str(output)
    return None


def _per_token(graph: Graph, value: str, output: str) -> bool:
    """Whether `output` is one number for each token of `value`, `[N, T, C]`."""
    shape = shape_of(graph, value)
    return shape is not None and len(shape) == 3 and shape_of(graph, output) == (*shape[:2], 1)


def _spent(
    graph: Graph, value: str, inside: set[str], counts: Callable[[onnx.NodeProto, str], bool] | None = None
) -> bool:
    consumers = [n for n in graph.consumers.get(value, []) if counts is None or counts(n, value)]
    return bool(consumers) and all(node.output[0] in inside for node in consumers)


def _joined(graph: Graph, value: str) -> str | None:
    """The residual Add or channel Concat that is the only reader of the value."""
    consumers = graph.consumers.get(value, [])
    if len(consumers) != 1 or value in {o.name for o in graph.outputs}:
        return None
    node = consumers[0]
    shape, joined = shape_of(graph, value), shape_of(graph, node.output[0])
    if shape is None or joined is None or len(shape) != len(joined) or not _spatial(joined):
        return None
    if node.op_type in ("Add", "Sum") and shape[1:] == joined[1:]:
        return str(node.output[0])
    if node.op_type == "Concat" and shape[2:] == joined[2:]:
        return str(node.output[0])
    return None


def _spatial(shape: Shape | None) -> bool:
    """Rank 4 with more than one position, as far as the shape is known."""
    return shape is not None and len(shape) == 4 and shape[2:] != (1, 1) and shape[1:3] != (1, 1)


def _between(graph: Graph, scores: str) -> list[onnx.NodeProto]:
    """The nodes between the picture and the scores, in order."""
    reached = graph.downstream(i.name for i in graph.inputs)
    nodes, _ = graph.upstream([scores])
    return [node for node in nodes if any(name in reached for name in node.input)]
