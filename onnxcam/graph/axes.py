"""Axes of a value as products of factors: rows and columns of a grid over the picture, tokens, or anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from onnxcam.graph.window import Span

ROWS, COLUMNS, TOKENS = "rows", "columns", "tokens"


@dataclass(frozen=True)
class Factor:
    """One factor of an axis.

    Attributes:
        size: its number of elements.
        of: `rows` or `columns` of a grid, `tokens`, or "" for anything else.
        step: distance between neighbours on the grid.
        whole: number of rows or columns of the grid.
        span: where the grid starts and stops on the picture, in pixels; None if that is unknown.
        before: for tokens, the number of prefix tokens before the patches.
        patches: for tokens, the factors of the patches.
    """

    size: int
    of: str = ""
    step: int = 1
    whole: int = 0
    span: Span | None = None
    before: int = 0
    patches: tuple[Factor, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the factor covers the whole grid, at its resolution or a coarser one."""
        return self.of in (ROWS, COLUMNS) and self.size * self.step == self.whole

    def covers(self, size: tuple[int, int]) -> bool:
        """Whether the grid covers a whole picture of this height and width; rows and columns alone can fail to."""
        if self.of == TOKENS:
            return all(factor.covers(size) for factor in self.patches)
        return self.of == "" or self.span == (0.0, float(size[0 if self.of == ROWS else 1]))


Axis = tuple[Factor, ...]
Place = tuple[Axis, ...]


def patches(axis: Axis) -> tuple[tuple[int, int], int] | None:
    """Height and width of the grid of an axis that covers all patches, and its number of prefix tokens; else None."""
    before = 0
    if len(axis) == 1 and axis[0].of == TOKENS:
        axis, before = axis[0].patches, axis[0].before
    if [f.of for f in axis] not in ([ROWS, COLUMNS], [COLUMNS, ROWS]) or not all(f.complete for f in axis):
        return None
    return (axis[0].size, axis[1].size), before


def plain(size: int) -> Axis:
    return (Factor(size),) if size > 1 else ()


def fresh(of: str, size: int, span: Span | None) -> Axis:
    return (Factor(size, of, 1, size, span),) if size > 1 else ()


def tokens(before: int, patches: Axis) -> Axis:
    return (Factor(before + size_of(patches), TOKENS, before=before, patches=patches),) if before else patches


def size_of(axis: Axis) -> int:
    return prod(f.size for f in axis)


def located(axis: Axis) -> bool:
    return any(f.of for f in axis)


def met(axis: Axis, other: Axis) -> Axis:
    """An axis that meets another one: without its span where that of the other lies a cell or more from it."""
    if len(axis) != 1 or len(other) != 1 or other[0].of not in (ROWS, COLUMNS) or axis[0].of not in (ROWS, COLUMNS):
        return axis
    a, b = axis[0].span, other[0].span
    if a is not None and b is not None:
        cell = abs(a[1] - a[0]) / axis[0].whole
        if axis[0].of == other[0].of and max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= cell * (1 + 1e-6):
            return axis
    return (replace(axis[0], span=None),)


def stretched(axis: Axis, start: float, stop: float) -> Span | None:
    """The span of the elements from `start` to `stop` of an axis that covers a grid, beyond its ends too."""
    if len(axis) != 1 or not axis[0].complete or axis[0].span is None:
        return None
    first, last = axis[0].span
    pitch = (last - first) / axis[0].size
    return first + start * pitch, first + stop * pitch


def part_of(axis: Axis, start: int, step: int, size: int) -> Axis:
    """Every `step`-th element of an axis, `size` of them from `start` on; unknown for parts of windows or tokens."""
    whole = size_of(axis)
    if step == 1 and start == 0 and size == whole:
        return axis
    factor = axis[0] if len(axis) == 1 else None
    if factor is None:
        return plain(size)
    if factor.of == TOKENS and step == 1 and 0 <= start <= factor.before and start + size == factor.size:
        return tokens(factor.before - start, factor.patches)
    if not factor.complete:
        return plain(size)
    if step > 1 and 0 <= start < step and size == -((start - whole) // step):
        return fresh(factor.of, size, factor.span)  # every step-th row of all
    # each element stands for `step` elements around it
    end = start + 0.5 + (size - 0.5) * step
    return fresh(factor.of, size, stretched(axis, end - size * step, end))


def regrouped(factors: list[Factor], shape: tuple[int, ...]) -> Place | None:
    """A Reshape: the same elements in the same order, factors split and merged to fit the new dimensions."""
    rest = list(merged(factors))
    place = []
    for size in shape:
        axis: list[Factor] = []
        while size_of(tuple(axis)) < size:
            if not rest:
                return None
            missing = size // size_of(tuple(axis))
            if size % size_of(tuple(axis)):
                return None
            factor = rest.pop(0)
            if factor.size > missing:
                if factor.size % missing:
                    return None
                inner = factor.size // missing
                rest.insert(0, _part(factor, inner, factor.step))
                factor = _part(factor, missing, factor.step * inner)
            axis.append(factor)
        place.append(merged(axis))
    return tuple(place)


def _part(factor: Factor, size: int, step: int) -> Factor:
    """The outer or inner part of a factor that is split; unknown for tokens with prefix tokens."""
    return Factor(size) if factor.of in ("", TOKENS) else replace(factor, size=size, step=step)


def merged(axis: Sequence[Factor]) -> Axis:
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


def adjoined(places: Sequence[Place | None], axis: int, sizes: Sequence[int]) -> Axis:
    """Rows or columns joined one after the other: a grid again if each begins where the one before stops.

    What is not of the picture, such as zeros, is padding.
    """
    parts = [() if place is None else place[axis] for place in places]
    start, of, pitch = 0.0, "", 0.0
    at = 0
    for part, size in zip(parts, sizes, strict=True):
        if located(part):
            factor = part[0]
            if len(part) > 1 or not factor.complete or factor.span is None:
                return plain(sum(sizes))
            first, each = factor.span[0], (factor.span[1] - factor.span[0]) / size
            if not of:
                start, of, pitch = first - at * each, factor.of, each
            elif factor.of != of or abs(each - pitch) > 1e-6 or abs(start + at * pitch - first) > 1e-3:
                return plain(sum(sizes))
        at += size
    return fresh(of, at, (start, start + at * pitch))


def resized(axis: Axis, size: int) -> Axis:
    """A window operator: complete rows or columns become those of a new grid over the same span."""
    return spanning(axis, size, axis[0].span if axis else None)


def spanning(axis: Axis, size: int, span: Span | None) -> Axis:
    """Complete rows or columns as those of a new grid over another span."""
    if len(axis) == 1 and axis[0].complete:
        return fresh(axis[0].of, size, span)
    return plain(size)
