"""Heatmap and overlay at the picture's own size as nodes of a graph, as `Explanation` has them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from onnxcam.graph.builder import Builder
from onnxcam.image.colormap import DEFAULT, KNEE, OPACITY, palette
from onnxcam.network.pixel_resampling import Axes, arange, parts

_FLOAT, _INT32, _INT64, _UINT8 = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "INT32", "INT64", "UINT8"))
_SMALL, _PART, _TINY, _INFINITE = 1e-7, 3e-6, 2.0**-126, float(np.finfo(np.float32).max)
# of hidden parts, as `onnxcam.image.visible` draws them
_LIGHT, _GREY, _STEP, _WHITE, _BLACK = 0.3, 162, 52, 255, 24


class Span(NamedTuple):
    """The picture's rows and columns that lie on the model's input: int64 vectors of two elements."""

    start: str
    stop: str
    pixels: str


class Canvas(NamedTuple):
    """A picture that maps are drawn on.

    Attributes:
        pixels: uint8 `[H, W, 3]`.
        place: where it lies on the model's input.
        span: its visible rows and columns; None where all of it is visible, whatever its size.
        room: of these, the pixels above, to the left, below and to the right, int64 `[4]`.
        inside: the visible pixels as float32, `[rows, 3 * columns]`.
        positions: per axis the two pixels of the input on either side of each visible pixel, and the second one's part.
    """

    pixels: str
    place: Axes
    span: Span | None
    room: str
    inside: str
    positions: list[tuple[str, str, str]]


def canvas(op: Builder, pixels: str, place: Axes, *, cropped: bool) -> Canvas:
    """Emit what the maps of one picture share."""
    op.dtype = _FLOAT
    span = _span(op, place) if cropped else None
    inside, size, room = pixels, place.picture, ""
    if span is not None:
        inside, size = op.Slice(pixels, span.start, span.stop, [0, 1]), span.pixels
        room = op.vector(span.start, op.Sub(place.picture, span.stop))
    inside = op.cast(op.Reshape(inside, op.Mul(size, [1, 3])))
    return Canvas(pixels, place, span, room, inside, _positions(op, place, span))


def _span(op: Builder, place: Axes) -> Span:
    """`Geometry.visible`: the pixels whose centre lies on the input, at least one along each axis."""
    start = op.Sub(op.Max(place.offset, [0]), place.offset)
    stop = op.Sub(op.Min(op.Add(place.offset, place.resized), place.size), place.offset)
    unit = op.Mul(place.resized, [2])

    def first(edge: str) -> str:
        """The first pixel whose centre does not lie before an edge of the resized picture."""
        whole = op.Add(op.Mul(op.Mul(edge, place.picture), [2]), op.Sub(place.resized, [1]))
        return op.Min(op.Div(whole, unit), place.picture)

    low, high = first(start), first(stop)
    middle = op.Min(op.Div(op.Mul(op.Add(start, stop), place.picture), unit), op.Sub(place.picture, [1]))
    none = op.GreaterOrEqual(low, high)
    low, high = op.Where(none, middle, low), op.Where(none, op.Add(middle, [1]), high)
    return Span(low, high, op.Sub(high, low))


def _positions(op: Builder, place: Axes, span: Span | None) -> list[tuple[str, str, str]]:
    scale = op.Div(op.cast(place.resized), op.cast(place.picture))
    first = op.Max(place.offset, [0])
    last = op.Sub(op.Min(op.Add(place.offset, place.resized), place.size), [1])
    offset = op.Sub(op.cast(place.offset), 0.5)
    starts = ("", "") if span is None else parts(op, span.start)
    stops = parts(op, place.picture if span is None else span.stop)
    by_axis = zip(*(parts(op, value) for value in (scale, offset, op.cast(first), op.cast(last), last)), strict=True)
    positions = []
    for start, stop, (scale, offset, low, high, end) in zip(starts, stops, by_axis, strict=True):
        pixel = arange(op, stop, start or None)
        position = op.Add(op.Mul(op.Add(op.cast(pixel), 0.5), scale), offset)
        position = op.Min(op.Max(position, low), high)
        before = op.Floor(position)
        index = op.Cast(before, to=_INT64)
        positions.append((index, op.Min(op.Add(index, [1]), end), op.Unsqueeze(op.Sub(position, before), [1])))
    return positions


def draw(op: Builder, drawn: Canvas, layer_map: str, names: tuple[str, str]) -> None:
    """Emit heatmap and overlay of one layer's map.

    Arguments:
        layer_map: float32 `[1, h, w]`, after ReLU.
        names: of the outputs: float32 `[H, W]` from 0 to 1, and uint8 `[H, W, 3]`.
    """
    op.dtype = _FLOAT
    cells = op.Squeeze(layer_map, [0])
    # no colour has the index NaN: a map with one such cell means nothing, and is drawn as none
    finite = op.ReduceMin(op.cast(op.Less(op.Abs(cells), _INFINITE)), keepdims=0)
    cells = op.Where(op.Greater(finite, 0.5), cells, 0.0)
    low = op.ReduceMin(cells, keepdims=0)
    cells = op.Div(op.Sub(cells, low), _divisor(op, op.Sub(op.ReduceMax(cells, keepdims=0), low)))
    matrices = [_matrix(op, layer_map, k + 1, side) for k, side in enumerate(parts(op, drawn.place.size))]
    full = op.MatMul(op.MatMul(matrices[0], cells), op.Transpose(matrices[1], perm=[1, 0]))
    # the map is normalised at the input's size, and interpolation keeps what is added and multiplied everywhere
    low = op.ReduceMin(full, keepdims=0)
    cells = op.Div(op.Sub(cells, low), _divisor(op, op.Sub(op.ReduceMax(full, keepdims=0), low)))
    down, across = (_mixed(op, m, p) for m, p in zip(matrices, drawn.positions, strict=True))
    turned = op.Transpose(across, perm=[1, 0])
    heat = op.Clip(op.MatMul(op.MatMul(down, cells), turned), 0.0, 1.0)
    doubt = op.Where(op.Greater(finite, 0.5), 0.0, np.array(np.nan, np.float32))
    if drawn.span is None:
        op.Add(heat, doubt, name=names[0])
    else:
        op.Pad(op.Add(heat, doubt), drawn.room, 0.0, name=names[0])
    inside = _colored(op, drawn, cells, down, turned)
    if drawn.span is None:
        op.Reshape(inside, op.Shape(drawn.pixels), name=names[1])
    else:
        _mark(op, drawn, op.Reshape(inside, op.vector(drawn.span.pixels, 3)), names[1])


def _divisor(op: Builder, peak: str) -> str:
    """As `onnxcam.image.normalize` with minmax."""
    return op.Max(op.Add(peak, op.Min(op.Mul(peak, _PART), _SMALL)), _TINY)


def _matrix(op: Builder, layer_map: str, axis: int, size: str) -> str:
    """The matrix `[input, cells]` of half-pixel linear interpolation from a layer's cells to the input's pixels."""
    cells = op.size(layer_map, axis)
    ratio = op.Div(op.cast(cells), op.cast(size))
    centre = op.Sub(op.Mul(op.Add(op.cast(arange(op, size)), 0.5), ratio), 0.5)
    centre = op.Max(op.Min(centre, op.cast(op.Sub(cells, [1]))), 0.0)
    return op.Relu(op.Sub(1.0, op.Abs(op.Sub(op.Unsqueeze(centre, [1]), op.cast(arange(op, cells))))))


def _mixed(op: Builder, matrix: str, position: tuple[str, str, str]) -> str:
    """The matrix's rows interpolated at positions between them."""
    low, high, part = position
    before = op.Gather(matrix, low, axis=0)
    return op.Add(before, op.Mul(op.Sub(op.Gather(matrix, high, axis=0), before), part))


