"""Coverage: whether every path from the picture to the scores passes a layer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from weakref import WeakKeyDictionary

import onnx

from onnxcam.graph.layout import has_tokens
from onnxcam.graph.tokens import Patches, patches_of
from onnxcam.graph.view import Graph, uses

ALL, PART = "all", "part"
# they read how large a value is, not what it holds
_SHAPES = ("Shape", "Size")
_DYNAMIC = "DynamicQuantizeLinear"  # its scale and zero point say how its numbers are written: no paths of their own
_cache: WeakKeyDictionary[Graph, dict[tuple[str, str], frozenset[str]]] = WeakKeyDictionary()


def covers(graph: Graph, value: str, picture: str, scores: str) -> str:
    """Whether every path on which data of the picture reach the scores passes a value: `all`, or `part`.

    A side path that leaves the picture's path and joins it again before the value, as in squeeze-and-excitation, passes
    it too. Paths of shapes do not count, nor do those of prefix tokens (class, distillation, registers) alongside
    patches that go on: they have no place on the picture.

    Arguments:
        value: a graph value.
        picture, scores: the values between which the paths lie.
    """
    return ALL if value in covering(graph, picture, scores) else PART


def covering(graph: Graph, picture: str, scores: str) -> frozenset[str]:
    """The values that every path from the picture to the scores passes, see `covers`; cached per graph."""
    by_ends = _cache.setdefault(graph, {})
    if (picture, scores) not in by_ends:
        by_ends[picture, scores] = _covering(graph, picture, scores)
    return by_ends[picture, scores]


def _covering(graph: Graph, picture: str, scores: str) -> frozenset[str]:
    nodes, _ = graph.upstream([scores])
    patches = patches_of(graph, scores) if has_tokens(graph, nodes) else None
    return _on_all_paths(nodes, picture, scores, patches) or _on_all_paths(nodes, picture, scores, None)


def _on_all_paths(
    nodes: Iterable[onnx.NodeProto], picture: str, scores: str, patches: Patches | None
) -> frozenset[str]:
    """The values on all paths: in an order of the graph, those that no edge of a path leaps over."""
    edges: list[tuple[str, str]] = []
    reached = {picture}
    for node in nodes:
        if node.op_type in _SHAPES:
            continue
        outputs = node.output[:1] if node.op_type == _DYNAMIC else node.output
        for name in dict.fromkeys(uses(node)):
            # behind the last patches, what prefix tokens and scores are computed from them goes on, as does what a
            # subgraph captures
            if name in reached and (
                patches is None or name not in node.input or patches.pass_through(node, name) or not patches.reach(name)
            ):
                edges += [(name, output) for output in outputs if output]
                reached.update(outputs)
    onwards = {scores}  # what leads to the scores
    for source, output in reversed(edges):
        if output in onwards:
            onwards.add(source)
    if picture not in onwards:
        return frozenset()
    place = {picture: 0}
    for _, output in edges:
        if output in onwards:
            place.setdefault(output, len(place))
    leaps = [0] * (len(place) + 1)  # by how much the number of edges overhead changes at each place
    for source, output in edges:
        if output in onwards:
            leaps[place[source] + 1] += 1
            leaps[place[output]] -= 1
    return frozenset(value for value, overhead in zip(place, accumulate(leaps), strict=False) if not overhead)
