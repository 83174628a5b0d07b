"""Tokens of a graph: their positions on the picture, and which of them reach the scores."""

from __future__ import annotations

from functools import lru_cache
from weakref import WeakKeyDictionary

import onnx

from onnxcam.graph.liveness import Liveness, Mask
from onnxcam.graph.positions import Positions
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Dim, Graph, Shape, attributes
from onnxcam.graph.window import Window

_CHANGE_SPAN = ("Concat", "Gather", "Pad", "Resize", "Slice", "Split")
_USUAL_TURNS = ([0, 2, 3, 1], [0, 3, 1, 2], [0, 2, 1], [0, 2, 1, 3])
_MOST_PREFIX = 5  # prefix tokens assumed where their number is unknown
_cache: WeakKeyDictionary[Graph, tuple[StaticShapes, Positions]] = WeakKeyDictionary()
_moving: WeakKeyDictionary[Graph, bool] = WeakKeyDictionary()
_patches: WeakKeyDictionary[Graph, dict[str, Patches]] = WeakKeyDictionary()


def positions(graph: Graph) -> Positions:
    """Positions on the picture of the elements of a graph's values; cached per graph."""
    return _analysis(graph)[1]


def window_of(graph: Graph, value: str) -> Window | None:
    """The part of the picture that a value's grid covers; None if that is all of it, or unknown."""
    if graph not in _moving:
        _moving[graph] = graph in _cache or any(map(_moves, graph.nodes))
    return positions(graph).window(value) if _moving[graph] else None


def _moves(node: onnx.NodeProto) -> bool:
    """Whether a node may change the part of the picture that a grid covers."""
    if node.op_type == "Transpose":
        return list(attributes(node).get("perm", ())) not in _USUAL_TURNS
    return node.op_type in _CHANGE_SPAN


def shape_of(graph: Graph, value: str) -> Shape | None:
    """The shape of a value, completed from its static shape for batch 1; a first dimension of 1 is the batch."""
    shape = graph.shape(value)
    picture = graph.fixed_picture
    if picture is None or (shape is not None and _complete(shape, picture[0])):
        return shape
    static = _analysis(graph)[0].shape(value)
    if static is None:
        return shape
    return (picture[0] if static[:1] == (1,) else static[0], *static[1:]) if static else static


@lru_cache(maxsize=4096)
def _complete(shape: Shape, batch: Dim) -> bool:
    """Whether every dimension is known but for that of the batch."""
    return all(isinstance(dim, int) or dim == batch for dim in shape)


def _analysis(graph: Graph) -> tuple[StaticShapes, Positions]:
    if graph not in _cache:
        shapes = StaticShapes(graph)
        _cache[graph] = shapes, Positions(graph, shapes)
    return _cache[graph]


def patches_of(graph: Graph, scores: str) -> Patches:
    """Which positions of a graph's values reach its scores; cached per graph."""
    by_scores = _patches.setdefault(graph, {})
    if scores not in by_scores:
        by_scores[scores] = Patches(graph, scores)
    return by_scores[scores]


class Patches:
    """Which positions of a graph's values reach its scores; prefix tokens are ignored."""

    def __init__(self, graph: Graph, scores: str) -> None:
        shapes, self.positions = _analysis(graph)
        self._graph = graph
        self._inputs: dict[int, dict[str, list[int]]] = {}  # of a node, by its index: where it reads each value
        self._liveness = Liveness(graph, scores, shapes)

    def reach(self, value: str) -> bool:
        """Whether any position of a value can change the scores."""
        return self._any(value, self._liveness.live(value))

    def pass_through(self, node: onnx.NodeProto, value: str) -> bool:
        """Whether any position of a value can change the scores through a node that reads it."""
        place = self._graph.index_of(node)
        if place not in self._inputs:
            by_name = self._inputs[place] = {}
            for index, name in enumerate(node.input):
                by_name.setdefault(name, []).append(index)
        indices = self._inputs[place].get(value, ())
        return any(self._any(value, self._liveness.through(node, index)) for index in indices)

    def all_pass(self, graph: Graph, start: str, value: str, scores: str) -> bool:
        """Whether every path on which positions of `start` reach the scores passes through `value`."""
        reached, queue = {start}, [start]
        for name in queue:
            for node in graph.consumers.get(name, []):
                if value in node.output or not (self.pass_through(node, name) if name == start else self._reads(node)):
                    continue
                if scores in node.output:
                    return False
                fresh = [output for output in node.output if output and output not in reached]
                reached.update(fresh)
                queue += fresh
        return True

    def _reads(self, node: onnx.NodeProto) -> bool:
        return any(output and self._liveness.live(output) is not None for output in node.output)

    def _any(self, value: str, mask: Mask) -> bool:
        if mask is None or mask is True or mask.ndim != 3:
            return mask is not None
        grid = self.positions.grid(value)
        return bool(mask[:, _MOST_PREFIX if grid is None else grid[1] :].any())
