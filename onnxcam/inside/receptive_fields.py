"""Receptive fields: the pixels that can reach a cell of a layer, and those that do in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image, runtime
from onnxcam.errors import InputError, ModelError, PreprocessError
from onnxcam.graph import layers as target_layers
from onnxcam.graph.dynamic_size import declared_size, fits
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import input_layout
from onnxcam.graph.load import Source
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.inside import moves
from onnxcam.inside.reach import Extent, Reach
from onnxcam.network import subgraphs
from onnxcam.network.input_size import USUAL, sized
from onnxcam.network.layout import Layout
from onnxcam.network.names import COTANGENT, GRADIENT, INPUT
from onnxcam.network.network import Network
from onnxcam.runtime.rows import floats

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer
    from onnxcam.graph.view import Graph

Number = int | float
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Field:
    """The theoretical receptive field of a layer's cells, in pixels of the model's input.

    Attributes:
        layer: its name.
        size: height and width before any clipping to the picture: what the published arithmetic gives; where cells form
            no regular grid (`mixing`), those of the largest field.
        stride: pixels from the field of one cell to that of the next, down and across.
        offset: where the field of the first cell begins, from the top and from the left; negative in the padding.
        whole: whether every pixel of the picture reaches every cell.
        mixing: the operator through which cells of all places, or of a window of attention, mix; None without one.
        grid: height and width of the layer's map.
        input_size: of the model's picture, height and width.
    """

    layer: str
    size: tuple[Number, Number]
    stride: tuple[Number, Number]
    offset: tuple[Number, Number]
    whole: bool
    mixing: str | None
    grid: tuple[int, int]
    input_size: tuple[int, int]
    _bounds: np.ndarray = field(repr=False, compare=False)  # [4, h, w]: first and last row, first and last column

    def box(self, cell: tuple[int, int]) -> Box | None:
        """The pixels that can reach a cell (row, column), clipped: x0, y0, x1, y1, the last two exclusive.

        None where no pixel does: the cell reads nothing but padding.

        Raises:
            InputError: a cell outside the layer's map.
        """
        row, column = check_cell(cell, self.grid, self.layer)
        top, bottom, left, right = (int(bound) for bound in self._bounds[:, row, column])
        return None if top > bottom or left > right else (left, top, right + 1, bottom + 1)

    def describe(self) -> dict[str, Any]:
        """The field as JSON."""
        return {
            "layer": self.layer,
            "size": list(self.size),
            "stride": list(self.stride),
            "offset": list(self.offset),
            "whole": self.whole,
            "mixing": self.mixing,
            "grid": list(self.grid),
            "input_size": list(self.input_size),
        }


def fields(
    source: Source,
    layers: Sequence[str] | str | None = None,
    *,
    input_size: tuple[int, int] | None = None,
    preprocess: Any = None,
    scores: str | None = None,
    kind: str | None = None,
    task: str | None = None,
    boxes_output: str | None = None,
) -> list[Field]:
    """Compute theoretical receptive fields, as Araujo, Norris and Sim do.

    https://distill.pub/2019/computing-receptive-fields. Strides, padding, dilation, pooling, transposed convolutions,
    resizing, crops and moves are followed exactly; branches that meet are joined by their union. Behind attention or
    pooling over all places the whole picture reaches every cell. A weight of 0 counts as any other.

    Arguments:
        source: any image classifier: path, bytes or `ModelProto`.
        layers: names of layers, of values or of nodes; None for all that can be explained.
        input_size: height and width of the picture where the file leaves them open; the size that its preprocessing
            makes, or else 224 x 224, if None.
        preprocess: how pictures become tensors, as of `Explainer`; what the file says if None.
        scores, kind, task, boxes_output: as of `Explainer`.

    Returns:
        one `Field` for each layer, in order.

    Raises:
        ModelError: not a usable classifier, or a size that does not fit.
        LayerError: no such layer, or one that is neither a map nor tokens on a grid.
        PreprocessError: no such preprocessing.
    """
    network = Network(source, scores=scores, kind=kind, task=task, boxes_output=boxes_output)
    likely = _preprocessed_size(network) if preprocess is None else _size_of(preprocess)
    fitted = sized(network.graph, network.readout.value, size=input_size, likely=likely)
    graph = fitted.graph
    names = [layers] if isinstance(layers, str) else layers
    if names is None:
        exposed = {layer.value: layer for layer in network.layers.values()}
        resolved = [exposed.get(layer.value, layer) for layer in fitted.layers or ()]
    else:
        value = network.readout.value
        resolved = [target_layers.resolve(graph, network.layers.get(name, name), value) for name in names]
    return _fields(graph, network.picture.name, resolved, input_size or likely)


def fields_of(explainer: Explainer, tensor: np.ndarray, layers: Sequence[str] | None = None) -> list[Field]:
    """`fields` of an open explainer, for the size of a prepared tensor."""
    network = explainer.sessions.network
    names = layers
    if names is None:
        exposed = {layer.value: layer.name for layer in network.layers.values()}
        candidates = target_layers.candidates(network.graph, network.readout.value)
        names = [exposed.get(layer.value, layer.name) for layer in candidates]
    resolved = [explainer.sessions.cut(name).layer for name in names]
    size = explainer.sessions.cut(INPUT).layout.size(tensor.shape)
    return _fields(network.graph, network.picture.name, resolved, size)


def _preprocessed_size(network: Network) -> tuple[int, int] | None:
    entry = (network.manifest or {}).get("input") or {}
    if not entry.get("preprocess"):
        return None
    try:
        return _size_of(entry["preprocess"])
    except PreprocessError:
        return None


def _size_of(preprocess: Any) -> tuple[int, int] | None:
    size = image.resolve(preprocess).output_size
    return None if size is None else (int(size[0]), int(size[1]))


def _fields(graph: Graph, picture: str, layers: Sequence[Layer], size: tuple[int, int] | None) -> list[Field]:
    layout = Layout(input_layout(graph, picture))
    axes = (layout.height, layout.width)
    declared = declared_size(graph)
    sides = [side if isinstance(side, int) else usual for side, usual in zip(declared, size or USUAL, strict=True)]
    if not all(isinstance(side, int) for side in declared) and not fits(graph, (sides[0], sides[1])):
        raise ModelError(f"pictures of {sides[0]} x {sides[1]} do not fit the model; name a size (input_size=)")
    dims = [dim if isinstance(dim, int) else 1 for dim in graph.shape(picture) or ()]
    dims[axes[0]], dims[axes[1]] = sides
    shapes = StaticShapes(graph, {picture: tuple(dims)})
    reach = Reach(graph, shapes, picture, axes, [layer.value for layer in layers])
    return [_field(reach, layer, (sides[0], sides[1])) for layer in layers]


def _field(reach: Reach, layer: Layer, input_size: tuple[int, int]) -> Field:
    extents, shape = reach.extents(layer.value), reach.shapes.shape(layer.value)
    if extents is None or shape is None:
        raise ModelError(f"layer {layer.name!r} does not depend on the picture, or its shape is not known")
    layout = Layout.of_layer(layer)
    if layout.tokens and layer.grid is None:
        raise ModelError(f"the grid of layer {layer.name!r} is not known")
    bounds: list[np.ndarray] = []
    sizes: list[Number] = []
    strides: list[Number] = []
    offsets: list[Number] = []
    for extent, length in zip(extents, input_size, strict=True):
        first, last = (_cells(array, shape, layout, lowest=low) for array, low in _arrays(extent))
        bounds += [np.maximum(first, 0), np.minimum(last, length - 1)]
        axis = len(sizes)
        if extent.grid is not None:
            values = (extent.grid.stop - extent.grid.start, extent.grid.stride, extent.grid.start)
        else:
            valid = first <= last
            span = int((last - first + 1)[valid].max(initial=0))
            values = (Fraction(span), Fraction(length, first.shape[axis]), Fraction(int(first[valid].min(initial=0))))
        sizes.append(_plain(values[0]))
        strides.append(_plain(values[1]))
        offsets.append(_plain(values[2]))
    stacked = np.stack(bounds)
    whole = bool(np.all(stacked[0] == 0) and np.all(stacked[1] == input_size[0] - 1))
    whole = whole and bool(np.all(stacked[2] == 0) and np.all(stacked[3] == input_size[1] - 1))
    return Field(
        layer.name,
        (sizes[0], sizes[1]),
        (strides[0], strides[1]),
        (offsets[0], offsets[1]),
        whole,
        extents[0].mixing or extents[1].mixing,
        (stacked.shape[1], stacked.shape[2]),
        input_size,
        stacked,
    )


def _arrays(extent: Extent) -> list[tuple[np.ndarray, bool]]:
    return [(extent.first, True), (extent.last, False)]


def _cells(array: np.ndarray, shape: tuple[int, ...], layout: Layout, *, lowest: bool) -> np.ndarray:
    """The hull over channels of each cell, int64 `[h, w]`."""
    array = moves.aligned(array, len(shape))
    channels = layout.channels
    merged = array.min(axis=channels, keepdims=True) if lowest else array.max(axis=channels, keepdims=True)
    dims = (1, *(1 if axis == channels else size for axis, size in enumerate(shape) if axis))
    merged = merged[:1]
    return np.asarray(layout.to_canonical(np.broadcast_to(merged, dims))[0, 0], np.int64)


def _plain(number: Fraction) -> Number:
    return int(number) if number.denominator == 1 else float(number)


def check_cell(cell: Sequence[int], grid: tuple[int, int], layer: str) -> tuple[int, int]:
    """A cell as (row, column).

    Raises:
        InputError: it is outside the layer's map.
    """
    values = [int(index) for index in cell]
    if len(values) != 2 or not all(0 <= index < size for index, size in zip(values, grid, strict=True)):
        raise InputError(
            f"cell {tuple(cell)} is outside the map of layer {layer!r}, of {grid[0]} rows and {grid[1]} columns, "
            "counted from 0"
        )
    return values[0], values[1]


def effective(explainer: Explainer, picture: Any, layer: str, cell: tuple[int, int]) -> np.ndarray:
    """Compute the effective receptive field of a cell: how much each pixel changes it, in this picture.

    The gradient of the sum of the cell's channels at the model's input, absolute and summed over colours
    (Luo et al., https://arxiv.org/abs/1701.04128). Exactly 0 outside the theoretical field.

    Arguments:
        picture: as of `Explainer.explain`.
        layer: name of a layer, a value or a node.
        cell: row and column on the layer's map.

    Returns:
        float32 `[H, W]`, of the model's input size.

    Raises:
        LayerError: no such layer. InputError: a cell outside its map.
        UnsupportedOperator: an operator between the picture and the layer has no gradient rule.
    """
    _, tensor, _ = explainer.prepare(picture)
    return of_tensor(explainer, tensor, layer, cell)


def of_tensor(explainer: Explainer, tensor: np.ndarray, layer: str, cell: tuple[int, int]) -> np.ndarray:
    """`effective` of a prepared tensor `[1, ...]`."""
    sessions = explainer.sessions
    network = sessions.network
    cut = sessions.cut(layer)
    channels, *grid = _canonical_shape(explainer, tensor, layer)
    row, column = check_cell(cell, (grid[0], grid[1]), layer)
    seed = np.zeros((1, channels, *grid), np.float32)
    seed[:, :, row, column] = 1
    prefix = np.zeros((1, cut.layout.prefix_tokens, channels), np.float32) if cut.layout.prefix_tokens else None
    cotangent = np.ascontiguousarray(cut.layout.from_canonical(seed, prefix))
    session = sessions.session(("value gradient", layer), lambda: subgraphs.value_gradient(network, layer))
    kinds = {i.name: i.type for i in session.get_inputs()}
    if kinds[COTANGENT] == "tensor(float16)":
        cotangent = cotangent.astype(np.float16)
    rows = explainer.batch_size or 1
    feeds = {network.picture.name: np.repeat(floats(tensor), rows, 0), COTANGENT: np.repeat(cotangent, rows, 0)}
    gradient = runtime.run(session, [GRADIENT], feeds)[GRADIENT][:1]
    canonical = sessions.cut(INPUT).layout.to_canonical(gradient)
    return np.asarray(np.abs(canonical.astype(np.float32)).sum(axis=(0, 1)), np.float32)


def _canonical_shape(explainer: Explainer, tensor: np.ndarray, layer: str) -> tuple[int, ...]:
    """Channels, height and width of a layer's map; measured where the file leaves its size open."""
    cut = explainer.sessions.cut(layer)
    sides = [side for side in (cut.layer.shape or ())[1:] if isinstance(side, int)]
    if len(sides) + 1 == len(cut.layer.shape or ()):
        return tuple(cut.layout.to_canonical(np.empty((1, *sides), np.bool_)).shape[1:])
    from onnxcam.inside.activations import activations

    return tuple(activations(explainer, tensor, [layer]).values[layer].shape[1:])