def _colored(op: Builder, drawn: Canvas, cells: str, down: str, turned: str) -> str:
    """The colours of a map over the visible pixels, uint8 `[rows, 3 * columns]`: `image.lay` without its rounding."""
    levels = np.arange(256) / 255
    # half a level is added, because a Cast cuts off
    table = palette(DEFAULT) * (OPACITY * np.minimum(levels / KNEE, 1.0))[:, None] + 0.5
    # level and remains of the picture are interpolated three times a column, so that no operator need broadcast; a
    # row more adds the place of each channel's table, as GatherElements takes a tenth of Gather's time
    columns = op.Shape(turned, start=1, end=2)
    thrice = op.Tile(op.Unsqueeze(turned, [2]), [1, 1, 3])
    thrice = op.Reshape(thrice, op.vector(-1, op.Mul(columns, [3])))
    places = op.Reshape(op.Tile(np.array([0.5, 256.5, 512.5], np.float32), columns), [1, -1])
    left = op.Concat(op.MatMul(down, cells), op.Expand(1.0, op.vector(op.Shape(down, start=0, end=1), 1)), axis=1)
    level = op.Cast(op.MatMul(left, op.Concat(op.Mul(thrice, 255.0), places, axis=0)), to=_INT32)
    colors = op.GatherElements(table.T.astype(np.float32).reshape(-1), op.Reshape(level, [-1]), axis=0)
    remains = op.MatMul(down, op.Sub(1.0, op.Mul(cells, OPACITY / KNEE)))
    rest = op.Max(op.MatMul(remains, thrice), 1.0 - OPACITY)
    return op.Cast(op.Add(op.Mul(drawn.inside, rest), op.Reshape(colors, op.Shape(drawn.inside))), to=_UINT8)


