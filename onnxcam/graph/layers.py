"""Target layers: the values of a graph at which a CAM can be computed, and the default one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxcam.errors import LayerError, listing, nearest
from onnxcam.graph.coverage import PART, covers
from onnxcam.graph.crops import crops
from onnxcam.graph.ends import Ends, spatial
from onnxcam.graph.layout import has_tokens, layout_of, works_on_tokens
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.parallel import beside, preferred
from onnxcam.graph.residual import is_residual
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.tokens import Patches, patches_of, positions, shape_of, window_of
from onnxcam.graph.view import Graph, Shape
from onnxcam.graph.window import Window

_CONVOLUTIONS = having(Trait.CONVOLVES)
# none; class; class and distillation; class and four registers
PREFIXES = (0, 1, 2, 5)
_OVERRIDE = "set the grid with `onnxcam export --grid ROWSxCOLUMNS --prefix COUNT` (grid=, prefix_tokens=)"


@dataclass(frozen=True)
class Layer:
    """A target layer.

    Attributes:
        name: its name for users.
        value: the graph value that is its output.
        layout: `NCHW`, `NHWC` or `NTC` (tokens).
        shape: dimensions of the value: ints, symbols, or None.
        grid: height and width of the map, None where they are dynamic.
        prefix_tokens: number of tokens before the grid (`NTC` only).
        default: whether it is the default layer.
        window: the part of the model's input that the grid covers, where it is not all of it: after a crop, a flip, a
            padding or a transposition inside the graph; None also where it cannot be derived.
        crops: of a layer with several rows for each picture, what each covers of the input, see `onnxcam.graph.crops`;
            None where there is one row, or that is not certain.
        covers: `all` if every path from the picture to the scores passes the layer, else `part`; None if not derived.
        beside: of a default layer that covers a part, the last layers of what runs parallel to it; else None.
    """

    name: str
    value: str
    layout: str | None = None
    shape: Shape | None = None
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    default: bool = False
    window: Window | None = None
    crops: tuple[Window, ...] | None = None
    covers: str | None = None
    beside: tuple[str, ...] | None = None


def candidates(graph: Graph, scores: str) -> list[Layer]:
    """Find target layers in graph order: each spatial convolution and residual Add, see `Ends`.

    Values of tokens count if their grid is known, or if there are no others. The default is the last layer whose
    positions reach the scores: in most networks a convolution's, in ConvNeXt or Swin the last block's residual Add;
    where only a class token is read, the input of the last block's attention.
    """
    nodes = graph.between((i.name for i in graph.inputs), [scores])
    patches = patches_of(graph, scores) if has_tokens(graph, nodes) else None
    ends, ends_of_blocks = Ends(graph), None if patches is None else Ends(graph, patches.pass_through)
    layers: dict[str, Layer] = {}
    without_grid: dict[str, Layer] = {}
    last_residual: str | None = None
    for node in nodes:
        value = node.output[0]
        residual = is_residual(graph, node)
        if patches is not None and ends_of_blocks is not None and residual:
            layer = _block(graph, patches, value, ends_of_blocks)
            if layer is not None:
                has_grid = _has_grid(patches, layer)
                (layers if has_grid else without_grid).setdefault(layer.value, layer)
                last_residual = layer.value if has_grid else last_residual
            continue
        is_map = residual or node.op_type in _CONVOLUTIONS
        if is_map and spatial(shape_of(graph, value)) and (patches is None or patches.reach(value)):
            last = ends.of(value)
            if patches is None or not patches.positions.scattered(last):
                layers.setdefault(last, describe_layer(graph, Layer(last, last)))
    ordered = sorted((layers or without_grid).values(), key=lambda layer: graph.position[layer.value])
    best = ordered[-1].value if ordered else None
    if patches is not None and last_residual is not None and best is not None and best != last_residual:
        # a convolution on a side path, such as one that encodes positions, does not represent the block
        best = best if patches.all_pass(graph, last_residual, best, scores) else last_residual
    picture = _picture(graph)
    values = [layer.value for layer in ordered]
    best = best and preferred(graph, values, best, picture, scores)
    layers_of_graph = []
    for layer in ordered:
        layer = placed_in(graph, replace(layer, default=layer.value == best), scores)
        if layer.default and layer.covers == PART:
            layer = replace(layer, beside=tuple(beside(graph, values, layer.value)))
        layers_of_graph.append(layer)
    return layers_of_graph


def placed_in(graph: Graph, layer: Layer, scores: str) -> Layer:
    """The layer with its window and its coverage, as the graph has them."""
    picture = _picture(graph)
    rows, expected = (shape_of(graph, layer.value) or (None,))[0], (graph.shape(picture) or (None,))[0]
    # several rows for each picture, such as crops of it: one of them is a part
    one_row = not isinstance(rows, int) or rows in (1, expected)
    coverage = covers(graph, layer.value, picture, scores) if one_row else PART
    parts = None if one_row else crops(graph, picture, layer.value)
    return replace(layer, window=window_of(graph, layer.value), crops=parts, covers=coverage)


def members(graph: Graph, layer: Layer, scores: str) -> Layer:
    """The layer, chosen as the default by a framework, with what runs parallel to it where it covers a part."""
    if layer.covers != PART or layer.beside is not None:
        return layer
    values = [candidate.value for candidate in candidates(graph, scores)]
    return replace(layer, beside=tuple(beside(graph, values, layer.value)))


def _picture(graph: Graph) -> str:
    """The name of the first input that is read."""
    return str(next(info.name for info in graph.inputs if graph.consumers.get(info.name)))


def _block(graph: Graph, patches: Patches, value: str, ends: Ends) -> Layer | None:
    """Find the layer of a residual Add in a network with tokens; None if it is not a map or cannot reach the scores."""
    shape, where = shape_of(graph, value), patches.positions
    if not patches.reach(value) or not (spatial(shape) or len(shape or ()) == 3):
        return None
    last = ends.of(value)
    moved = None if where.layout(last) else _moved(graph, patches, last)
    if moved is not None:  # tokens or windows rearranged to a map
        last = ends.of(moved)
    elif where.scattered(last) or not (spatial(shape) or _is_tokens(graph, shape)):
        return None
    layer = Layer(last, last, shape=shape_of(graph, last))
    grid = where.grid(last)
    if layer.shape is None or len(layer.shape) != 3:
        return describe_layer(graph, replace(layer, layout=where.layout(last)))
    if grid is not None:
        return replace(layer, layout="NTC", grid=grid[0], prefix_tokens=grid[1])
    return replace(layer, layout="NTC")


def _has_grid(patches: Patches, layer: Layer) -> bool:
    """Whether the positions of a layer on the picture are known; assumed so where the picture's size is dynamic."""
    if layer.layout == "NTC":
        return layer.grid is not None
    fixed = all(isinstance(dim, int) for dim in (layer.shape or ())[1:])
    return not fixed or patches.positions.layout(layer.value) is not None


