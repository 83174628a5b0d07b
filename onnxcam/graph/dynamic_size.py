"""The size of the picture where a file declares it dynamic although the model fits one size only.

Exporters of Hugging Face models declare height and width dynamic, although the position embeddings fit one size only.
That size is inferred by probing with a size that does not fit, from the shapes at the Add of the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import onnx

from onnxcam.graph.axes import COLUMNS, ROWS, patches
from onnxcam.graph.layout import has_tokens, input_layout
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.positions import Positions
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph, Shape, attributes

Size = tuple[int, int]
# 11 and 13 patches of 32 pixels: for a model that fits only one of them, the other does not fit
_PROBES = (352, 416)
_ELEMENTWISE = having(Trait.ELEMENTWISE)


@dataclass(frozen=True)
class _Picture:
    """The only input that any node reads, a batch of pictures, and its axes."""

    info: onnx.ValueInfoProto
    shape: Shape
    rows: int
    columns: int
    channels: int

    def fix(self, axis: int, length: int) -> None:
        self.info.type.tensor_type.shape.dim[axis].dim_value = length


def fix_implied(graph: Graph) -> bool:
    """Fix the picture's dynamic channels and size in place where only one value fits; return whether any was fixed.

    If so, shapes must be inferred again and the graph indexed again.
    """
    picture = _picture(graph)
    if picture is None:
        return False
    channels = None if isinstance(picture.shape[picture.channels], int) else _channels(graph, picture.info.name)
    if channels is not None:
        picture.fix(picture.channels, channels)
    size = _unique_size(graph, picture) if is_dynamic(graph) and has_tokens(graph, graph.nodes) else None
    if size is not None:
        fix(graph, size)
    return channels is not None or size is not None


def declared_size(graph: Graph) -> Shape:
    """Height and width of the picture as declared; empty if the input is not a picture."""
    picture = _picture(graph)
    return () if picture is None else (picture.shape[picture.rows], picture.shape[picture.columns])


def is_dynamic(graph: Graph) -> bool:
    """Whether the input is a picture of dynamic height or width."""
    return not all(isinstance(size, int) for size in declared_size(graph))


def fix(graph: Graph, size: Size) -> None:
    """Declare the picture's height and width in place; shapes must be inferred again."""
    picture = _picture(graph)
    assert picture is not None
    picture.fix(picture.rows, size[0])
    picture.fix(picture.columns, size[1])


def fits(graph: Graph, size: Size) -> bool:
    """Whether the operands of every elementwise join and linear layer fit for pictures of a size, as far as shapes are
    known."""
    picture = _picture(graph)
    if picture is None:
        return False
    shapes = _shapes(graph, picture, size)
    shape = shapes.shape(picture.info.name)  # None where shape inference fails
    return shape is not None and next(_mismatches(graph, shapes), None) is None and not _misses_weights(graph, shapes)


def _misses_weights(graph: Graph, shapes: StaticShapes) -> bool:
    """Whether a linear layer is given vectors of another length than that of its weights."""
    for node in graph.nodes:
        if node.op_type not in ("MatMul", "Gemm") or not graph.is_constant(node.input[1]):
            continue
        data, weights = (shapes.shape(name) for name in node.input[:2])
        if data is None or weights is None or len(weights) < 2:
            continue
        turned = attributes(node) if node.op_type == "Gemm" else {}
        length = data[0] if turned.get("transA") else data[-1]
        if isinstance(length, int) and length != (weights[-1] if turned.get("transB") else weights[-2]):
            return True
    return False


def _picture(graph: Graph) -> _Picture | None:
    """Find the picture among the inputs; None if several inputs are read, or one that is not of rank 4."""
    inputs = [info for info in graph.inputs if graph.consumers.get(info.name)]
    shape = graph.shape(inputs[0].name) if len(inputs) == 1 else None
    if shape is None or len(shape) != 4:
        return None
    channels_first = input_layout(graph, inputs[0].name) == "NCHW"
    return _Picture(inputs[0], shape, *((2, 3, 1) if channels_first else (1, 2, 3)))


