"""The geometry of preprocessing: how a picture was mapped to the model's input, and the inverse for maps.

Positions are half-pixel: pixel i covers [i, i + 1) and its centre is i + 0.5. A picture of size P is resized to size R
and its top left corner placed at `offset` on an input of size S, per axis, so a picture position x lies at
`x * R / P + offset`. Offsets are negative where a crop cut something off and positive where padding was added.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import InputError
from onnxcam.image.opencv import import_cv2
from onnxcam.image.visible import Rectangle

Map = NDArray[np.float32]
Size = tuple[int, int]
Span = tuple[float, float]

_LEAST = 4  # of a resized picture of which less than a quarter is visible, the rest is not computed
_CHUNK = 1 << 17  # values interpolated at a time: their buffers stay in a core's cache


class Geometry(NamedTuple):
    """The mapping of a picture to the input: sizes (height, width) in pixels, `offset` (top, left) in input pixels."""

    picture_size: Size
    resized_size: Size
    offset: tuple[int, int]
    input_size: Size

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per picture pixel, along height and width."""
        return (self.resized_size[0] / self.picture_size[0], self.resized_size[1] / self.picture_size[1])

    def to_picture(self, heatmap: NDArray[Any]) -> Map:
        """Map a heatmap back onto the original picture: bilinear, half-pixel; 0 outside a crop; padding removed.

        Args:
            heatmap: float [h, w] at the input's resolution; at any other, it is resized to the input first.

        Returns:
            float32 [H, W], the picture's size.

        Raises:
            InputError: not two-dimensional.
        """
        if heatmap.ndim != 2:
            raise InputError(f"the map has shape {list(heatmap.shape)}, expected [h, w]: pass one map at a time")
        values = resize_map(heatmap, self.input_size)
        rows = self._visible(0)
        columns = self._visible(1)
        # padding is left out, so that it does not bleed into the picture's edges
        values = values[rows, columns]
        if values.size == 0:
            return np.zeros(self.picture_size, np.float32)
        if values.shape == self.resized_size:
            return resize_map(values, self.picture_size)
        if _LEAST * values.size < self.resized_size[0] * self.resized_size[1]:
            return self._part_to_picture(values)
        cv2 = import_cv2()
        (top, bottom), (left, right) = (
            (part.start - at, at + size - part.stop)
            for part, at, size in zip((rows, columns), self.offset, self.resized_size, strict=True)
        )
        # at the visible part's edge its own pixels are repeated; what lies beyond is 0 in the end
        resized = cv2.copyMakeBorder(values, top, bottom, left, right, cv2.BORDER_REPLICATE)
        result = resize_map(resized, self.picture_size)
        (top, bottom), (left, right) = (_span(self, axis, None) for axis in range(2))
        result[:top], result[bottom:] = 0.0, 0.0
        result[top:bottom, :left], result[top:bottom, right:] = 0.0, 0.0
        return result

    def _part_to_picture(self, values: Map) -> Map:
        """`to_picture` of the visible part of the input, where that is a small part of the resized picture."""
        # columns first, while there are fewer rows; gathering whole rows afterwards is fast
        left, right, low, high, part = _samples(self, 1)
        across = np.empty((right - left, len(values)), np.float32)
        _mix_rows(np.ascontiguousarray(values.T), low, high, part, across)
        top, bottom, low, high, part = _samples(self, 0)
        result = np.empty(self.picture_size, np.float32)
        result[:top], result[bottom:] = 0.0, 0.0
        covered = result[top:bottom]
        covered[:, :left], covered[:, right:] = 0.0, 0.0
        _mix_rows(np.ascontiguousarray(across.T), low, high, part, covered[:, left:right])
        return result

    def to_cells(self, heatmap: NDArray[Any], cells: Size) -> NDArray[np.float64]:
        """What `to_picture` gives, summed over cells of equal area: both are linear, so the picture is not drawn.

        Args:
            heatmap: as of `to_picture`.
            cells: rows and columns, at most the picture's size.

        Returns:
            float64 of shape `cells`.
        """
        values = resize_map(heatmap, self.input_size)[self._visible(0), self._visible(1)]
        if values.size == 0:
            return np.zeros(cells)
        across = sum_cells(self._along(values.T, 1), cells[1])
        return sum_cells(self._along(np.ascontiguousarray(across.T), 0).astype(np.float64), cells[0])

    def sum_layer_map(self, layer_map: NDArray[Any], how: str, cells: Size) -> NDArray[np.float64]:
        """What `to_picture` gives of a layer's map at its place on the input, summed over cells of equal area.

        Normalised, resized to the input, normalised again, drawn, summed: all but the extremes is linear, and these lie
        beside the map's own cells, so that neither the input nor the picture is drawn.

        Args:
            layer_map: float [h, w], finite and not negative.
            how: as of `normalize`.
            cells: rows and columns, at most the picture's size.

        Returns:
            float64 of shape `cells`; 0 where only rounding would tell it from 0.
        """
        values = normalize(layer_map, how).astype(np.float64)
        rows, columns = (_cell_weights(self, axis, values.shape[axis], cells[axis]) for axis in range(2))
        near = rows.extremes @ values @ columns.extremes.T
        sums = rows.sums @ values @ columns.sums.T
        area = np.outer(rows.pixels, columns.pixels)
        low, high = float(near.min()), float(near.max())
        if how == "minmax":
            sums -= low * area
            high -= low
            sums /= max(high + min(float(_SMALL), float(_PART) * high), float(_TINY))
        elif how == "max" and high > 0:
            sums /= high
        sums[sums <= _ROUNDING * (high if how == "none" else 1.0) * area] = 0.0
        return np.asarray(sums)

    def _along(self, values: Map, axis: int) -> Map:
        """Values `[input pixels, m]` at the picture's pixels along one axis, `[pixels, m]`; 0 beyond the input."""
        size = self.picture_size[axis]
        if len(values) == self.resized_size[axis]:
            return resize_map(values, (size, values.shape[1]))
        start, _, low, high, part = _samples(self, axis)
        result = np.zeros((size, values.shape[1]), np.float32)
        _mix_rows(np.ascontiguousarray(values), low, high, part, result[start : start + len(low)])
        return result

    def visible(self, rows: Span | None = None, columns: Span | None = None) -> Rectangle:
        """The picture's pixels that lie on the input, those to which `to_picture` gives a value; area 0 if none does.

        Args:
            rows, columns: where a part of the input starts and stops, in input pixels; the whole input if None.
        """
        y0, y1 = _span(self, 0, rows and tuple(rows))
        x0, x1 = _span(self, 1, columns and tuple(columns))
        return Rectangle(x0, y0, x1, y1) if y1 > y0 and x1 > x0 else Rectangle(0, 0, 0, 0)

    def _visible(self, axis: int) -> slice:
        """The input pixels that show the picture."""
        start = max(self.offset[axis], 0)
        stop = min(self.offset[axis] + self.resized_size[axis], self.input_size[axis])
        return slice(start, max(start, stop))

    def _centres(self, axis: int) -> NDArray[np.float64]:
        """The picture pixels' centres in input pixels."""
        return np.asarray((np.arange(self.picture_size[axis]) + 0.5) * self.scale[axis] + self.offset[axis])

    def _covered(self, axis: int, start: float, stop: float) -> tuple[int, int]:
        """Picture pixels [first, last) whose centre lies in a span of the input."""
        centre = self._centres(axis)
        inside = np.flatnonzero((centre >= start) & (centre < stop))
        if inside.size == 0:
            # the span is narrower than a picture pixel and between two centres: take the pixel under its middle
            middle = ((start + stop) / 2 - self.offset[axis]) / self.scale[axis]
            first = min(int(middle), self.picture_size[axis] - 1)
            return first, first + 1
        return int(inside[0]), int(inside[-1]) + 1