def _moved(graph: Graph, patches: Patches, value: str) -> str | None:
    """Find the map `[N, C, h, w]` or `[N, h, w, C]` that a value is only rearranged to; None if there is none."""
    grid_value = None
    while True:
        readers = [node for node in graph.consumers.get(value, []) if patches.pass_through(node, value)]
        if len(readers) != 1 or readers[0].op_type not in ("Reshape", "Transpose"):
            return grid_value
        value = readers[0].output[0]
        if patches.positions.layout(value) is not None:
            grid_value = value


def _is_tokens(graph: Graph, shape: Shape | None) -> bool:
    """Whether a shape is `[N, T, C]` with the picture's batch dimension."""
    if shape is None or len(shape) != 3 or not isinstance(shape[1], int) or shape[1] < 4:
        return False
    return any((graph.shape(i.name) or (None,))[0] == shape[0] for i in graph.inputs)


def default(candidates: Sequence[Layer]) -> Layer:
    """Return the default layer.

    Raises:
        LayerError: the model has no spatial layer.
    """
    for layer in candidates:
        if layer.default:
            return layer
    raise LayerError(
        "the model has no spatial layer: no convolution with a height and width lies between the picture and the "
        "scores, so no heatmap can be computed"
    )


def resolve(
    graph: Graph,
    layer: str | Layer,
    scores: str,
    *,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
) -> Layer:
    """Find a layer by a value name, a node name, or a `Layer`.

    Arguments:
        grid, prefix_tokens: how tokens lie on the picture, instead of what the graph says.

    Raises:
        LayerError: no such value, or one that is not a spatial map.
    """
    if isinstance(layer, str):
        named = [node for node in graph.nodes if node.name == layer and layer not in graph]
        if layer not in graph and len(named) != 1:
            names = [c.name for c in candidates(graph, scores)] or list(graph.producer)
            near = nearest(layer, [*names, *(n.name for n in graph.nodes), *graph.producer])
            near += [] if set(near) & set(names) else [name for name in names[-3:] if name not in near]
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
    """Give a layer of tokens the user's grid or number of prefix tokens or both; other layers are unchanged."""
    shape = layer.shape or shape_of(graph, layer.value) or ()
    if len(shape) != 3:
        return layer
    tokens = shape[1]
    if grid is None:
        assert prefix_tokens is not None
        side = math.isqrt(max(tokens - prefix_tokens, 0)) if isinstance(tokens, int) else 0
        derived = positions(graph).grid(layer.value)
        grid = derived[0] if derived is not None and derived[1] == prefix_tokens else (side, side)
    elif prefix_tokens is None:
        prefix_tokens = max(tokens - grid[0] * grid[1], 0) if isinstance(tokens, int) else 0
    return replace(layer, layout="NTC", grid=grid, prefix_tokens=prefix_tokens)


