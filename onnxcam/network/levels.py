"""Which cell of which map each number of a dense head comes from: the levels of a feature pyramid, read off the graph.

The last convolution before a head's output makes a map; what follows regroups the map's cells into candidates (Reshape,
Transpose, Concat over levels) or computes element by element. Cells are numbered and moved by the graph's own
operators, so no convention about the order of rows, columns, anchors or levels is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcam.errors import ModelError
from onnxcam.graph import edit
from onnxcam.graph.layout import input_layout
from onnxcam.graph.operators import TRAITS, Trait, having
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph, attributes
from onnxcam.targets.tasks import Detect, Slab

_NOWHERE, _SEVERAL = -1, -2  # numbers that come from no cell, and from more than one
_STEP = 1 << 24  # numbers of the cells of two maps lie this far apart
_MAPS = having(Trait.REGRIDS | Trait.CONVOLVES) - having(Trait.MOVES)
_MOVES = having(Trait.MOVES) | {"Split", "Squeeze", "Unsqueeze", "Transpose", "Tile"}
_MOST = 1 << 24  # elements of a value that is followed


@dataclass(frozen=True)
class Level:
    """A map that candidates come from.

    Attributes:
        value: the convolution's output `[N, C, height, width]`.
        features: the map it is computed from: the convolution's input.
    """

    value: str
    features: str
    height: int
    width: int


@dataclass(frozen=True)
class Origins:
    """Where the numbers of a value come from.

    Attributes:
        levels: the maps, in the order of the graph.
        level: index of each number's map, -1 where it comes from none or from several cells; int64 of the value's
            shape, without its rows.
        row, column: of the cell, -1 likewise.
    """

    levels: tuple[Level, ...]
    level: np.ndarray
    row: np.ndarray
    column: np.ndarray

    def of(self, task: Detect, slab: Slab) -> Origins:
        """Where each candidate comes from, `[M]`: the cell that all of its numbers in a slab come from.

        This is to be the origin of the readout's columns.
        """
        m = task.count(self.level.size)
        parts = [slab.read(array.reshape(-1), m) for array in (self.level, self.row, self.column)]
        same = np.logical_and.reduce([(part == part[:, :1]).all(axis=1) for part in parts])
        return Origins(self.levels, *(np.where(same, part[:, 0], -1) for part in parts))

    def complete(self) -> bool:
        """Whether every number comes from one cell."""
        return bool(self.level.size) and bool((self.level >= 0).all())

    def cells(self) -> int:
        """How many cells they are from."""
        return len(np.unique(np.stack([self.level, self.row, self.column]).reshape(3, -1), axis=1).T)

    def centres(self) -> np.ndarray:
        """x and y of the cells' centres as shares of the input's width and height, float64 `[…, 2]`; NaN of none."""
        heights = np.array([level.height for level in self.levels] or [1], float)[self.level]
        widths = np.array([level.width for level in self.levels] or [1], float)[self.level]
        places = np.stack([(self.column + 0.5) / widths, (self.row + 0.5) / heights], axis=-1)
        return np.where((self.level >= 0)[..., None], places, np.nan)


def trace(graph: Graph, picture: str, value: str, size: tuple[int, ...]) -> Origins | None:
    """Where the numbers of a value come from.

    Arguments:
        picture: the graph's input.
        size: its shape, one picture.

    Returns:
        None where the value's shape is not known for this input, or nothing of it comes from a map.
    """
    try:
        shapes = StaticShapes(graph, {picture: size})
    except ModelError:
        return None
    shape = shapes.shape(value)
    if shape is None or np.prod(shape) > _MOST:
        return None
    return _Trace(graph, picture, shapes).origins(value)


class _Map:
    """A value whose cells are those of one map, element by element: not written out."""

    def __init__(self, value: str, features: str, shape: tuple[int, ...]) -> None:
        self.value, self.features, self.shape = value, features, shape


class _Trace:
    """The cells of every value between the maps and the head's end."""

    def __init__(self, graph: Graph, picture: str, shapes: StaticShapes) -> None:
        self._graph, self._picture, self._shapes = graph, picture, shapes
        self._maps: dict[str, _Map] = {}
        input_shape = shapes.shape(picture) or (1, 1, 1, 1)
        self._size = input_shape[2:] if input_layout(graph, picture) == "NCHW" else input_shape[1:3]
        self._codes: dict[str, _Map | np.ndarray | None] = {}

    def origins(self, value: str) -> Origins | None:
        nodes, _ = self._graph.upstream([value])
        self._codes[self._picture] = _Map(self._picture, self._picture, self._shapes.shape(self._picture) or ())
        for node in nodes:
            for name, code in zip(node.output, self._through(node), strict=False):
                self._codes[name] = code
        code = self._written(value)
        if code is None or not (code >= 0).any():
            return None
        code = code[0]
        names = list(self._maps)
        order = np.unique(code[code >= 0] // _STEP)
        levels = [self._maps[names[index]] for index in order]
        widths = np.array([level.shape[3] for level in levels])
        place = np.where(code >= 0, np.searchsorted(order, code // _STEP), 0)
        row, column = np.divmod(code % _STEP, widths[place])
        hidden = code < 0
        return Origins(
            tuple(Level(level.value, level.features, *level.shape[2:]) for level in levels),
            *(np.where(hidden, -1, array).astype(np.int64) for array in (place, row, column)),
        )

    def _through(self, node: onnx.NodeProto) -> Sequence[Any]:
        """The cells of a node's outputs; None where they are unknown."""
        shape = self._shapes.shape(node.output[0])
        if shape is None or np.prod(shape) > _MOST:
            return [None] * len(node.output)
        if all(not name or self._graph.is_constant(name) for name in node.input):
            return [None] * len(node.output)
        first = self._codes.get(node.input[0]) if node.input else None
        traits = TRAITS.get(node.op_type, Trait.NONE)
        if node.op_type in _MAPS or (node.op_type == "Concat" and len(shape) == 4 and self._joins_maps(node)):
            return [self._mapped(node, first, shape)]
        if Trait.ELEMENTWISE in traits:
            return [self._joined(node, shape)]
        if node.op_type == "Concat":
            return [self._concatenated(node)]
        if isinstance(first, _Map) and self._of_channels(node):
            return [first] * len(node.output)
        if node.op_type in _MOVES:
            return self._moved(node)
        if Trait.KEEPS_SHAPE in traits or Trait.NORMALIZES in traits:
            if isinstance(first, _Map):
                return [first]
            return [None if first is None else self._along(first, int(attributes(node).get("axis", -1)), True)]
        if Trait.REDUCES in traits:
            return [self._reduced(node)]
        if node.op_type == "MatMul" and self._graph.is_constant(node.input[1]):
            code = self._written(node.input[0])
            return [None if code is None else np.broadcast_to(self._along(code, -1, False), shape)]
        return [None] * len(node.output)

    def _of_channels(self, node: onnx.NodeProto) -> bool:
        """Whether a node of a map takes some of its channels: their cells stay where they are."""
        if node.op_type == "Split":
            return int(attributes(node).get("axis", 0)) % 4 == 1
        axes = self._shapes.integers(node.input[3]) if node.op_type == "Slice" and len(node.input) > 3 else None
        return bool(axes) and all(int(axis) % 4 == 1 for axis in axes or ())

    def _joins_maps(self, node: onnx.NodeProto) -> bool:
        parts = [self._codes.get(name) for name in node.input]
        return int(attributes(node).get("axis", 0)) % 4 == 1 and all(
            isinstance(part, _Map) and part.shape[2:] == parts[0].shape[2:]  # type: ignore[union-attr]
            for part in parts
        )

    def _mapped(self, node: onnx.NodeProto, first: Any, shape: tuple[int, ...]) -> Any:
        """A new map; but a convolution over what is no map any more, such as the mean of a distribution, keeps the
        cells."""
        if len(shape) != 4:
            return None
        moved = isinstance(first, np.ndarray) and first.shape[2:] == shape[2:] and (first >= 0).all()
        if moved and not self._is_whole(first):
            return np.broadcast_to(self._along(first, 1, False), shape)
        height, width = self._size
        proportional = abs(shape[2] * width - shape[3] * height) <= max(height, width)
        # of unknown cells, such as those of pixels that a Slice regroups, there may be a map nevertheless
        return _Map(node.output[0], node.input[0], shape) if isinstance(first, _Map) or proportional else None

    def _is_whole(self, code: np.ndarray) -> bool:
        """Whether the cells are those of one map, each at its place: turned to channels last and back, say."""
        height, width = code.shape[2:]
        index = int(code.flat[0]) // _STEP
        grid = index * _STEP + np.arange(height * width, dtype=np.int64).reshape(height, width)
        names = list(self._maps)
        return self._maps[names[index]].shape[2:] == (height, width) and bool((code == grid).all())

    def _joined(self, node: onnx.NodeProto, shape: tuple[int, ...]) -> Any:
        varying = [name for name in node.input if name and not self._graph.is_constant(name)]
        parts = [self._codes.get(name) for name in varying]
        maps = [part for part in parts if isinstance(part, _Map)]
        if len(maps) == len(parts) and len(shape) == 4 and maps:
            whole = [part for part in maps if part.shape[2:] == shape[2:]]
            return whole[0] if whole else None  # the sum of two maps is at the place of the first
        result = np.full(shape, _NOWHERE, np.int64)
        for name in varying:
            code = self._written(name)
            if code is None:
                return None
            result = _combined(result, np.broadcast_to(code, shape))
        return result

    def _concatenated(self, node: onnx.NodeProto) -> Any:
        axis = int(attributes(node).get("axis", 0))
        parts = [self._written(name) for name in node.input]
        shapes = [self._shapes.shape(name) for name in node.input]
        if any(shape is None for shape in shapes):
            return None
        filled = [
            part if part is not None else np.full(shape or (), _NOWHERE if self._graph.is_constant(name) else _SEVERAL)
            for part, shape, name in zip(parts, shapes, node.input, strict=True)
        ]
        return np.concatenate(filled, axis)

    def _moved(self, node: onnx.NodeProto) -> Sequence[Any]:
        """The cells after a node that moves elements, by running it on their numbers."""
        from onnx.reference import ReferenceEvaluator

        code = self._written(node.input[0])
        others = {name: self._shapes.integers(name) for name in node.input[1:] if name}
        unknown = [None] * len(node.output)
        if code is None or any(value is None for value in others.values()):
            return unknown
        feeds = {node.input[0]: code.astype(np.int64)} | {
            name: np.array(value, np.int64).reshape(self._shapes.shape(name) or ()) for name, value in others.items()
        }
        infos = [edit.info(name, onnx.TensorProto.INT64, array.shape) for name, array in feeds.items()]
        outputs = [edit.info(name, onnx.TensorProto.INT64, None) for name in node.output]
        body = onnx.helper.make_graph([node], "moves", infos, outputs)
        opsets = [onnx.helper.make_opsetid("", self._graph.opset)]
        try:
            return list(ReferenceEvaluator(onnx.helper.make_model(body, opset_imports=opsets)).run(None, feeds))
        except Exception:  # an operator that the evaluator lacks: its cells stay unknown
            return unknown

    def _reduced(self, node: onnx.NodeProto) -> Any:
        code = self._written(node.input[0])
        attrs = attributes(node)
        axes = attrs.get("axes") or (self._shapes.integers(node.input[1]) if len(node.input) > 1 else None)
        if code is None or not axes:
            return None
        for axis in sorted((int(axis) % code.ndim for axis in axes), reverse=True):
            code = self._along(code, axis, False)
            code = code if attrs.get("keepdims", 1) else code.take(0, axis)
        return code

    def _along(self, code: np.ndarray, axis: int, keep_length: bool) -> np.ndarray:
        """The one cell along an axis, `_SEVERAL` where there is more than one."""
        first = code.take([0], axis)
        alone = np.where((code == first).all(axis=axis, keepdims=True), first, _SEVERAL)
        return np.broadcast_to(alone, code.shape) if keep_length else alone

    def _written(self, name: str) -> np.ndarray | None:
        """The cells of a value, element by element."""
        code = self._codes.get(name)
        if not isinstance(code, _Map):
            return code
        if len(code.shape) != 4 or code.value == self._picture:
            return None
        if code.value not in self._maps:
            self._maps[code.value] = code
        start = list(self._maps).index(code.value) * _STEP
        height, width = code.shape[2:]
        grid = start + np.arange(height * width, dtype=np.int64).reshape(1, 1, height, width)
        shape = self._shapes.shape(name) or code.shape
        return np.broadcast_to(grid, shape)


def _combined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cells of numbers that are computed from two."""
    both = np.where(a == b, a, _SEVERAL)
    return np.where(a == _NOWHERE, b, np.where(b == _NOWHERE, a, both))
