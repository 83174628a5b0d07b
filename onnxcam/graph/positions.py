"""Positions of a value's elements on the picture: which axes are rows, columns, or tokens in row order.

Every axis is a product of factors, outermost first. Reshape and Transpose regroup factors, so partitioning into windows
and its inverse, or flattening rows and columns to tokens, are followed exactly; a convolution or pooling begins a new,
smaller grid; class tokens before the patches are counted where they are concatenated. Slice, Split, Gather, Pad and
Resize change the span of the picture that a grid covers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import onnx

from onnxcam.graph.axes import (
    COLUMNS,
    ROWS,
    TOKENS,
    Axis,
    Factor,
    Place,
    adjoined,
    fresh,
    located,
    met,
    part_of,
    patches,
    plain,
    regrouped,
    resized,
    size_of,
    spanning,
    stretched,
    tokens,
)
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, attributes
from onnxcam.graph.window import Window

if TYPE_CHECKING:
    from onnxcam.graph.static_shapes import StaticShapes

_KEEP = having(Trait.ELEMENTWISE | Trait.NORMALIZES | Trait.KEEPS_SHAPE)
_REGRID, _RESHAPE, _REDUCE = having(Trait.REGRIDS), having(Trait.RESHAPES), having(Trait.REDUCES)
# what may precede the convolution or pooling whose padding a Pad is
_SAME_GRID = having(Trait.ELEMENTWISE | Trait.NORMALIZES)
_POOLS = ("AveragePool", "LpPool", "MaxPool")
_CROPS_AND_RESIZES = "tf_crop_and_resize"
# pixels: a grid that misses the picture's edges by no more covers the whole picture
_NEAR = 0.5


class Positions:
    """Positions on the picture of the elements of one graph's values."""

    def __init__(self, graph: Graph, shapes: StaticShapes) -> None:
        self._shapes = shapes
        self._consumers = graph.consumers
        self._starts: tuple[tuple[str, ...], list[int | None]] = (), []  # of the Split visited last
        self._margins: dict[tuple[str, int], float] = {}
        self._places: dict[str, Place] = {}
        self._size: dict[str, int] = {}  # of the picture
        for info in graph.inputs:
            if graph.consumers.get(info.name):
                self._enter(info.name)
        for node in graph.nodes:
            self._visit(node)

    def grid(self, value: str) -> tuple[tuple[int, int], int] | None:
        """Height and width of the grid of a value `[N, T, C]`, and its number of prefix tokens; None if unknown."""
        place = self._places.get(value, ())
        return patches(place[1]) if len(place) == 3 else None

    def axis(self, value: str, index: int) -> Axis:
        """The factors of one axis of a value; empty if unknown."""
        place = self._places.get(value)
        return () if place is None else place[index]

    def layout(self, value: str) -> str | None:
        """`NCHW` or `NHWC` for a value whose elements are in row order; None if that is not certain."""
        place = self._places.get(value, ())
        kinds = [axis[0].of if len(axis) == 1 and axis[0].complete else "" for axis in place]
        if kinds in (["", "", ROWS, COLUMNS], ["", "", COLUMNS, ROWS]):
            return "NCHW"
        return "NHWC" if kinds in (["", ROWS, COLUMNS, ""], ["", COLUMNS, ROWS, ""]) else None

    def window(self, value: str) -> Window | None:
        """The part of the picture that a value's grid covers; None if that is all of it, or unknown."""
        place = self._places.get(value, ())
        axes = [axis for axis in place if located(axis)]
        factors = [factor for axis in axes for factor in (axis[0].patches if axis[0].of == TOKENS else axis)]
        if sorted(factor.of for factor in factors) != [COLUMNS, ROWS] or not all(f.complete for f in factors):
            return None
        spans = {factor.of: factor.span for factor in factors}
        height, width = spans[ROWS], spans[COLUMNS]
        if height is None or width is None:
            return None
        transposed = factors[0].of == COLUMNS
        whole = all(
            abs(start) <= _NEAR and abs(stop - self._size[of]) <= _NEAR
            for of, (start, stop) in ((ROWS, height), (COLUMNS, width))
        )
        return None if whole and not transposed else Window(height, width, transposed)

    def scattered(self, value: str) -> bool:
        """Whether the elements are certainly not in row order, as when partitioned into windows."""
        place = self._places.get(value, ())
        if self.grid(value) is not None:
            return False
        axes = [axis for axis in place if located(axis)]
        sorted_anew = any(len(axis) > 1 or not axis[0].complete for axis in axes)
        return sorted_anew or len(place) == 3

    def _enter(self, name: str) -> None:
        """Set the positions of the picture: rows and columns are the two axes besides batch and channels."""
        shape = self._shapes.shape(name)
        if shape is None or len(shape) != 4:
            return
        first = 1 if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else 2
        place = [plain(size) for size in shape]
        for axis, of in ((first, ROWS), (first + 1, COLUMNS)):
            self._size[of] = shape[axis]
            place[axis] = fresh(of, shape[axis], (0.0, float(shape[axis])))
        self._places[name] = tuple(place)

    def _visit(self, node: onnx.NodeProto) -> None:
        shapes = [self._shapes.shape(name) if name else None for name in node.input]
        places = [self._places.get(name) for name in node.input]
        for index, output in enumerate(node.output):
            shape = self._shapes.shape(output) if output else None
            if shape is None or not any(places):
                continue
            place = self._propagate(node, places, shapes, shape, index)
            if place is not None and len(place) == len(shape) and any(f.of for axis in place for f in axis):
                # an axis whose size contradicts the shape is unknown
                fitting = [
                    axis if size_of(axis) == size else plain(size) for axis, size in zip(place, shape, strict=True)
                ]
                self._places[output] = tuple(fitting)

    def _propagate(
        self,
        node: onnx.NodeProto,
        places: Sequence[Place | None],
        shapes: Sequence[tuple[int, ...] | None],
        shape: tuple[int, ...],
        index: int,
    ) -> Place | None:
        """The positions of an output of `shape` from those of the inputs; None if unknown."""
        kind, first = node.op_type, places[0]
        attrs = attributes(node)
        if kind in _KEEP:
            return _broadcast(places, shapes, shape)
        if kind == "MatMul":
            return _product(places, shape)
        if kind == "Gemm":
            return ((first[1] if attrs.get("transA") else first[0]), plain(shape[1])) if first else None
        if kind == "Einsum":
            return _einsum(str(attrs.get("equation", "")), places, shape)
        if kind == "Concat":
            return _concat(places, shapes, shape, int(attrs["axis"]) % len(shape))
        if first is None:
            return None
        rank = len(first)
        if kind in _RESHAPE:
            return regrouped([f for axis in first for f in axis], shape)
        if kind == "Transpose":
            return tuple(first[axis] for axis in attrs.get("perm", range(rank)[::-1]))
        if kind == "Pad":
            return self._padded(node, first, shape)
        if kind == "Resize" and rank == 4:
            return self._resampled(node, attrs, first, shape)
        if kind in _REGRID and rank == 4:
            return tuple(resized(axis, size) for axis, size in zip(first, shape, strict=True))
        if kind in ("Expand", "Tile"):
            return first if len(first) == len(shape) else None  # `_visit` drops an axis of another size
        if kind == "Split":
            axis = int(attrs.get("axis", 0)) % rank
            start = self._start(node, index, axis)
            if start is None:
                return (*first[:axis], plain(shape[axis]), *first[axis + 1 :])
            return (*first[:axis], part_of(first[axis], start, 1, shape[axis]), *first[axis + 1 :])
        if kind == "Slice":
            return self._sliced(node, first, shape)
        if kind == "Gather":
            axis = int(attrs.get("axis", 0)) % rank
            read = self._shapes.shape(node.input[1])
            if read is not None and len(read) == 1 and located(first[axis]):
                return (*first[:axis], self._gathered(node.input[1], first[axis], read[0]), *first[axis + 1 :])
            return (*first[:axis], *(plain(n) for n in shape[axis : axis + len(shape) - rank + 1]), *first[axis + 1 :])
        if kind in _REDUCE and len(shape) == rank:
            return first
        if kind in _REDUCE:
            axes = self._shapes.integers(node.input[1]) if len(node.input) > 1 and node.input[1] else None
            dropped = {axis % rank for axis in axes} if axes is not None else set()
            remaining = tuple(axis for index, axis in enumerate(first) if index not in dropped)
            return remaining if len(remaining) == len(shape) else None
        return None

    def _start(self, node: onnx.NodeProto, index: int, axis: int) -> int | None:
        """Where an output of a Split begins in its input; None if the size of one before is unknown."""
        key = tuple(node.output)
        if self._starts[0] != key:
            starts: list[int | None] = [0]
            for name in key:
                shape, start = self._shapes.shape(name), starts[-1]
                starts.append(None if shape is None or start is None else start + shape[axis])
            self._starts = key, starts
        return self._starts[1][index]

    def _sliced(self, node: onnx.NodeProto, first: Place, shape: tuple[int, ...]) -> Place:
        parameters = [self._shapes.integers(name) if name else None for name in node.input[1:]]
        starts, axes = parameters[0], parameters[2] if len(parameters) > 2 else None
        steps = parameters[3] if len(parameters) > 3 else None
        rank, place = len(shape), list(first)
        axes = [axis % rank for axis in axes] if axes is not None else list(range(len(starts or shape)))
        for axis, size in enumerate(shape):
            if axis not in axes:
                continue
            if starts is None or (len(parameters) > 3 and steps is None and node.input[4]):
                place[axis] = first[axis] if size == size_of(first[axis]) else plain(size)
                continue
            at, whole = axes.index(axis), size_of(first[axis])
            start, step = starts[at], steps[at] if steps is not None else 1
            start = start + whole if start < 0 else start
            place[axis] = part_of(first[axis], min(max(start, 0), whole - (step < 0)), step, size)
        return tuple(place)

    def _gathered(self, indices: str, axis: Axis, size: int) -> Axis:
        """The elements of an axis that a Gather reads: unknown unless they are evenly spaced."""
        read = self._shapes.integers(indices)
        steps = {after - before for before, after in pairwise(read or ())}
        if read is None or len(steps) > 1 or 0 in steps or size != len(read):
            return plain(size)
        return part_of(axis, read[0] % size_of(axis), next(iter(steps), 1), size)

    def _padded(self, node: onnx.NodeProto, first: Place, shape: tuple[int, ...]) -> Place:
        pads, rank = self._shapes.integers(node.input[1]), len(first)
        axes = self._shapes.integers(node.input[3]) if len(node.input) > 3 and node.input[3] else list(range(rank))
        if pads is None or axes is None or len(pads) != 2 * len(axes) or str(attributes(node).get("mode")) == "wrap":
            return tuple(spanning(axis, size, None) for axis, size in zip(first, shape, strict=True))
        place = list(first)
        for at, axis in enumerate(axes):
            before, after = pads[at], pads[at + len(axes)]
            axis %= rank
            if before == after == 0 or not located(first[axis]):
                continue
            span = stretched(first[axis], -before, size_of(first[axis]) + after)
            if before >= 0 and after >= 0 and self._is_window_padding(node.output[0], axis, before + after):
                span = first[axis][0].span  # as where the convolution itself pads
            place[axis] = spanning(first[axis], shape[axis], span)
        return tuple(place)

    def _is_window_padding(self, value: str, axis: int, count: int) -> bool:
        """Whether only convolutions and poolings without padding of their own read a value, whose windows use it up."""
        key = value, axis
        stack = [key]
        while stack:  # depth first, each value and axis once
            at = stack[-1]
            missing = [] if at in self._margins else [key for key in self._behind(*at) if key not in self._margins]
            if missing:
                stack += missing
                continue
            stack.pop()
            if at not in self._margins:
                self._margins[at] = self._margin(*at)
        return self._margins[key] >= count

    def _behind(self, value: str, axis: int) -> list[tuple[str, int]]:
        """The values, each with its axis, that have the grid of this one."""
        behind = []
        for node in self._consumers.get(value, []):
            if node.op_type == "Transpose":
                perm = list(attributes(node).get("perm", ()))
                behind += [(node.output[0], perm.index(axis))] if axis in perm else []
            elif node.op_type in _SAME_GRID:
                behind.append((node.output[0], axis))
        return behind

    def _margin(self, value: str, axis: int) -> float:
        """By how much the smallest window that reads a value along an axis is larger than one element; -1 if others
        than windows without padding read it, or nothing does."""
        margin = math.inf
        for node in self._consumers.get(value, []):
            attrs = attributes(node)
            if node.op_type == "Transpose":
                perm = list(attrs.get("perm", ()))
                margin = min(margin, self._margins[node.output[0], perm.index(axis)] if axis in perm else -1)
            elif node.op_type in _SAME_GRID:
                margin = min(margin, self._margins[node.output[0], axis])
            elif node.op_type not in ("Conv", *_POOLS) or axis < 2:
                return -1
            else:
                kernel = attrs.get("kernel_shape") or (self._shapes.shape(node.input[1]) or ())[2:]
                pads, dilations = attrs.get("pads"), attrs.get("dilations") or [1] * len(kernel)
                at = axis - 2
                padded = attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
                if len(kernel) <= at or padded or (pads and (pads[at] or pads[at + len(kernel)])):
                    return -1
                margin = min(margin, (kernel[at] - 1) * dilations[at])
        return -1 if margin == math.inf else margin

    def _resampled(self, node: onnx.NodeProto, attrs: dict[str, Any], first: Place, shape: tuple[int, ...]) -> Place:
        """A Resize: the same span, but for a region of interest and for what a scale leaves over at the end."""
        rank, place = len(first), list(first)
        axes = [axis % rank for axis in attrs.get("axes", range(rank))]
        crops = attrs.get("coordinate_transformation_mode") == _CROPS_AND_RESIZES
        roi = self._shapes.numbers(node.input[1]) if crops and len(node.input) > 1 and node.input[1] else None
        scales = self._shapes.numbers(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        for at, axis in enumerate(axes):
            old, new = size_of(first[axis]), shape[axis]
            span = first[axis][0].span if first[axis] else None
            if crops:
                ends = None if roi is None or len(roi) != 2 * len(axes) else (roi[at], roi[at + len(axes)])
                # the centres of the first and the last pixel lie at these fractions of the way between those of before
                low, high = (0.0, 0.0) if ends is None else (ends[0] * (old - 1) + 0.5, ends[1] * (old - 1) + 0.5)
                pitch = (high - low) / (new - 1) if new > 1 else 0.0
                span = None if ends is None else stretched(first[axis], low - pitch / 2, high + pitch / 2)
                span = first[axis][0].span if ends == (0.0, 1.0) and first[axis] else span
            elif scales is not None and len(scales) == len(axes) and scales[at] > 0 and first[axis]:
                extent = new / scales[at]
                span = span if abs(extent - old) * scales[at] < 1e-3 else stretched(first[axis], 0, extent)
            place[axis] = spanning(first[axis], new, span)
        return tuple(place)


def _broadcast(
    places: Sequence[Place | None], shapes: Sequence[tuple[int, ...] | None], shape: tuple[int, ...]
) -> Place:
    """For each axis, that of the first input for which it is known; where it covers other spans in others, no span."""
    place = [plain(size) for size in shape]
    for source, of in reversed(list(zip(places, shapes, strict=True))):
        if source is None or of is None:
            continue
        for back in range(1, min(len(of), len(shape)) + 1):
            if of[-back] == shape[-back] and located(source[-back]):
                place[-back] = met(source[-back], place[-back])
    return tuple(place)


def _product(places: Sequence[Place | None], shape: tuple[int, ...]) -> Place | None:
    """A matrix product: rows of the first input, columns of the second, batch axes of either."""
    a, b = places
    if len(shape) < 2 or (a is not None and len(a) < 2) or (b is not None and len(b) < 2):
        return None
    place = [plain(size) for size in shape]
    for source in (b, a):
        for back in range(3, 1 + min(len(source or ()), len(shape))):
            if source is not None and located(source[-back]):
                place[-back] = source[-back]
    place[-2] = a[-2] if a is not None else place[-2]
    place[-1] = b[-1] if b is not None else place[-1]
    return tuple(place)


def _einsum(equation: str, places: Sequence[Place | None], shape: tuple[int, ...]) -> Place | None:
    if "->" not in equation or "." in equation:
        return None
    sides, result = equation.replace(" ", "").split("->")
    place = []
    for letter, size in zip(result, shape, strict=True):
        axes = [source[side.index(letter)] for side, source in zip(sides.split(","), places, strict=True)
                if source is not None and letter in side]  # fmt: skip
        place.append(next((axis for axis in axes if located(axis)), plain(size)))
    return tuple(place)


def _concat(
    places: Sequence[Place | None], shapes: Sequence[tuple[int, ...] | None], shape: tuple[int, ...], axis: int
) -> Place | None:
    if any(of is None for of in shapes):
        return None
    sizes = [of[axis] for of in shapes if of is not None]
    sources = [k for k, source in enumerate(places) if source is not None and located(source[axis])]
    joined = plain(shape[axis])
    if len(sources) == 1 and len(shape) == 3 and sum(sizes[sources[0] + 1 :]) == 0:
        source = places[sources[0]]
        assert source is not None
        before, rest = sum(sizes[: sources[0]]), source[axis]
        if len(rest) == 1 and rest[0].of == TOKENS:
            before, rest = before + rest[0].before, rest[0].patches
        joined = tokens(before, rest)
    elif len(sources) == 1 and len(shape) == 3:
        joined = (Factor(shape[axis], TOKENS),)  # tokens after the patches, for which there is no layout
    elif len(shape) == 4 and sources:
        joined = adjoined(places, axis, sizes)
    base = _broadcast(places, shapes, shape)
    return (*base[:axis], joined, *base[axis + 1 :])
