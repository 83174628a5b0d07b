"""The pixels that can reach each element of each value: intervals of rows and of columns, propagated through a graph.

Two things are carried along. *Cells*: for every element the first and the last pixel that can reach it, exactly, which
also holds after windows, shifts, crops and attention. *Grid*: the published arithmetic of start, stop and stride before
any clipping to the picture (Araujo, Norris and Sim, https://distill.pub/2019/computing-receptive-fields), as long as
cells form a regular grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph, attributes, uses
from onnxcam.inside import moves, windows

_NONE, _PAST = np.iinfo(np.int32).max, np.iinfo(np.int32).min
# what a dynamic scale depends on is left out, see `_visit`
_POINTWISE = having(Trait.ELEMENTWISE) | {
    "BatchNormalization", "CastLike", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear",
}  # fmt: skip
_MOVING = having(Trait.RESHAPES) | {
    "DepthToSpace", "Expand", "Gather", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose",
}  # fmt: skip
# their outputs depend on the sizes of their inputs alone
_SIZES = frozenset({"Shape", "Size", "EyeLike"})
_POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})


@dataclass(frozen=True)
class Grid:
    """Cell i of an axis is reached by the pixels from `start + i * stride` to before `stop + i * stride`."""

    start: Fraction
    stop: Fraction
    stride: Fraction


@dataclass(frozen=True)
class Extent:
    """Which rows (or columns) of the picture reach each element of a value.

    Attributes:
        first, last: int32, of the value's rank, an axis of length 1 where all along it are reached by the same; where
            `first > last` none reaches the element.
        grid: the same before any clipping, None where the cells form no regular grid.
        mixing: the operator that mixed cells, where one did.
    """

    first: np.ndarray
    last: np.ndarray
    grid: Grid | None
    mixing: str | None = None

    def along(self, axis: int) -> bool:
        """Whether the elements along an axis are reached by different pixels."""
        return bool(self.first.shape[axis] > 1)


Extents = tuple[Extent, Extent]  # of rows and of columns
Rule = Callable[["Reach", onnx.NodeProto, str, list[Extent | None], int], Extent | None]
_RULES: dict[str, Rule] = {}


def _rule(*operators: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


class Reach:
    """The extents of some values of a graph.

    Arguments:
        graph: a normalised graph.
        shapes: of all values, with the picture's size fixed.
        picture: the input; rows and columns are its two axes besides batch and channels.
        axes: those two axes of the picture.
        values: whose extents are needed; others are dropped on the way.
    """

    def __init__(
        self, graph: Graph, shapes: StaticShapes, picture: str, axes: tuple[int, int], values: Iterable[str]
    ) -> None:
        self.shapes = shapes
        self._extents: dict[str, Extents] = {}
        size = shapes.shape(picture) or ()
        rows, columns = (_pixels(len(size), axis, size[axis]) for axis in axes)
        self._extents[picture] = rows, columns
        needed = set(values)
        remaining = {name: len(nodes) for name, nodes in graph.consumers.items()}
        for node in graph.nodes:
            read = list(dict.fromkeys(uses(node)))
            if any(name in self._extents for name in read):
                self._visit(node, read)
            for name in read:
                remaining[name] -= 1
                if not remaining[name] and name not in needed:
                    self._extents.pop(name, None)

    def extents(self, value: str) -> Extents | None:
        """Of rows and of columns; None if no pixel reaches the value."""
        return self._extents.get(value)

    def _visit(self, node: onnx.NodeProto, read: Sequence[str]) -> None:
        if node.op_type in _SIZES:
            return
        outputs = [name for name in node.output if name]
        if node.op_type == "DynamicQuantizeLinear":
            outputs = outputs[:1]  # the numbers that are meant do not depend on the scale
        for output in outputs:
            extents = [self._extent(node, output, read, which) for which in (0, 1)]
            if extents[0] is not None and extents[1] is not None:
                self._extents[output] = extents[0], extents[1]

    def _extent(self, node: onnx.NodeProto, output: str, read: Sequence[str], which: int) -> Extent | None:
        inputs = [self._aligned(name, which) for name in node.input]
        shaped = all(self.shapes.shape(name) is not None for name in [*node.input, output] if name)
        rule = _RULES.get(node.op_type) if shaped and node.domain in ("", "ai.onnx") else None
        result = rule(self, node, output, inputs, which) if rule is not None else None
        if result is not None:
            return result
        every = [self._extents[name][which] for name in read if name in self._extents]
        return _anything(node, [extent for extent in every if extent is not None])

    def _aligned(self, value: str, which: int) -> Extent | None:
        if value not in self._extents:
            return None
        extent, rank = self._extents[value][which], self.rank(value)
        if extent.first.ndim >= rank:
            return extent
        return replace(extent, first=moves.aligned(extent.first, rank), last=moves.aligned(extent.last, rank))

    def rank(self, value: str) -> int:
        """The number of axes of a value of known shape."""
        return len(self.shapes.shape(value) or ())


def _pixels(rank: int, axis: int, size: int) -> Extent:
    index = np.arange(size, dtype=np.int32).reshape([size if at == axis else 1 for at in range(rank)])
    return Extent(index, index, Grid(Fraction(0), Fraction(1), Fraction(1)))


def _anything(node: onnx.NodeProto, extents: Sequence[Extent]) -> Extent:
    """The hull of all elements: what is right whatever the operator does."""
    first = np.array(min(int(extent.first.min()) for extent in extents), np.int32)
    last = np.array(max(int(extent.last.max()) for extent in extents), np.int32)
    return Extent(first, last, None, _name(extents) or _called(node))


def _name(extents: Iterable[Extent]) -> str | None:
    return next((extent.mixing for extent in extents if extent.mixing), None)


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name!r}"


def hull(extent: Extent, axes: Sequence[int], node: onnx.NodeProto, *, keep: bool = True) -> Extent:
    """The extent of what is computed from all elements along some axes."""
    mixed = any(extent.along(axis) for axis in axes)
    first = extent.first.min(axis=tuple(axes), keepdims=keep)
    last = extent.last.max(axis=tuple(axes), keepdims=keep)
    if not mixed:
        return replace(extent, first=first, last=last)
    return Extent(first, last, None, extent.mixing or _called(node))


def union(extents: Sequence[Extent], node: onnx.NodeProto, rank: int) -> Extent:
    """The extent of what is computed from elements of several values at the same place, after broadcasting."""
    wide = [
        replace(extent, first=moves.aligned(extent.first, rank), last=moves.aligned(extent.last, rank))
        for extent in extents
    ]
    first, last, grid = wide[0].first, wide[0].last, wide[0].grid
    for extent in wide[1:]:
        first, last = np.minimum(first, extent.first), np.maximum(last, extent.last)
        other = extent.grid
        if grid is not None and other is not None and grid.stride == other.stride:
            grid = Grid(min(grid.start, other.start), max(grid.stop, other.stop), grid.stride)
        else:
            grid = None
    return Extent(first, last, grid, _name(extents))


@_rule(*_POINTWISE)
def _pointwise(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent:
    inputs = inputs[:1] if node.op_type == "CastLike" else inputs
    return union([extent for extent in inputs if extent is not None], node, reach.rank(output))


@_rule(*_MOVING)
def _moving(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent | None:
    extent = inputs[0]
    if extent is None or any(other is not None for other in inputs[1:]):
        return None
    arrays = [moves.moved(node, output, array, reach.shapes) for array in (extent.first, extent.last)]
    if arrays[0] is None or arrays[1] is None:
        return None
    grid = _moved_grid(reach, node, output, extent)
    return Extent(arrays[0], arrays[1], grid, extent.mixing)


def _moved_grid(reach: Reach, node: onnx.NodeProto, output: str, extent: Extent) -> Grid | None:
    """The grid after a move: shifted by crops, finer or coarser between depth and space, None where it is not one."""
    grid = extent.grid
    if grid is None:
        return None
    rank = reach.rank(node.input[0])
    axes = [axis for axis in range(rank) if moves.aligned(extent.first, rank).shape[axis] > 1]
    match node.op_type:
        case "Slice":
            begins = moves.steps(node, reach.shapes) or {}
            for axis in axes:
                start, step = begins.get(axis, (0, 1))
                if step < 0 or (len(axes) > 1 and (start, step) != (0, 1)):
                    return None
                grid = _shifted(grid, Fraction(start), Fraction(start), Fraction(step))
        case "Split":
            part = moves.offset(node, output, reach.shapes)
            if part is not None and part[0] in axes:
                grid = _shifted(grid, Fraction(part[1]), Fraction(part[1]), Fraction(1)) if len(axes) == 1 else None
        case "Gather" | "Tile":
            moved_axis = int(attributes(node).get("axis", 0)) % rank if node.op_type == "Gather" else None
            if node.op_type == "Tile" or moved_axis in axes:
                grid = grid if reach.shapes.shape(output) == reach.shapes.shape(node.input[0]) else None
        case "SpaceToDepth":
            side = int(attributes(node)["blocksize"])
            grid = _shifted(grid, Fraction(0), Fraction(side - 1), Fraction(side))
        case "DepthToSpace":
            side = int(attributes(node)["blocksize"])
            grid = _shifted(grid, Fraction(1 - side, side), Fraction(0), Fraction(1, side))
        case _:
            pass
    return grid


def _shifted(grid: Grid, first: Fraction, last: Fraction, pitch: Fraction) -> Grid:
    """The grid of cells that read the cells from `first` to `last`, `pitch` further each."""
    return Grid(grid.start + first * grid.stride, grid.stop + last * grid.stride, grid.stride * pitch)


def _through(
    extent: Extent, reads: Sequence[windows.Reads | None], which: int, axes: Sequence[int] = (2, 3)
) -> Extent | None:
    """The extent after sliding operators along some axes."""
    first, last, grid = extent.first, extent.last, extent.grid
    rank = first.ndim
    varying = [axis for axis in range(rank) if first.shape[axis] > 1]
    # a grid of one cell has no axis along which it varies: rows then lie where convolutions have them
    place = varying[0] if len(varying) == 1 else 2 + which if not varying else None
    for axis, read in zip(axes, reads, strict=True):
        if read is None:
            return None
        first, last = read.over(first, axis, lowest=True), read.over(last, axis, lowest=False)
        if axis == place and grid is not None:
            grid = _shifted(grid, read.first, read.last, read.pitch)
    return Extent(first, last, grid if place is not None else None, extent.mixing)


@_rule("Conv", "ConvTranspose", "AveragePool", "LpPool", "MaxPool")
def _sliding(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent | None:
    extent = inputs[0]
    if extent is None or any(other is not None for other in inputs[1:]):
        return None  # weights that are computed from the picture
    rank = reach.rank(node.input[0])
    if node.op_type not in _POOLS and extent.along(1):
        extent = hull(extent, [1], node)
    axes = list(range(2, rank))
    return _through(extent, [windows.sliding(node, axis, reach.shapes) for axis in axes], which, axes)


@_rule("Pad")
def _pad(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent | None:
    if inputs[0] is None:
        return None
    axes = list(range(reach.rank(node.input[0])))
    return _through(inputs[0], [windows.padded(node, axis, reach.shapes) for axis in axes], which, axes)


@_rule("Resize")
def _resize(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent | None:
    if inputs[0] is None:
        return None
    axes = list(range(reach.rank(node.input[0])))
    return _through(inputs[0], [windows.resampled(node, axis, reach.shapes) for axis in axes], which, axes)


@_rule("Concat")
def _concat(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent | None:
    rank = reach.rank(output)
    axis = int(attributes(node)["axis"]) % rank
    present = [extent for extent in inputs if extent is not None]
    if not any(moves.aligned(extent.first, rank).shape[axis] > 1 for extent in present):
        return union(present, node, rank)  # beside each other, as channels are
    sizes = [(reach.shapes.shape(name) or (0,) * rank)[axis] for name in node.input]
    nothing = Extent(np.full((1,) * rank, _NONE), np.full((1,) * rank, _PAST), None)
    every = [nothing if extent is None else extent for extent in inputs]
    first = moves.joined([moves.aligned(extent.first, rank) for extent in every], sizes, axis)
    last = moves.joined([moves.aligned(extent.last, rank) for extent in every], sizes, axis)
    grid = present[0].grid if len(present) == 1 and rank == 3 else None  # a class token before the patches
    return Extent(first.astype(np.int32), last.astype(np.int32), grid, _name(present))


@_rule("MatMul", "Gemm")
def _product(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent | None:
    attrs, rank = attributes(node), reach.rank(output)
    parts = []
    for place, extent in enumerate(inputs):
        if extent is None:
            continue
        if place == 2:  # the bias of a Gemm
            parts.append(extent)
            continue
        ranks = reach.rank(node.input[place])
        if ranks < 2:
            return None
        turned = bool(attrs.get("transA" if place == 0 else "transB", 0))
        axis = (ranks - 1 if place == 0 else ranks - 2) if not turned else (ranks - 2 if place == 0 else ranks - 1)
        merged = hull(extent, [axis], node)
        if turned:
            merged = replace(merged, first=merged.first.swapaxes(-1, -2), last=merged.last.swapaxes(-1, -2))
        parts.append(merged)
    return union(parts, node, rank)


@_rule("Einsum")
def _einsum(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent | None:
    equation = str(attributes(node)["equation"]).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    if not arrow or "." in equation:
        return None
    parts = []
    for letters, extent in zip(terms.split(","), inputs, strict=True):
        if extent is None:
            continue
        if len(set(letters)) != len(letters):
            return None
        merged = hull(extent, [at for at, letter in enumerate(letters) if letter not in result], node)
        remaining = [letter for letter in letters if letter in result]
        order = [letters.index(letter) for letter in sorted(remaining, key=result.index)]
        at = {letter: place for place, letter in enumerate(sorted(remaining, key=result.index))}
        dropped = tuple(place for place, letter in enumerate(letters) if letter not in result)
        arrays = []
        for array in (merged.first, merged.last):
            turned = array.transpose([*order, *dropped]).reshape([array.shape[place] for place in order])
            arrays.append(turned.reshape([turned.shape[at[c]] if c in at else 1 for c in result]))
        parts.append(replace(merged, first=arrays[0], last=arrays[1]))
    return union(parts, node, reach.rank(output))


@_rule(*having(Trait.REDUCES), "ArgMax", "ArgMin")
def _reduction(
    reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int
) -> Extent | None:
    attrs, extent, rank = attributes(node), inputs[0], reach.rank(node.input[0])
    if extent is None:
        return None
    axes: list[int] | None = list(range(rank))
    if node.op_type.startswith("Arg"):
        axes = [int(attrs.get("axis", 0))]
    elif "axes" in attrs:
        axes = list(attrs["axes"])
    elif len(node.input) > 1 and node.input[1]:
        axes = reach.shapes.integers(node.input[1])
    elif attrs.get("noop_with_empty_axes", 0):
        axes = []
    if axes is None:
        return None
    return hull(extent, [axis % rank for axis in axes], node, keep=bool(attrs.get("keepdims", 1)))


@_rule("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "InstanceNormalization", "GroupNormalization")
def _global(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent | None:
    if inputs[0] is None or any(other is not None for other in inputs[1:]):
        return None
    first = 1 if node.op_type == "GroupNormalization" else 2
    return hull(inputs[0], list(range(first, reach.rank(node.input[0]))), node)


@_rule("LRN")
def _across_channels(
    reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int
) -> Extent | None:
    return None if inputs[0] is None else hull(inputs[0], [1], node)


@_rule("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum", "CumProd")
def _along(reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int) -> Extent | None:
    rank, axis = reach.rank(output), int(attributes(node).get("axis", -1))
    if node.op_type in ("CumSum", "CumProd"):
        read = reach.shapes.integers(node.input[1])
        if read is None:
            return None
        axis = read[0]
    return None if inputs[0] is None else hull(inputs[0], [axis % rank], node)


@_rule("LayerNormalization", "RMSNormalization", "MeanVarianceNormalization")
def _normalization(
    reach: Reach, node: onnx.NodeProto, output: str, inputs: list[Extent | None], which: int
) -> Extent | None:
    extent, rank, attrs = inputs[0], reach.rank(output), attributes(node)
    if extent is None or any(other is not None for other in inputs[1:]):
        return None
    if node.op_type == "MeanVarianceNormalization":
        axes = [axis % rank for axis in attrs.get("axes", (0, 2, 3))]
    else:
        axes = list(range(int(attrs.get("axis", -1)) % rank, rank))
    return hull(extent, axes, node)
