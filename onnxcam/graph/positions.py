"""Positions of a value's elements on the picture: which axes are rows, columns, or tokens in row order.

Every axis is a product of factors, outermost first. Reshape and Transpose regroup factors, so partitioning into windows
and its inverse, or flattening rows and columns to tokens, are followed exactly; a convolution or pooling begins a new,
smaller grid; class tokens before the patches are counted where they are concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import Graph, attributes

if TYPE_CHECKING:
    from onnxcam.graph.static_shapes import StaticShapes

ROWS, COLUMNS, TOKENS = "rows", "columns", "tokens"
_KEEP = having(Trait.ELEMENTWISE | Trait.NORMALIZES | Trait.KEEPS_SHAPE)
_REGRID, _RESHAPE, _REDUCE = having(Trait.REGRIDS), having(Trait.RESHAPES), having(Trait.REDUCES)


@dataclass(frozen=True)
class Factor:
    """One factor of an axis.

    Attributes:
        size: its number of elements.
        of: `rows` or `columns` of a grid, `tokens`, or "" for anything else.
        step: distance between neighbours on the grid.
        whole: number of rows or columns of the grid.
        before: for tokens, the number of prefix tokens before the patches.
        patches: for tokens, the factors of the patches.
    """

    size: int
    of: str = ""
    step: int = 1
    whole: int = 0
    before: int = 0
    patches: tuple[Factor, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the factor covers the whole grid, at its resolution or a coarser one."""
        return self.of in (ROWS, COLUMNS) and self.size * self.step == self.whole


Axis = tuple[Factor, ...]
Place = tuple[Axis, ...]