def _mark(op: Builder, drawn: Canvas, framed: str, name: str) -> None:
    """Frame the visible part, and dim and hatch what lies outside, as `onnxcam.image.visible` does."""
    height, width = parts(op, drawn.place.picture)
    longer = op.cast(op.Max(height, width))
    line = op.Max(op.Cast(op.Round(op.Div(longer, 300.0)), to=_INT64), [1])
    distance = op.Max(op.Cast(op.Round(op.Div(longer, 32.0)), to=_INT64), [4])
    thickness = op.Max(op.Div(distance, [4]), [1])
    white, both = op.Min(line, drawn.room), op.Min(op.Mul(line, [2]), drawn.room)
    for sides, level in ((white, _WHITE), (op.Sub(both, white), _BLACK)):
        pads = op.Gather(op.Concat(sides, [0], axis=0), [0, 1, 4, 2, 3, 4], axis=0)
        framed = op.Pad(framed, pads, np.array(level, np.uint8))
    edges = op.Sub(drawn.room, both)
    top, left, below, behind = op.call("Split", [edges, [1, 1, 1, 1]], outputs=4, axis=0)
    bottom, right = op.Sub(height, below), op.Sub(width, behind)
    # the hatching repeats every `distance` rows
    column = op.cast(op.Mod(op.Div(arange(op, op.Mul(width, [3])), [3]), distance))
    diagonal, period = op.Add(op.Unsqueeze(op.cast(arange(op, distance)), [1]), column), op.cast(distance)
    diagonal = op.Sub(diagonal, op.Mul(op.cast(op.GreaterOrEqual(diagonal, period)), period))
    dark = op.cast(op.Less(diagonal, op.cast(thickness)))
    shade = op.Sub((1 - _LIGHT) * _GREY + 0.5, op.Mul(dark, float(_STEP)))

    def strip(y0: str, y1: str, x0: str, x1: str) -> str:
        part = op.Slice(drawn.pixels, op.vector(y0, x0), op.vector(y1, x1), [0, 1])
        lines = op.Slice(shade, op.Mul(x0, [3]), op.Mul(x1, [3]), [1])
        lines = op.Gather(lines, op.Mod(arange(op, y1, y0), distance), axis=0)
        shape = op.vector(op.Sub(y1, y0), op.Sub(x1, x0), 3)
        light = op.DequantizeLinear(part, np.array(_LIGHT, np.float32))  # a Cast and a Mul in one pass
        return op.Cast(op.Add(light, op.Reshape(lines, shape, allowzero=1)), to=_UINT8)

    none = op.operand([0])
    middle = op.Concat(strip(top, bottom, none, left), framed, strip(top, bottom, right, width), axis=1)
    op.Concat(strip(none, top, none, width), middle, strip(bottom, height, none, width), axis=0, name=name)
