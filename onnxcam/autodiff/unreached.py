"""The error for a value from which no gradient flows: which operator stops it, by the names of the user's file."""

from __future__ import annotations

from onnxcam.autodiff import registry
from onnxcam.errors import ModelError
from onnxcam.graph.view import Graph

_SIZES = ("Shape", "Size")
OURS = "onnxcam/"  # prefix of the values that are added to a file
_NO_PATH = "no differentiable path leads from one to the other"
NO_GRADIENT = "the operators between them pass no gradient on"


def unreached(graph: Graph, wrt: str, of: str, why: str = _NO_PATH) -> ModelError:
    """The error for a value `wrt` that passes no gradient on to `of`.

    Where operators between them are constant almost everywhere (Hardmax, OneHot of an ArgMax, Ceil, a comparison), the
    first is named, with the last value before it that has a gradient.
    """
    target = _of_file(graph, of)
    text = f"{wrt!r} does not reach {target!r}: {why}"
    reached = graph.downstream([wrt])
    between = [node for node in graph.upstream([of])[0] if reached.intersection(node.input)]
    smooth = {wrt}
    for node in sorted(between, key=lambda node: node.op_type in _SIZES):  # sizes last: a selection says more
        before = [name for name in node.input if name in smooth]
        floats = [name for name in node.output if name and graph.is_float(name)]
        if not before or node.domain not in ("", "ai.onnx"):
            continue
        if floats and not registry.is_constant(node.op_type):
            smooth.update(floats)
            continue
        at = _of_file(graph, before[0])
        advice = (
            f"; name that value to explain with `scores=` (on the command line: --scores {at})" if at != wrt else ""
        )
        return ModelError(
            f"{text}, because {node.op_type}, which reads {at!r}, is constant almost everywhere: its gradient is 0"
            + advice
        )
    return ModelError(text)


def _of_file(graph: Graph, value: str) -> str:
    """The value itself, or the nearest one before it that the user's file has."""
    queue, visited = [value], set()
    while queue:
        name = queue.pop(0)
        if not name.startswith(OURS):
            return name
        node = graph.producer.get(name)
        if node is not None and name not in visited:
            visited.add(name)
            queue += [source for source in node.input if source and not graph.is_constant(source)]
    return value