# the pictures of a folder, or of a client, are often of one size
@lru_cache(64)
def _span(geometry: Geometry, axis: int, part: Span | None) -> tuple[int, int]:
    """The picture pixels [first, last) that lie on the input, or on a part of it."""
    covered = geometry._visible(axis)
    start: float = covered.start
    stop: float = covered.stop
    if part is not None:
        start, stop = max(start, min(part)), min(stop, max(part))
    return geometry._covered(axis, start, stop) if stop > start else (0, 0)


@lru_cache(32)
def _samples(geometry: Geometry, axis: int) -> tuple[int, int, NDArray[np.intp], NDArray[np.intp], Map]:
    """Picture pixels [start, stop) whose centre lies on the input; for each its two neighbours and their weight."""
    visible = geometry._visible(axis)
    first, last = geometry._covered(axis, visible.start, visible.stop)
    centre = geometry._centres(axis)[first:last]
    position = np.clip(centre - 0.5 - visible.start, 0.0, visible.stop - visible.start - 1.0)
    low = np.floor(position).astype(np.intp)
    high = np.minimum(low + 1, visible.stop - visible.start - 1)
    part = (position - low).astype(np.float32)
    for shared in (low, high, part):
        shared.flags.writeable = False
    return first, last, low, high, part


class _CellWeights(NamedTuple):
    """Along one axis, what a layer's cells contribute to sums over cells of the picture.

    Attributes:
        sums: float64 [cells of the picture, cells of the layer].
        pixels: how many pixels of each of the picture's cells lie on the input, [cells of the picture].
        extremes: the layer's map at the input's pixels on either side of each of its cells' centres, where the extremes
            of a linear interpolation lie, [pixels, cells of the layer].
    """

    sums: NDArray[np.float64]
    pixels: NDArray[np.float64]
    extremes: NDArray[np.float64]


