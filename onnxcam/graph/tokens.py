"""What a graph tells of its tokens: how they lie on the picture, and which of them reach the scores."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import onnx

from onnxcam.graph.liveness import Liveness, Mask
from onnxcam.graph.positions import Positions
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph, Shape

_MOST_BEFORE = 5  # tokens before the patches, where it is not known how many there are
_known: WeakKeyDictionary[Graph, tuple[StaticShapes, Positions]] = WeakKeyDictionary()


def positions(graph: Graph) -> Positions:
    """Where the elements of a graph's values lie on the picture; worked out once per graph."""
    return _parts(graph)[1]


def shape_of(graph: Graph, value: str) -> Shape | None:
    """The shape of a value, with what inference left open worked out; a first dimension of 1 is the free batch."""
    held = graph.shape(value)
    picture = graph.shape(graph.inputs[0].name) if graph.inputs else None
    if picture is None or not all(isinstance(dim, int) for dim in picture[1:]):
        return held
    if held is not None and all(isinstance(dim, int) or dim == picture[0] for dim in held):
        return held
    known = _parts(graph)[0].shape(value)
    if known is None:
        return held
    return (picture[0] if known[:1] == (1,) else known[0], *known[1:]) if known else known


def _parts(graph: Graph) -> tuple[StaticShapes, Positions]:
    if graph not in _known:
        sizes = StaticShapes(graph)
        _known[graph] = sizes, Positions(graph, sizes)
    return _known[graph]


class Patches:
    """Which positions of a graph's values reach its scores; tokens before the patches are not asked."""

    def __init__(self, graph: Graph, scores: str) -> None:
        sizes, self.positions = _parts(graph)
        self._reach = Liveness(graph, scores, sizes)

    def reach(self, value: str) -> bool:
        """Whether any position of a value can change the scores."""
        return self._any(value, self._reach.live(value))

    def pass_through(self, node: onnx.NodeProto, value: str) -> bool:
        """Whether any position of a value can change the scores through a node that reads it."""
        places = [index for index, name in enumerate(node.input) if name == value]
        return any(self._any(value, self._reach.through(node, index)) for index in places)

    def all_pass(self, graph: Graph, start: str, value: str, scores: str) -> bool:
        """Whether whatever the positions of `start` do to the scores, they do through `value`."""
        reached = [start]
        for name in reached:
            for node in graph.consumers.get(name, []):
                if value in node.output or not (self.pass_through(node, name) if name == start else self._reads(node)):
                    continue
                if scores in node.output:
                    return False
                reached += [output for output in node.output if output and output not in reached]
        return True

    def _reads(self, node: onnx.NodeProto) -> bool:
        return any(output and self._reach.live(output) is not None for output in node.output)

    def _any(self, value: str, mask: Mask) -> bool:
        if mask is None or mask is True or mask.ndim != 3:
            return mask is not None
        grid = self.positions.grid(value)
        return bool(mask[:, _MOST_BEFORE if grid is None else grid[1] :].any())
