"""Which cells of its data each output cell of a sliding operator reads, along one axis."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import onnx

from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import attributes

_TIE = 1e-4  # runtimes compute coordinates in float32: so near a tie, either neighbour may be read


@dataclass(frozen=True)
class Reads:
    """The cells that are read along an axis.

    Attributes:
        cells: int64 `[outputs, reads]`: indices of cells, -1 for none (padding).
        first, last: as fractions of a cell: output j reads no cell before `first + j * pitch` and none after
            `last + j * pitch`, counted on into the padding.
        pitch: cells from the reads of one output to those of the next.
    """

    cells: np.ndarray
    first: Fraction
    last: Fraction
    pitch: Fraction

    def over(self, array: np.ndarray, axis: int, lowest: bool) -> np.ndarray:
        """The minimum (or maximum) over the cells that each output reads, of an integer array along its axis."""
        if array.shape[axis] == 1 and self.cells.max(initial=0) > 0:
            return array
        nothing = np.iinfo(array.dtype).max if lowest else np.iinfo(array.dtype).min
        values = np.moveaxis(array, axis, -1)[..., np.maximum(self.cells, 0)]
        values = np.where(self.cells < 0, nothing, values)
        return np.moveaxis(values.min(-1) if lowest else values.max(-1), -1, axis)


def sliding(node: onnx.NodeProto, axis: int, shapes: StaticShapes) -> Reads | None:
    """The reads of a convolution or pooling along a spatial axis of its data; None if sizes are unknown."""
    attrs, at = attributes(node), axis - 2
    before, after = shapes.shape(node.input[0]), shapes.shape(node.output[0])
    weights = shapes.shape(node.input[1]) if "Conv" in node.op_type else None
    kernel = attrs.get("kernel_shape") or (weights or ())[2:]
    if before is None or after is None or len(kernel) <= at:
        return None
    size, step, dilation = kernel[at], _at(attrs, "strides", at), _at(attrs, "dilations", at)
    spread = (size - 1) * dilation
    inside, outside = before[axis], after[axis]
    pads = attrs.get("pads") or [0] * 2 * len(kernel)
    padding, same = pads[at], attrs.get("auto_pad", "NOTSET")
    if node.op_type == "ConvTranspose":
        if same in ("SAME_UPPER", "SAME_LOWER") or attrs.get("output_shape"):
            more = (attrs.get("output_padding") or [0] * len(kernel))[at]
            total = step * (inside - 1) + more + spread + 1 - outside
            padding = total // 2 if same == "SAME_UPPER" else total - total // 2
        return _transposed(inside, outside, size, step, dilation, padding)
    if same in ("SAME_UPPER", "SAME_LOWER"):
        total = max((outside - 1) * step + spread + 1 - inside, 0)
        padding = total // 2 if same == "SAME_UPPER" else total - total // 2
    elif same == "VALID":
        padding = 0
    cells = np.arange(outside)[:, None] * step - padding + np.arange(size) * dilation
    cells[(cells < 0) | (cells >= inside)] = -1
    return Reads(cells, Fraction(-padding), Fraction(spread - padding), Fraction(step))


def _at(attrs: dict[str, Any], name: str, at: int) -> int:
    values = attrs.get(name)
    return int(values[at]) if values else 1


def _transposed(inside: int, outside: int, size: int, step: int, dilation: int, padding: int) -> Reads:
    """Output j reads cell i where j = i * step - padding + k * dilation."""
    taps = np.arange(outside)[:, None] + padding - np.arange(size) * dilation
    cells = np.where(taps % step == 0, taps // step, -1)
    cells[(cells < 0) | (cells >= inside)] = -1
    spread = (size - 1) * dilation
    pitch = Fraction(1, step)
    first = min(ceil(Fraction(j + padding - spread, step)) - j * pitch for j in range(step))
    last = max(floor(Fraction(j + padding, step)) - j * pitch for j in range(step))
    return Reads(cells, first, max(first, last), pitch)


def padded(node: onnx.NodeProto, axis: int, shapes: StaticShapes) -> Reads | None:
    """The reads of a Pad along an axis; None if they are computed at run time."""
    before, after = shapes.shape(node.input[0]), shapes.shape(node.output[0])
    pads = shapes.integers(node.input[1])
    if before is None or after is None or pads is None:
        return None
    axes = shapes.integers(node.input[3]) if len(node.input) > 3 and node.input[3] else list(range(len(before)))
    if axes is None:
        return None
    axes = [one % len(before) for one in axes]
    start = pads[axes.index(axis)] if axis in axes else 0
    size = before[axis]
    cells = np.arange(after[axis]) - start
    match str(attributes(node).get("mode", "constant")):
        case "edge":
            cells = np.clip(cells, 0, size - 1)
        case "wrap":
            cells = cells % size
        case "reflect":
            period = max(2 * (size - 1), 1)
            cells = np.abs((cells + size - 1) % period - (size - 1)) if size > 1 else cells * 0
        case _:
            cells[(cells < 0) | (cells >= size)] = -1
    return Reads(cells[:, None], Fraction(-start), Fraction(-start), Fraction(1))


def resampled(node: onnx.NodeProto, axis: int, shapes: StaticShapes) -> Reads | None:
    """The reads of a Resize along an axis; None if sizes are unknown."""
    before, after = shapes.shape(node.input[0]), shapes.shape(node.output[0])
    if before is None or after is None:
        return None
    attrs, inside, outside = attributes(node), before[axis], after[axis]
    axes = [one % len(before) for one in attrs.get("axes", range(len(before)))]
    if axis not in axes:
        cells = np.arange(outside)[:, None]
        return Reads(cells, Fraction(0), Fraction(0), Fraction(1))
    scales = shapes.numbers(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    scale = scales[axes.index(axis)] if scales and len(scales) == len(axes) else outside / inside
    how = str(attrs.get("coordinate_transformation_mode", "half_pixel"))
    if how == "tf_crop_and_resize":
        return None
    place = _coordinates(how, inside, outside, scale)
    mode = str(attrs.get("mode", "nearest"))
    if mode == "nearest":
        low, high = _nearest(place, str(attrs.get("nearest_mode", "round_prefer_floor")))
    else:
        reach = 1.0 if mode == "linear" else 2.0
        reach *= max(1 / scale, 1.0) if attrs.get("antialias") else 1.0
        slack = np.where(_exact(place), 0.0, _TIE)
        low = np.floor(place - reach - slack).astype(int) + 1
        high = np.ceil(place + reach + slack).astype(int) - 1
        high = np.maximum(high, low)
    pitch = Fraction(1 / scale).limit_denominator(10_000)
    index = np.arange(outside)
    first = min(int(cell) - int(j) * pitch for j, cell in zip(index, low, strict=True))
    last = max(int(cell) - int(j) * pitch for j, cell in zip(index, high, strict=True))
    cells = np.clip(low[:, None] + np.arange((high - low).max() + 1), 0, inside - 1)
    return Reads(np.minimum(cells, np.clip(high, 0, inside - 1)[:, None]), first, last, pitch)


def _coordinates(how: str, inside: int, outside: int, scale: float) -> np.ndarray:
    """Where the centre of each output cell lies, in cells of the data."""
    j = np.arange(outside, dtype=np.float64)
    match how:
        case "asymmetric":
            return j / scale
        case "align_corners":
            return j * (inside - 1) / max(outside - 1, 1)
        case "half_pixel_symmetric":
            centre = inside / 2
            return centre * (1 - outside / (scale * inside)) + (j + 0.5) / scale - 0.5
        case "pytorch_half_pixel" if outside == 1:
            return j
        case _:
            return (j + 0.5) / scale - 0.5


def _nearest(place: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """The nearest cell of each coordinate, and the other one where it is a tie but for rounding."""
    exact, low, high = (_rounded(at, how) for at in (place, place - _TIE, place + _TIE))
    return np.where(_exact(place), exact, low), np.where(_exact(place), exact, high)


def _rounded(place: np.ndarray, how: str) -> np.ndarray:
    match how:
        case "floor":
            cells = np.floor(place)
        case "ceil":
            cells = np.ceil(place)
        case "round_prefer_ceil":
            cells = np.floor(place + 0.5)
        case _:
            cells = np.ceil(place - 0.5)
    return np.asarray(cells, np.int64)


def _exact(place: np.ndarray) -> np.ndarray:
    """Whether coordinates are sums of few powers of two, which float32 has exactly."""
    return np.asarray(np.abs(place * 64 - np.round(place * 64)) < 1e-9)
