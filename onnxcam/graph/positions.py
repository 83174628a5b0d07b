"""Where the elements of a value lie on the picture: which axes are rows, columns, or tokens laid out row by row.

Every axis is a product of factors, outermost first. Reshape and Transpose regroup factors, so windows that are cut
out and put back, or rows and columns flattened into tokens, are followed exactly; a convolution or pooling begins a
new, smaller grid; class tokens in front of the patches are counted where they are joined to them.
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
        size: how many steps.
        of: `rows` or `columns` of a grid, `tokens`, or "" for anything else.
        step: how far apart on the grid neighbours are.
        whole: rows or columns the grid has.
        before: of tokens, how many come before the patches.
        patches: of tokens, the factors of the patches.
    """

    size: int
    of: str = ""
    step: int = 1
    whole: int = 0
    before: int = 0
    patches: tuple[Factor, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether it runs over all of the grid, at its resolution or a coarser one."""
        return self.of in (ROWS, COLUMNS) and self.size * self.step == self.whole


Axis = tuple[Factor, ...]
Place = tuple[Axis, ...]


class Positions:
    """Finds, for the values of one graph, where their elements lie on the picture."""

    def __init__(self, graph: Graph, sizes: StaticShapes) -> None:
        self._sizes = sizes
        self._places: dict[str, Place] = {}
        for info in graph.inputs:
            self._enter(info.name)
        for node in graph.nodes:
            self._visit(node)

    def grid(self, value: str) -> tuple[tuple[int, int], int] | None:
        """Of a value `[N, T, C]`: height and width of the grid its tokens lie on, and how many come before it."""
        place = self._places.get(value, ())
        return patches(place[1]) if len(place) == 3 else None

    def axis(self, value: str, index: int) -> Axis:
        """The factors of one axis of a value, none where they are not known."""
        place = self._places.get(value)
        return () if place is None else place[index]

    def layout(self, value: str) -> str | None:
        """`NCHW` or `NHWC` of a value whose elements surely lie row by row, None where that is not known."""
        place = self._places.get(value, ())
        kinds = [axis[0].of if len(axis) == 1 and axis[0].complete else "" for axis in place]
        if kinds == ["", "", ROWS, COLUMNS]:
            return "NCHW"
        return "NHWC" if kinds == ["", ROWS, COLUMNS, ""] else None

    def scattered(self, value: str) -> bool:
        """Whether the elements surely do not lie row by row, as where they are sorted into windows."""
        place = self._places.get(value, ())
        if self.grid(value) is not None:
            return False
        axes = [axis for axis in place if _meant(axis)]
        sorted_anew = any(len(axis) > 1 or not axis[0].complete for axis in axes)
        return sorted_anew or len(place) == 3 or [axis[0].of for axis in axes] == [COLUMNS, ROWS]

    def _enter(self, name: str) -> None:
        """The picture: its two larger neighbours of the three axes are rows and columns."""
        shape = self._sizes.shape(name)
        if shape is None or len(shape) != 4:
            return
        first = 1 if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else 2
        place = [_plain(size) for size in shape]
        place[first], place[first + 1] = _fresh(ROWS, shape[first]), _fresh(COLUMNS, shape[first + 1])
        self._places[name] = tuple(place)

    def _visit(self, node: onnx.NodeProto) -> None:
        shapes = [self._sizes.shape(name) if name else None for name in node.input]
        found = [self._places.get(name) for name in node.input]
        for index, output in enumerate(node.output):
            shape = self._sizes.shape(output) if output else None
            if shape is None or not any(found):
                continue
            place = self._carried(node, found, shapes, shape, index)
            if place is not None and len(place) == len(shape) and any(f.of for axis in place for f in axis):
                # what a rule does not know the size of, or gets wrong, is unknown
                fitting = [
                    axis if _size(axis) == size else _plain(size) for axis, size in zip(place, shape, strict=True)
                ]
                self._places[output] = tuple(fitting)

    def _carried(
        self,
        node: onnx.NodeProto,
        found: Sequence[Place | None],
        shapes: Sequence[tuple[int, ...] | None],
        shape: tuple[int, ...],
        index: int,
    ) -> Place | None:
        """The place of an output of `shape` from those of the inputs."""
        kind, first = node.op_type, found[0]
        attrs = attributes(node)
        if kind in _KEEP:
            return _broadcast(found, shapes, shape)
        if kind == "MatMul":
            return _product(found, shape)
        if kind == "Gemm":
            return ((first[1] if attrs.get("transA") else first[0]), _plain(shape[1])) if first else None
        if kind == "Einsum":
            return _einsum(str(attrs.get("equation", "")), found, shape)
        if kind == "Concat":
            return _concat(found, shapes, shape, int(attrs["axis"]) % len(shape))
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
            return first if len(first) == len(shape) else None  # an axis of another size falls out as unknown
        if kind == "Slice":
            return self._sliced(node, first, shape)
        if kind == "Gather":
            axis = int(attrs.get("axis", 0)) % rank
            return (*first[:axis], *(_plain(n) for n in shape[axis : axis + len(shape) - rank + 1]), *first[axis + 1 :])
        if kind in _REDUCE and len(shape) == rank:
            return first
        if kind in _REDUCE:
            axes = self._sizes.small(node.input[1]) if len(node.input) > 1 and node.input[1] else None
            dropped = {axis % rank for axis in axes} if axes is not None else set()
            kept = tuple(axis for place, axis in enumerate(first) if place not in dropped)
            return kept if len(kept) == len(shape) else None
        return None

    def _sliced(self, node: onnx.NodeProto, first: Place, shape: tuple[int, ...]) -> Place:
        given = [self._sizes.small(name) if name else None for name in node.input[1:]]
        starts, axes = given[0], given[2] if len(given) > 2 else None
        steps = given[3] if len(given) > 3 else None
        place = list(first)
        for axis, size in enumerate(shape):
            if size == _size(first[axis]):
                continue
            place[axis] = _plain(size)
            if starts is None:
                continue
            named = [a % len(shape) for a in axes] if axes is not None else list(range(len(starts)))
            if axis not in named:
                continue
            start, step = starts[named.index(axis)], steps[named.index(axis)] if steps else 1
            factor = first[axis][0] if len(first[axis]) == 1 else None
            if factor is None:
                continue
            if factor.of == TOKENS and step == 1 and 0 <= start <= factor.before and start + size == factor.size:
                place[axis] = _tokens(factor.before - start, factor.patches)
            elif factor.complete and 0 <= start < step and size == -((start - factor.size) // step):
                place[axis] = _fresh(factor.of, size)  # every step-th row
        return tuple(place)


def patches(axis: Axis) -> tuple[tuple[int, int], int] | None:
    """Of an axis that runs over all patches: height and width of their grid, and how many tokens come before them."""
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


def _meant(axis: Axis) -> bool:
    return any(f.of for f in axis)


def _broadcast(
    found: Sequence[Place | None], shapes: Sequence[tuple[int, ...] | None], shape: tuple[int, ...]
) -> Place:
    """Of each axis the first input's that knows anything about it."""
    place = [_plain(size) for size in shape]
    for own, of in reversed(list(zip(found, shapes, strict=True))):
        if own is None or of is None:
            continue
        for back in range(1, min(len(of), len(shape)) + 1):
            if of[-back] == shape[-back] and _meant(own[-back]):
                place[-back] = own[-back]
    return tuple(place)


def _product(found: Sequence[Place | None], shape: tuple[int, ...]) -> Place | None:
    """Rows are the first input's, columns the second's, what is before them either's."""
    a, b = found
    if len(shape) < 2 or (a is not None and len(a) < 2) or (b is not None and len(b) < 2):
        return None
    place = [_plain(size) for size in shape]
    for own in (b, a):
        for back in range(3, 1 + min(len(own or ()), len(shape))):
            if own is not None and _meant(own[-back]):
                place[-back] = own[-back]
    place[-2] = a[-2] if a is not None else place[-2]
    place[-1] = b[-1] if b is not None else place[-1]
    return tuple(place)


def _einsum(equation: str, found: Sequence[Place | None], shape: tuple[int, ...]) -> Place | None:
    if "->" not in equation or "." in equation:
        return None
    sides, result = equation.replace(" ", "").split("->")
    place = []
    for letter, size in zip(result, shape, strict=True):
        axes = [own[side.index(letter)] for side, own in zip(sides.split(","), found, strict=True)
                if own is not None and letter in side]  # fmt: skip
        place.append(next((axis for axis in axes if _meant(axis)), _plain(size)))
    return tuple(place)


def _concat(
    found: Sequence[Place | None], shapes: Sequence[tuple[int, ...] | None], shape: tuple[int, ...], axis: int
) -> Place | None:
    if any(of is None for of in shapes):
        return None
    sizes = [of[axis] for of in shapes if of is not None]
    meant = [k for k, own in enumerate(found) if own is not None and _meant(own[axis])]
    joined = _plain(shape[axis])
    if len(meant) == 1 and sum(sizes[meant[0] + 1 :]) == 0:
        own = found[meant[0]]
        assert own is not None
        before, patches = sum(sizes[: meant[0]]), own[axis]
        if len(patches) == 1 and patches[0].of == TOKENS:
            before, patches = before + patches[0].before, patches[0].patches
        joined = _tokens(before, patches)
    elif len(meant) == 1 and len(shape) == 3:
        joined = (Factor(shape[axis], TOKENS),)  # others behind the patches: no layout says that
    base = _broadcast(found, shapes, shape)
    return (*base[:axis], joined, *base[axis + 1 :])


def _regrouped(factors: list[Factor], shape: tuple[int, ...]) -> Place | None:
    """The same elements in the same order under other dimensions: factors are split and put together as these need."""
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
    """The outer or inner part of a factor that is split; tokens with others before them cannot be told apart then."""
    return Factor(size) if factor.of in ("", TOKENS) else replace(factor, size=size, step=step)


def _merged(axis: Sequence[Factor]) -> Axis:
    """Neighbouring factors of one dimension, put together again."""
    found: list[Factor] = []
    for factor in axis:
        last = found[-1] if found else None
        if last is not None and last.of == factor.of == "":
            found[-1] = Factor(last.size * factor.size)
        elif last is not None and last.of in (ROWS, COLUMNS) and (last.of, last.whole, last.step) == (
            factor.of, factor.whole, factor.step * factor.size
        ):  # fmt: skip
            found[-1] = replace(factor, size=last.size * factor.size)
        else:
            found.append(factor)
    return tuple(found)


def _resized(axis: Axis, size: int) -> Axis:
    """Rows or columns of a new grid, where they were rows or columns."""
    if len(axis) == 1 and axis[0].complete:
        return _fresh(axis[0].of, size)
    return _plain(size)