def _channels(graph: Graph, name: str) -> int | None:
    """The input channels of the first convolution, if only elementwise operators or Transpose precede it."""
    values, visited = [name], {name}
    for value in values:
        for node in graph.consumers.get(value, []):
            if node.op_type == "Conv" and node.input[0] == value:
                depth = (graph.shape(node.input[1]) or (None, None))[1]
                return depth * int(attributes(node).get("group", 1)) if isinstance(depth, int) else None
            if node.op_type in _ELEMENTWISE or node.op_type == "Transpose":
                fresh = [output for output in node.output if output not in visited]
                visited.update(fresh)
                values += fresh
    return None


def _shapes(graph: Graph, picture: _Picture, size: Size) -> StaticShapes:
    """The shapes of all values for one picture of `size`."""
    dims = [dim if isinstance(dim, int) else 1 for dim in picture.shape]
    dims[picture.rows], dims[picture.columns] = size
    return StaticShapes(graph, {picture.info.name: tuple(dims)})


def _unique_size(graph: Graph, picture: _Picture) -> Size | None:
    """Return the only input size for which every elementwise join fits; None if several fit or none can be inferred."""
    declared = declared_size(graph)
    for probe in _PROBES:
        probe_size = (_static(declared[0]) or probe, _static(declared[1]) or probe)
        shapes = _shapes(graph, picture, probe_size)
        mismatches = list(_mismatches(graph, shapes))
        if mismatches:
            positions = Positions(graph, shapes)
            for value, lengths in mismatches:
                size = _fitting(positions, value, lengths, probe_size, declared)
                if size is not None and fits(graph, size):
                    return size
            return None
    return None


def _mismatches(graph: Graph, static_shapes: StaticShapes) -> Iterator[tuple[str, dict[int, int]]]:
    """Each operand whose shape does not fit the other's in an elementwise join, with the length each axis should have.

    Every pair of operands is reported in both directions.
    """
    for node in graph.nodes:
        if node.op_type not in _ELEMENTWISE:
            continue
        shapes = {name: static_shapes.shape(name) for name in node.input if name}
        others = dict.fromkeys(shapes.values())  # few, also of a sum of many values
        for (value, shape), other in product(shapes.items(), others):
            if shape is None or other is None or shape == other:
                continue
            shared = min(len(shape), len(other))
            pairs = {len(shape) - back: (shape[-back], other[-back]) for back in range(1, shared + 1)}
            lengths = {axis: b for axis, (a, b) in pairs.items() if a != b and 1 not in (a, b)}
            if lengths:
                yield value, lengths


def _fitting(
    positions: Positions, value: str, lengths: dict[int, int], probe_size: Size, declared: Shape
) -> Size | None:
    """Infer the size of the picture for which axes of a value have given lengths; a square if only an area is known.

    The stride of an axis, in pixels, is the probe's size divided by the axis' present length.
    """
    sides: dict[str, int] = {}
    for axis, length in lengths.items():
        factors = positions.axis(value, axis)
        if not all(factor.covers(probe_size) for factor in factors):
            return None  # the grid of a crop, or of a padded picture
        grid = patches(factors)
        if grid is not None:
            (rows, columns), before = grid
            steps = round(probe_size[0] / rows), round(probe_size[1] / columns)
            lengths_of_grid = _sides(
                length - before, [(_static(size) or 0) // step for size, step in zip(declared, steps, strict=True)]
            )
            if lengths_of_grid is None:
                return None
            sides |= {ROWS: lengths_of_grid[0] * steps[0], COLUMNS: lengths_of_grid[1] * steps[1]}
        elif len(factors) == 1 and factors[0].complete:
            whole = probe_size[0] if factors[0].of == ROWS else probe_size[1]
            sides[factors[0].of] = length * round(whole / factors[0].size)
    size = tuple(_static(side) or sides.get(of, 0) for of, side in zip((ROWS, COLUMNS), declared, strict=True))
    return (size[0], size[1]) if min(size) > 0 else None


def _sides(count: int, fixed: Sequence[int]) -> Size | None:
    """Rows and columns of a grid of `count` patches, one of which may be fixed (else 0): a square if neither is."""
    rows, columns = fixed
    if not rows and not columns:
        rows = columns = math.isqrt(max(count, 0))
    rows, columns = rows or count // columns, columns or count // rows
    return (rows, columns) if rows * columns == count else None


def _static(size: object) -> int | None:
    return size if isinstance(size, int) else None