@lru_cache(64)
def _cell_weights(geometry: Geometry, axis: int, count: int, cells: int) -> _CellWeights:
    side, length = geometry.picture_size[axis], geometry.input_size[axis]
    visible = geometry._visible(axis)
    # of each of the input's pixels, its two neighbours among the layer's cells
    at = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0.0, count - 1.0)
    before = np.minimum(at.astype(np.intp), max(count - 2, 0))
    resized = np.zeros((length, count))
    resized[np.arange(length), before] = 1.0 - (at - before)
    resized[np.arange(length), np.minimum(before + 1, count - 1)] += at - before
    beside = np.floor((np.arange(count) + 0.5) * length / count - 0.5).astype(np.intp)
    extremes = resized[np.unique(np.clip([beside, beside + 1], 0, length - 1))]
    pixels = visible.stop - visible.start
    shares = np.zeros(cells * pixels)
    if pixels:
        first, last, low, high, part = _samples(geometry, axis)
        picture = np.arange(first, last)
        cell = picture * cells // side
        inside = np.minimum((cell + 1) * side / cells - picture, 1.0)  # the rest of a pixel lies in the next cell
        behind = np.minimum(cell + 1, cells - 1)
        for where, share in ((cell, inside), (behind, 1.0 - inside)):
            for pixel, weight in ((low, 1.0 - part), (high, part)):
                shares += np.bincount(where * pixels + pixel, share * weight, len(shares))
    # no matrix product, as in `sum_cells`
    sums = np.einsum("cp,pl->cl", shares.reshape(cells, pixels), resized[visible])
    return _CellWeights(sums, sums.sum(axis=1), extremes)


