"""The size of the picture where a file leaves it open although the model admits but one.

Exporters of Hugging Face models declare height and width free, and the position embeddings inside fit one size only.
It is found by following pictures of a size that is surely wrong to where the embeddings do not fit them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import onnx

from onnxcam.graph.layout import has_tokens, input_layout
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.positions import COLUMNS, ROWS, Positions, patches
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph, Shape, attributes

Size = tuple[int, int]
# 11 and 13 patches of 32 pixels: a model that admits but one of them is found by the other
_PROBES = (352, 416)
_ELEMENTWISE = having(Trait.ELEMENTWISE)


@dataclass(frozen=True)
class _Picture:
    """The one input that anything reads, a batch of pictures, and which of its axes is which."""

    info: onnx.ValueInfoProto
    shape: Shape
    rows: int
    columns: int
    channels: int

    def fix(self, axis: int, length: int) -> None:
        self.info.type.tensor_type.shape.dim[axis].dim_value = length


def fix_implied(graph: Graph) -> bool:
    """Fix the channels and the size of the picture in place where the graph admits but one; whether anything was.

    The graph is to be made anew then, with shapes inferred again.
    """
    picture = _picture(graph)
    if picture is None:
        return False
    channels = None if isinstance(picture.shape[picture.channels], int) else _channels(graph, picture.info.name)
    if channels is not None:
        picture.fix(picture.channels, channels)
    size = _only(graph, picture) if is_dynamic(graph) and has_tokens(graph, graph.nodes) else None
    if size is not None:
        fix(graph, size)
    return channels is not None or size is not None


def declared_size(graph: Graph) -> Shape:
    """Height and width of the picture as its declaration has them; empty where the input is no picture."""
    picture = _picture(graph)
    return () if picture is None else (picture.shape[picture.rows], picture.shape[picture.columns])


def is_dynamic(graph: Graph) -> bool:
    """Whether the input is a picture whose height or width is not declared."""
    return not all(isinstance(size, int) for size in declared_size(graph))


def fix(graph: Graph, size: Size) -> None:
    """Declare the picture's height and width in place; shapes are to be inferred anew."""
    picture = _picture(graph)
    assert picture is not None
    picture.fix(picture.rows, size[0])
    picture.fix(picture.columns, size[1])


def fits(graph: Graph, size: Size) -> bool:
    """Whether all that is joined elementwise fits for pictures of a size, as far as shapes are known."""
    picture = _picture(graph)
    if picture is None:
        return False
    sizes = _sizes(graph, picture, size)
    shape = sizes.shape(picture.info.name)  # not known where shapes cannot be inferred at all
    return shape is not None and next(_clashes(graph, sizes), None) is None


def _picture(graph: Graph) -> _Picture | None:
    inputs = [info for info in graph.inputs if graph.consumers.get(info.name)]
    shape = graph.shape(inputs[0].name) if len(inputs) == 1 else None
    if shape is None or len(shape) != 4:
        return None
    leading = input_layout(graph, inputs[0].name) == "NCHW"
    return _Picture(inputs[0], shape, *((2, 3, 1) if leading else (1, 2, 3)))


def _channels(graph: Graph, name: str) -> int | None:
    """How many channels the first convolution takes, where the picture comes to it as it is or scaled."""
    waiting = [name]
    for value in waiting:
        for node in graph.consumers.get(value, []):
            if node.op_type == "Conv" and node.input[0] == value:
                depth = (graph.shape(node.input[1]) or (None, None))[1]
                return depth * int(attributes(node).get("group", 1)) if isinstance(depth, int) else None
            if node.op_type in _ELEMENTWISE or node.op_type == "Transpose":
                waiting += [output for output in node.output if output not in waiting]
    return None


def _sizes(graph: Graph, picture: _Picture, size: Size) -> StaticShapes:
    """The sizes of everything for one picture of `size`."""
    dims = [dim if isinstance(dim, int) else 1 for dim in picture.shape]
    dims[picture.rows], dims[picture.columns] = size
    return StaticShapes(graph, {picture.info.name: tuple(dims)})


def _only(graph: Graph, picture: _Picture) -> Size | None:
    """The size of which alone everything fits, None where others do too, or it cannot be told."""
    said = declared_size(graph)
    for probe in _PROBES:
        tried = (_known(said[0]) or probe, _known(said[1]) or probe)
        sizes = _sizes(graph, picture, tried)
        clashes = list(_clashes(graph, sizes))
        if clashes:
            places = Positions(graph, sizes)
            for moving, wanted in clashes:
                size = _fitting(places, moving, wanted, tried, said)
                if size is not None and fits(graph, size):
                    return size
            return None
    return None


def _clashes(graph: Graph, sizes: StaticShapes) -> Iterator[tuple[str, dict[int, int]]]:
    """Each value that does not fit what it is joined with, and how long its axes would have to be."""
    for node in graph.nodes:
        if node.op_type not in _ELEMENTWISE:
            continue
        shapes = {name: sizes.shape(name) for name in node.input if name}
        for (value, own), (_, other) in permutations(shapes.items(), 2):
            if own is None or other is None:
                continue
            shared = min(len(own), len(other))
            pairs = {len(own) - back: (own[-back], other[-back]) for back in range(1, shared + 1)}
            wrong = {axis: b for axis, (a, b) in pairs.items() if a != b and 1 not in (a, b)}
            if wrong:
                yield value, wrong


def _fitting(places: Positions, value: str, wanted: dict[int, int], tried: Size, said: Shape) -> Size | None:
    """The size of a picture of which the axes of a value have the wanted lengths; a square where nothing tells more.

    A value comes from the picture by steps of as many pixels as go into it now.
    """
    found: dict[str, int] = {}
    for axis, length in wanted.items():
        factors = places.axis(value, axis)
        grid = patches(factors)
        if grid is not None:
            (rows, columns), before = grid
            steps = round(tried[0] / rows), round(tried[1] / columns)
            lengths = _sides(
                length - before, [(_known(size) or 0) // step for size, step in zip(said, steps, strict=True)]
            )
            if lengths is None:
                return None
            found |= {ROWS: lengths[0] * steps[0], COLUMNS: lengths[1] * steps[1]}
        elif len(factors) == 1 and factors[0].complete:
            whole = tried[0] if factors[0].of == ROWS else tried[1]
            found[factors[0].of] = length * round(whole / factors[0].size)
    size = tuple(_known(own) or found.get(of, 0) for of, own in zip((ROWS, COLUMNS), said, strict=True))
    return (size[0], size[1]) if min(size) > 0 else None


def _sides(count: int, known: Sequence[int]) -> Size | None:
    """Rows and columns of so many patches, of which one may be known (else 0): a square where neither is."""
    rows, columns = known
    if not rows and not columns:
        rows = columns = math.isqrt(max(count, 0))
    rows, columns = rows or count // columns, columns or count // rows
    return (rows, columns) if rows * columns == count else None


def _known(size: object) -> int | None:
    return size if isinstance(size, int) else None