class Positions:
    """Positions on the picture of the elements of one graph's values."""

    def __init__(self, graph: Graph, shapes: StaticShapes) -> None:
        self._shapes = shapes
        self._places: dict[str, Place] = {}
        for info in graph.inputs:
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
        if kinds == ["", "", ROWS, COLUMNS]:
            return "NCHW"
        return "NHWC" if kinds == ["", ROWS, COLUMNS, ""] else None

    def scattered(self, value: str) -> bool:
        """Whether the elements are certainly not in row order, as when partitioned into windows."""
        place = self._places.get(value, ())
        if self.grid(value) is not None:
            return False
        axes = [axis for axis in place if _located(axis)]
        sorted_anew = any(len(axis) > 1 or not axis[0].complete for axis in axes)
        return sorted_anew or len(place) == 3 or [axis[0].of for axis in axes] == [COLUMNS, ROWS]

    def _enter(self, name: str) -> None:
        """Set the positions of the picture: rows and columns are the two axes besides batch and channels."""
        shape = self._shapes.shape(name)
        if shape is None or len(shape) != 4:
            return
        first = 1 if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else 2
        place = [_plain(size) for size in shape]
        place[first], place[first + 1] = _fresh(ROWS, shape[first]), _fresh(COLUMNS, shape[first + 1])
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
                    axis if _size(axis) == size else _plain(size) for axis, size in zip(place, shape, strict=True)
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
            return ((first[1] if attrs.get("transA") else first[0]), _plain(shape[1])) if first else None
        if kind == "Einsum":
            return _einsum(str(attrs.get("equation", "")), places, shape)
        if kind == "Concat":
            return _concat(places, shapes, shape, int(attrs["axis"]) % len(shape))
        if first is None:
            return None
        rank = len(first)
        if kind in _RESHAPE:
            return _regrouped([f for axis in first for f in axis], shape)
        if kind == "Transpose":
            return tuple(first[axis] for axis in attrs.get("perm", range(rank)[::-1]))
        if kind in _REGRID and rank == 4:
            return tuple(_resized(axis, size) for axis, size in zip(first, shape, strict=True))
        if kind in ("Expand", "Split", "Tile"):
            return first if len(first) == len(shape) else None  # `_visit` drops an axis of another size
        if kind == "Slice":
            return self._sliced(node, first, shape)
        if kind == "Gather":
            axis = int(attrs.get("axis", 0)) % rank
            return (*first[:axis], *(_plain(n) for n in shape[axis : axis + len(shape) - rank + 1]), *first[axis + 1 :])
        if kind in _REDUCE and len(shape) == rank:
            return first
        if kind in _REDUCE:
            axes = self._shapes.integers(node.input[1]) if len(node.input) > 1 and node.input[1] else None
            dropped = {axis % rank for axis in axes} if axes is not None else set()
            remaining = tuple(axis for index, axis in enumerate(first) if index not in dropped)
            return remaining if len(remaining) == len(shape) else None
        return None

    def _sliced(self, node: onnx.NodeProto, first: Place, shape: tuple[int, ...]) -> Place:
        parameters = [self._shapes.integers(name) if name else None for name in node.input[1:]]
        starts, axes = parameters[0], parameters[2] if len(parameters) > 2 else None
        steps = parameters[3] if len(parameters) > 3 else None
        place = list(first)
        for axis, size in enumerate(shape):
            if size == _size(first[axis]):
                continue
            place[axis] = _plain(size)
            if starts is None:
                continue
            sliced = [a % len(shape) for a in axes] if axes is not None else list(range(len(starts)))
            if axis not in sliced:
                continue
            start, step = starts[sliced.index(axis)], steps[sliced.index(axis)] if steps else 1
            factor = first[axis][0] if len(first[axis]) == 1 else None
            if factor is None:
                continue
            if factor.of == TOKENS and step == 1 and 0 <= start <= factor.before and start + size == factor.size:
                place[axis] = _tokens(factor.before - start, factor.patches)
            elif factor.complete and 0 <= start < step and size == -((start - factor.size) // step):
                place[axis] = _fresh(factor.of, size)  # every step-th row
        return tuple(place)


def patches(axis: Axis) -> tuple[tuple[int, int], int] | None:
    """Height and width of the grid of an axis that covers all patches, and its number of prefix tokens; else None."""
    before = 0
    if len(axis) == 1 and axis[0].of == TOKENS:
        axis, before = axis[0].patches, axis[0].before
    if [f.of for f in axis] != [ROWS, COLUMNS] or not all(f.complete for f in axis):
        return None
    return (axis[0].size, axis[1].size), before


def _plain(size: int) -> Axis:
    return (Factor(size),) if size > 1 else ()


def _fresh(of: str, size: int) -> Axis:
    return (Factor(size, of, 1, size),) if size > 1 else ()


def _tokens(before: int, patches: Axis) -> Axis:
    return (Factor(before + _size(patches), TOKENS, before=before, patches=patches),) if before else patches


def _size(axis: Axis) -> int:
    return prod(f.size for f in axis)


def _located(axis: Axis) -> bool:
    return any(f.of for f in axis)


def _broadcast(
    places: Sequence[Place | None], shapes: Sequence[tuple[int, ...] | None], shape: tuple[int, ...]
) -> Place:
    """For each axis, that of the first input for which it is known."""
    place = [_plain(size) for size in shape]
    for source, of in reversed(list(zip(places, shapes, strict=True))):
        if source is None or of is None:
            continue
        for back in range(1, min(len(of), len(shape)) + 1):
            if of[-back] == shape[-back] and _located(source[-back]):
                place[-back] = source[-back]
    return tuple(place)


def _product(places: Sequence[Place | None], shape: tuple[int, ...]) -> Place | None:
    """A matrix product: rows of the first input, columns of the second, batch axes of either."""
    a, b = places
    if len(shape) < 2 or (a is not None and len(a) < 2) or (b is not None and len(b) < 2):
        return None
    place = [_plain(size) for size in shape]
    for source in (b, a):
        for back in range(3, 1 + min(len(source or ()), len(shape))):
            if source is not None and _located(source[-back]):
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
        place.append(next((axis for axis in axes if _located(axis)), _plain(size)))
    return tuple(place)


def _concat(
    places: Sequence[Place | None], shapes: Sequence[tuple[int, ...] | None], shape: tuple[int, ...], axis: int
) -> Place | None:
    if any(of is None for of in shapes):
        return None
    sizes = [of[axis] for of in shapes if of is not None]
    located = [k for k, source in enumerate(places) if source is not None and _located(source[axis])]
    joined = _plain(shape[axis])
    if len(located) == 1 and sum(sizes[located[0] + 1 :]) == 0:
        source = places[located[0]]
        assert source is not None
        before, patches = sum(sizes[: located[0]]), source[axis]
        if len(patches) == 1 and patches[0].of == TOKENS:
            before, patches = before + patches[0].before, patches[0].patches
        joined = _tokens(before, patches)
    elif len(located) == 1 and len(shape) == 3:
        joined = (Factor(shape[axis], TOKENS),)  # tokens after the patches, for which there is no layout
    base = _broadcast(places, shapes, shape)
    return (*base[:axis], joined, *base[axis + 1 :])


def _regrouped(factors: list[Factor], shape: tuple[int, ...]) -> Place | None:
    """A Reshape: the same elements in the same order, factors split and merged to fit the new dimensions."""
    rest = list(_merged(factors))
    place = []
    for size in shape:
        axis: list[Factor] = []
        while _size(tuple(axis)) < size:
            if not rest:
                return None
            missing = size // _size(tuple(axis))
            if size % _size(tuple(axis)):
                return None
            factor = rest.pop(0)
            if factor.size > missing:
                if factor.size % missing:
                    return None
                inner = factor.size // missing
                rest.insert(0, _part(factor, inner, factor.step))
                factor = _part(factor, missing, factor.step * inner)
            axis.append(factor)
        place.append(_merged(axis))
    return tuple(place)


def _part(factor: Factor, size: int, step: int) -> Factor:
    """The outer or inner part of a factor that is split; unknown for tokens with prefix tokens."""
    return Factor(size) if factor.of in ("", TOKENS) else replace(factor, size=size, step=step)


def _merged(axis: Sequence[Factor]) -> Axis:
    """Merge neighbouring factors of one dimension."""
    merged: list[Factor] = []
    for factor in axis:
        last = merged[-1] if merged else None
        if last is not None and last.of == factor.of == "":
            merged[-1] = Factor(last.size * factor.size)
        elif last is not None and last.of in (ROWS, COLUMNS) and (last.of, last.whole, last.step) == (
            factor.of, factor.whole, factor.step * factor.size
        ):  # fmt: skip
            merged[-1] = replace(factor, size=last.size * factor.size)
        else:
            merged.append(factor)
    return tuple(merged)


def _resized(axis: Axis, size: int) -> Axis:
    """A window operator: complete rows or columns become those of a new grid."""
    if len(axis) == 1 and axis[0].complete:
        return _fresh(axis[0].of, size)
    return _plain(size)