def _mix_rows(values: Map, low: NDArray[np.intp], high: NDArray[np.intp], part: Map, out: Map) -> None:
    """Write the rows `low * (1 - part) + high * part` of the values into `out`, a few at a time."""
    part = part[:, None]
    step = max(_CHUNK // values.shape[1], 1)
    mixed, after = (np.empty((min(step, len(low)), values.shape[1]), np.float32) for _ in range(2))
    for start in range(0, len(low), step):
        some = slice(start, start + step)
        count = len(low[some])
        before, behind = mixed[:count], after[:count]
        # no index is out of bounds; with mode="clip" numpy gathers rows without a copy
        np.take(values, low[some], axis=0, out=before, mode="clip")
        np.take(values, high[some], axis=0, out=behind, mode="clip")
        before *= 1.0 - part[some]
        behind *= part[some]
        np.add(before, behind, out=out[some])


def resize_map(heatmap: NDArray[Any], size: Size) -> Map:
    """Resize maps with half-pixel bilinear interpolation (`cv2.INTER_LINEAR`), as every Grad-CAM library does.

    Args:
        heatmap: float [h, w] or [N, h, w].
        size: the new height and width.

    Returns:
        float32 [H, W] or [N, H, W].

    Raises:
        InputError: a wrong number of dimensions, or an empty map.
    """
    if heatmap.ndim not in (2, 3) or 0 in heatmap.shape[-2:]:
        raise InputError(f"the map has shape {list(heatmap.shape)}, expected [h, w] or [N, h, w] with pixels in it")
    values = np.ascontiguousarray(heatmap, np.float32)
    if values.shape[-2:] == tuple(size):
        return values
    cv2 = import_cv2()
    if values.ndim == 2:
        return np.asarray(cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.float32)
    result = np.empty((len(values), *size), np.float32)
    for one, resized in zip(values, result, strict=True):
        cv2.resize(one, (size[1], size[0]), dst=resized, interpolation=cv2.INTER_LINEAR)
    return result


def sum_cells(values: NDArray[Any], cells: int) -> NDArray[Any]:
    """Sum `[side, m]` to `[cells, m]`, at most `side`: a pixel that lies in two cells is divided between them.

    No matrix product: BLAS threads that wait for a busy core take twenty times as long as the sums.
    """
    side = len(values)
    if side % cells == 0:  # in one call: each releases the interpreter's lock, and sides like 640 are common
        return np.asarray(values.reshape(cells, side // cells, *values.shape[1:]).sum(axis=1))
    edges = np.arange(cells + 1) * (side / cells)
    first = np.minimum(edges.astype(np.intp), side - 1)
    part = (edges - first).astype(values.dtype)[:, None]  # of the pixel on each edge, what lies before the edge
    shared = values[first] * part
    total = np.empty((cells, *values.shape[1:]), values.dtype)
    for cell, (start, stop) in enumerate(zip(first[:-1], [*first[1:-1], side], strict=True)):
        np.add.reduce(values[start:stop], axis=0, out=total[cell])  # reduceat takes six times as long
    total -= shared[:-1]
    total[:-1] += shared[1:-1]
    return np.asarray(total)


NORMALIZATIONS = ("minmax", "max", "none")
_SMALL, _PART = np.float32(1e-7), np.float32(3e-6)
_TINY = np.float32(2.0**-126)  # the smallest normal number: no divisor is 0
_ROUNDING = 1e-7  # of the maximum: a float32 map does not tell less from 0


def _between_extremes(values: Map, overwrite: bool) -> Map:
    """Each map minus its minimum, divided by its maximum then, see `normalize`."""
    result = values if overwrite and values.flags.c_contiguous else np.empty(values.shape, np.float32)
    maps, results = values.reshape(-1, *values.shape[-2:]), result.reshape(-1, *values.shape[-2:])
    for one, normalized in zip(maps, results, strict=True):  # map by map: they stay in the cache
        lowest = np.minimum.reduce(one, axis=None)
        peak = np.maximum.reduce(one, axis=None) - lowest
        if lowest:
            one = np.subtract(one, lowest, out=normalized)
        np.divide(one, max(peak + min(_SMALL, _PART * peak), _TINY), out=normalized)
    return result


def normalize(heatmap: NDArray[Any], how: str = "minmax", *, overwrite: bool = False) -> Map:
    """Normalise maps one by one over their last two axes; a map that is zero everywhere stays zero.

    Args:
        heatmap: float [..., h, w].
        how: "minmax" as pytorch-grad-cam does, `m = m - min(m); m / (max(m) + 1e-7)`, with 3e-6 max(m) for 1e-7 where
            that is less, so that the scale of small maps does not matter; "max" as in the Grad-CAM paper, `m / max(m)`
            (zero if the maximum is not positive); "none".
        overwrite: the result may be stored in `heatmap`, which is the caller's own; a new array of a picture's size
            takes longer to be given by the system than to be computed.

    Returns:
        float32 of the same shape.

    Raises:
        InputError: an unknown `how`.
    """
    values = np.asarray(heatmap, np.float32)
    if how not in NORMALIZATIONS:
        raise InputError(f"normalize is {how!r}, expected one of {', '.join(map(repr, NORMALIZATIONS))}")
    if how == "none" or values.size == 0:
        return values
    if how == "minmax":
        return _between_extremes(values, overwrite)
    peak = values.max(axis=(-2, -1), keepdims=True)
    positive = peak > 0
    values = np.asarray(values / np.where(positive, peak, np.float32(1)), np.float32)
    return values if positive.all() else np.asarray(np.where(positive, values, np.float32(0)), np.float32)