def describe_layer(graph: Graph, layer: Layer) -> Layer:
    """Fill in a layer's layout, shape and grid.

    Raises:
        LayerError: the value is neither a spatial map nor a sequence of tokens.
    """
    shape = layer.shape or shape_of(graph, layer.value)
    if shape is None or not graph.is_float(layer.value):
        raise LayerError(
            f"layer {layer.name!r} is not a floating-point value of known shape; choose another target layer "
            "(`onnxcam layers` lists them)"
        )
    if len(shape) == 3:
        return _tokens(graph, layer, shape)
    if len(shape) == 4 and not spatial(shape):
        raise LayerError(
            f"layer {layer.name!r} has shape {describe(shape)}: one place for each channel and no map; expected a "
            "spatial map [N, C, h, w] or [N, h, w, C]: choose an earlier layer (`onnxcam layers` lists them)"
        )
    if len(shape) != 4:
        raise LayerError(
            f"layer {layer.name!r} has shape {describe(shape)}; expected a spatial map [N, C, h, w] or [N, h, w, C], "
            "or tokens [N, T, C]: choose an earlier layer (`onnxcam layers` lists them)"
        )
    layout = layer.layout
    if layout is None and works_on_tokens(graph):
        layout = positions(graph).layout(layer.value)
        if positions(graph).scattered(layer.value):
            raise LayerError(
                f"layer {layer.name!r} has shape {describe(shape)}, but its positions are not in the order of the "
                "picture's rows, as in windowed attention; choose another layer (`onnxcam layers` lists them)"
            )
    layout = layout or layout_of(graph, layer.value)
    dims = shape[2:] if layout == "NCHW" else shape[1:3]
    grid = (dims[0], dims[1]) if isinstance(dims[0], int) and isinstance(dims[1], int) else None
    return replace(layer, layout=layout, shape=shape, grid=grid)


def _tokens(graph: Graph, layer: Layer, shape: Shape) -> Layer:
    """Fill in the grid of a layer of tokens: the layer's own, the one in the graph, or the only square that fits."""
    layer = replace(layer, layout="NTC", shape=shape)
    tokens = shape[1]
    if layer.grid is not None:
        (rows, columns), prefix = layer.grid, layer.prefix_tokens
        if isinstance(tokens, int) and rows * columns + prefix != tokens:
            raise LayerError(
                f"layer {layer.name!r} has {tokens} tokens, but a grid of {rows} x {columns} and {prefix} prefix "
                f"tokens make {rows * columns + prefix}; {_OVERRIDE}"
            )
        return layer
    where = positions(graph)
    derived = where.grid(layer.value)
    fitting = [derived] if derived is not None else []
    if derived is None and not where.scattered(layer.value) and isinstance(tokens, int):
        for prefix in PREFIXES:
            side = math.isqrt(max(tokens - prefix, 0))
            if side > 1 and side * side == tokens - prefix:
                fitting.append(((side, side), prefix))
    if len(fitting) == 1:
        return replace(layer, grid=fitting[0][0], prefix_tokens=fitting[0][1])
    if where.scattered(layer.value):
        why = "they are not in the order of the picture's rows"
    elif fitting:
        ways = " or ".join(f"{grid[0]} x {grid[1]} with prefix {prefix}" for grid, prefix in fitting)
        why = f"{tokens} tokens may be {ways}"
    else:
        why = f"{tokens} tokens form no square grid" if isinstance(tokens, int) else "their number is dynamic"
    raise LayerError(
        f"layer {layer.name!r} has shape {describe(shape)}, and the grid that its tokens form on the picture is "
        f"unknown: {why}; {_OVERRIDE}, or choose another layer"
    )
