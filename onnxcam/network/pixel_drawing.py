"""Heatmap and overlay at the picture's own size as nodes of a graph, as `Explanation` has them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from onnxcam.graph.builder import Builder
from onnxcam.image.colormap import DEFAULT, KNEE, OPACITY, palette
from onnxcam.network.pixel_resampling import Axis, arange, floats, levels

_FLOAT, _INT32, _INT64 = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "INT32", "INT64"))
_SMALL, _PART, _TINY, _INFINITE = 1e-7, 3e-6, 2.0**-126, float(np.finfo(np.float32).max)
# of hidden parts, as `onnxcam.image.visible` draws them
_LIGHT, _GREY, _STEP, _WHITE, _BLACK = 0.3, 162, 52, 255, 24


class Span(NamedTuple):
    """The picture's pixels along an axis that lie on the model's input: int64 vectors of one element."""

    start: str
    stop: str
    pixels: str


class Canvas(NamedTuple):
    """A picture that maps are drawn on.

    Attributes:
        pixels: uint8 `[H, W, 3]`.
        place: where it lies on the model's input.
        spans: its visible rows and columns; None where all of it is visible, whatever its size.
        inside: the visible pixels as float32, `[rows, 3 * columns]`.
        positions: per axis the two pixels of the input on either side of each visible pixel, and the second one's part.
    """

    pixels: str
    place: tuple[Axis, Axis]
    spans: tuple[Span, Span] | None
    inside: str
    positions: tuple[tuple[str, str, str], tuple[str, str, str]]


def canvas(op: Builder, pixels: str, place: tuple[Axis, Axis], *, cropped: bool) -> Canvas:
    """Emit what the maps of one picture share."""
    op.dtype = _FLOAT
    spans = (_span(op, place[0]), _span(op, place[1])) if cropped else None
    inside, columns = pixels, place[1].picture
    if spans is not None:
        rows, across = spans
        inside = op.Slice(pixels, op.vector(rows.start, across.start), op.vector(rows.stop, across.stop), [0, 1])
        columns = across.pixels
    inside = floats(op, op.Reshape(inside, op.vector(-1, op.Mul(columns, [3]))))
    positions = tuple(_positions(op, axis, None if spans is None else spans[k]) for k, axis in enumerate(place))
    return Canvas(pixels, place, spans, inside, (positions[0], positions[1]))


def _span(op: Builder, axis: Axis) -> Span:
    """`Geometry.visible` along one axis: the pixels whose centre lies on the input, at least one."""
    start = op.Sub(op.Max(axis.offset, [0]), axis.offset)
    stop = op.Sub(op.Min(op.Add(axis.offset, axis.resized), axis.size), axis.offset)
    unit = op.Mul(axis.resized, [2])

    def first(edge: str) -> str:
        """The first pixel whose centre does not lie before an edge of the resized picture."""
        whole = op.Add(op.Mul(op.Mul(edge, axis.picture), [2]), op.Sub(axis.resized, [1]))
        return op.Min(op.Div(whole, unit), axis.picture)

    low, high = first(start), first(stop)
    middle = op.Min(op.Div(op.Mul(op.Add(start, stop), axis.picture), unit), op.Sub(axis.picture, [1]))
    none = op.GreaterOrEqual(low, high)
    low, high = op.Where(none, middle, low), op.Where(none, op.Add(middle, [1]), high)
    return Span(low, high, op.Sub(high, low))


def _positions(op: Builder, axis: Axis, span: Span | None) -> tuple[str, str, str]:
    pixel = arange(op, axis.picture) if span is None else arange(op, span.stop, span.start)
    scale = op.Div(op.cast(axis.resized), op.cast(axis.picture))
    first = op.Max(axis.offset, [0])
    last = op.Sub(op.Min(op.Add(axis.offset, axis.resized), axis.size), [1])
    offset = op.Sub(op.cast(axis.offset), 0.5)
    position = op.Add(op.Mul(op.Add(op.cast(pixel), 0.5), scale), offset)
    position = op.Min(op.Max(position, op.cast(first)), op.cast(last))
    low = op.Floor(position)
    index = op.Cast(low, to=_INT64)
    return index, op.Min(op.Add(index, [1]), last), op.Unsqueeze(op.Sub(position, low), [1])


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
    matrices = [_matrix(op, layer_map, k + 1, axis.size) for k, axis in enumerate(drawn.place)]
    full = op.MatMul(op.MatMul(matrices[0], cells), op.Transpose(matrices[1], perm=[1, 0]))
    # the map is normalised at the input's size, and interpolation keeps what is added and multiplied everywhere
    low = op.ReduceMin(full, keepdims=0)
    cells = op.Div(op.Sub(cells, low), _divisor(op, op.Sub(op.ReduceMax(full, keepdims=0), low)))
    down, across = (_mixed(op, m, p) for m, p in zip(matrices, drawn.positions, strict=True))
    turned = op.Transpose(across, perm=[1, 0])
    heat = op.Clip(op.MatMul(op.MatMul(down, cells), turned), 0.0, 1.0)
    doubt = op.Where(op.Greater(finite, 0.5), 0.0, np.array(np.nan, np.float32))
    if drawn.spans is None:
        op.Add(heat, doubt, name=names[0])
    else:
        op.Pad(op.Add(heat, doubt), _margins(op, drawn), 0.0, name=names[0])
    inside = _colored(op, drawn, cells, down, turned)
    if drawn.spans is None:
        op.Reshape(inside, op.Shape(drawn.pixels), name=names[1])
    else:
        _mark(op, drawn, drawn.spans, inside, names[1])


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


def _margins(op: Builder, drawn: Canvas) -> str:
    assert drawn.spans is not None
    rows, columns = drawn.spans
    height, width = (axis.picture for axis in drawn.place)
    return op.vector(rows.start, columns.start, op.Sub(height, rows.stop), op.Sub(width, columns.stop))


def _colored(op: Builder, drawn: Canvas, cells: str, down: str, turned: str) -> str:
    """The colours of a map over the visible pixels, uint8 `[rows, 3 * columns]`: `image.lay` without its rounding."""
    table = palette(DEFAULT) * (OPACITY * np.minimum(np.arange(256) / 255 / KNEE, 1.0))[:, None]
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
    return levels(op, op.Add(op.Mul(drawn.inside, rest), op.Reshape(colors, op.Shape(drawn.inside))))


def _mark(op: Builder, drawn: Canvas, spans: tuple[Span, Span], inside: str, name: str) -> None:
    """Frame the visible part, and dim and hatch what lies outside, as `onnxcam.image.visible` does."""
    rows, columns = spans
    height, width = (axis.picture for axis in drawn.place)
    longer = op.cast(op.Max(height, width))
    line = op.Max(op.Cast(op.Round(op.Div(longer, 300.0)), to=_INT64), [1])
    distance = op.Max(op.Cast(op.Round(op.Div(longer, 32.0)), to=_INT64), [4])
    thickness = op.Max(op.Div(distance, [4]), [1])
    room = [rows.start, columns.start, op.Sub(height, rows.stop), op.Sub(width, columns.stop)]
    white = [op.Min(line, side) for side in room]
    both = [op.Min(op.Mul(line, [2]), side) for side in room]
    black = [op.Sub(b, w) for b, w in zip(both, white, strict=True)]
    framed = op.Reshape(inside, op.vector(rows.pixels, columns.pixels, 3))
    for sides, level in ((white, _WHITE), (black, _BLACK)):
        framed = op.Pad(framed, op.vector(sides[0], sides[1], 0, sides[2], sides[3], 0), np.array(level, np.uint8))
    top, left = op.Sub(rows.start, both[0]), op.Sub(columns.start, both[1])
    bottom, right = op.Add(rows.stop, both[2]), op.Add(columns.stop, both[3])
    # the hatching repeats every `distance` rows
    column = op.cast(op.Mod(op.Div(arange(op, op.Mul(width, [3])), [3]), distance))
    diagonal, period = op.Add(op.Unsqueeze(op.cast(arange(op, distance)), [1]), column), op.cast(distance)
    diagonal = op.Sub(diagonal, op.Mul(op.cast(op.GreaterOrEqual(diagonal, period)), period))
    dark = op.cast(op.Less(diagonal, op.cast(thickness)))
    shade = op.Sub((1 - _LIGHT) * _GREY, op.Mul(dark, float(_STEP)))

    def strip(y0: str, y1: str, x0: str, x1: str) -> str:
        part = op.Slice(drawn.pixels, op.vector(y0, x0), op.vector(y1, x1), [0, 1])
        lines = op.Slice(shade, op.Mul(x0, [3]), op.Mul(x1, [3]), [1])
        lines = op.Gather(lines, op.Mod(arange(op, y1, y0), distance), axis=0)
        shape = op.vector(op.Sub(y1, y0), op.Sub(x1, x0), 3)
        return levels(op, op.Add(floats(op, part, _LIGHT), op.Reshape(lines, shape, allowzero=1)))

    none = op.operand([0])
    middle = op.Concat(strip(top, bottom, none, left), framed, strip(top, bottom, right, width), axis=1)
    op.Concat(strip(none, top, none, width), middle, strip(bottom, height, none, width), axis=0, name=name)
