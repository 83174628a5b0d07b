"""Parallel layers: which one stands for a network whose picture takes several ways to the scores."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcam.graph.coverage import covering
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.tokens import window_of
from onnxcam.graph.view import Graph, uses

_LEARNED = having(Trait.WEIGHTED)


def preferred(graph: Graph, values: Sequence[str], last: str, picture: str, scores: str) -> str:
    """The layer to explain where none is named.

    The last one where every path passes it, as in most networks. Else the last one that every path passes, unless most
    of the network follows it, as behind a common first convolution. Else a member that sees the picture as it is rather
    than mirrored or in part.

    Arguments:
        values: the layers in graph order.
        last: the last of them.
        picture, scores: the values between which the paths lie.
    """
    passed = covering(graph, picture, scores)
    common = [value for value in values if value in passed]
    if last in passed or (common and _depth(graph, common[-1], picture, scores) >= 0.5):
        return last if last in passed else common[-1]
    members = [value for value in (*beside(graph, values, last), last) if graph.shape(value) == graph.shape(last)]
    return max(members, key=lambda value: _plainness(graph, value))


def beside(graph: Graph, values: Sequence[str], value: str) -> list[str]:
    """The other layers behind which there is no further layer: the last ones of what runs parallel to a layer."""
    layers = set(values)
    followed: set[str] = set()  # values from which a layer is computed
    for node in reversed(graph.nodes):
        if any(name in layers or name in followed for name in node.output):
            followed.update(uses(node))
    return [one for one in values if one not in followed and one != value]


def _depth(graph: Graph, value: str, picture: str, scores: str) -> float:
    """The part of the network's operators with weights that a value lies behind, 0 to 1."""
    learned = [node for node in graph.between([picture], [scores]) if node.op_type in _LEARNED]
    before = {name for node in graph.between([picture], [value]) for name in node.output}
    return sum(node.output[0] in before for node in learned) / max(len(learned), 1)


def _plainness(graph: Graph, value: str) -> tuple[bool, bool, bool, int]:
    """An order of members: the whole picture, not mirrored, its middle in it; then the later one."""
    window = window_of(graph, value)
    if window is None:
        return True, True, True, graph.position[value]
    upright = not window.transposed and all(start < stop for start, stop in (window.height, window.width))
    shape = graph.shape(graph.inputs[0].name) or ()
    sizes = [dim for dim in shape[1:] if isinstance(dim, int) and dim > 4]
    middle = len(sizes) == 2 and all(
        min(span) < size / 2 < max(span) for span, size in zip((window.height, window.width), sizes, strict=True)
    )
    return False, upright, middle, graph.position[value]
