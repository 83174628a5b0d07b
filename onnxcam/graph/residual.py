"""Residual Adds: those that add a block's output to its input."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import onnx

from onnxcam.graph.ends import turns
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.tokens import shape_of
from onnxcam.graph.view import Graph

_STEPS = having(Trait.ENDS_LAYER)
_LONGEST = 256  # steps from either side: more than in a residual block, or an activation function written out


def is_residual(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node adds a block's output to its input: same shapes, no constants, a block not elementwise alone."""
    if node.op_type != "Add" or any(graph.is_constant(name) for name in node.input):
        return False
    shape = shape_of(graph, node.output[0])
    if shape is None or any(shape_of(graph, name) != shape for name in node.input):
        return False
    # not a residual: x + 0.044715 x^3 in GELU's tanh form, where one operand is an elementwise function of the other
    first, second = node.input
    if _is_elementwise_of(graph, second, first) or _is_elementwise_of(graph, first, second):
        return False
    # nor the sums of independent values as which some exporters write an adaptive pooling
    before, other = _before_turns(graph, first), _before_turns(graph, second)
    return _depends_on(graph, first, other) or _depends_on(graph, second, before)


def _before_turns(graph: Graph, value: str) -> str:
    """The value that a value is a transposition of, NCHW to NHWC or back; itself if it is none."""
    while (node := graph.producer.get(value)) is not None and turns(node):
        value = node.input[0]
    return value


def _is_elementwise_of(graph: Graph, value: str, source: str) -> bool:
    """Whether elementwise operators alone lead from a value to another, as in an activation function written out."""
    return value == source or _leads(graph, source, value, _STEPS) is True


def _depends_on(graph: Graph, value: str, source: str) -> bool:
    """Whether a value is computed from another; taken to be so where that is left open."""
    return value != source and _leads(graph, source, value) is not False


def _leads(graph: Graph, source: str, value: str, operators: frozenset[str] | None = None) -> bool | None:
    """Whether a way leads from one value to another, by way of these operators alone; None where `_LONGEST` steps from
    either side leave it open, so that every Add costs about the same.

    The search goes back from the value and on from the source by turns and ends with the smaller side: with a sum of
    independent values at once, as nothing else reads its operands.
    """
    back, onwards = _ancestors(graph, value, source, operators), _descendants(graph, source, value, operators)
    ancestors, descendants = {value}, {source}
    for _ in range(_LONGEST):
        for steps, visited, others in ((back, ancestors, descendants), (onwards, descendants, ancestors)):
            name = next(steps, None)
            if name is None:
                return False
            if name in others:
                return True
            visited.add(name)
    return None


def _ancestors(graph: Graph, value: str, source: str, operators: frozenset[str] | None) -> Iterator[str]:
    """The values that a value is computed from, but for those of nodes before the source, which cannot read it."""
    first = graph.position.get(source, -1)
    queue, visited = deque([value]), {value}
    while queue:
        name = queue.popleft()
        if graph.position.get(name, -1) <= first:
            continue
        node = graph.producer[name]
        if operators is not None and node.op_type not in operators:
            continue
        for read in node.input:
            if read and read not in visited:
                visited.add(read)
                queue.append(read)
                yield read


def _descendants(graph: Graph, source: str, value: str, operators: frozenset[str] | None) -> Iterator[str]:
    """The values that are computed from a source, but for those of nodes behind the value."""
    last = graph.position.get(value, -1)
    queue, visited = deque([source]), {source}
    while queue:
        for node in graph.consumers.get(queue.popleft(), []):
            if graph.index_of(node) > last:
                break  # in graph order
            if operators is not None and node.op_type not in operators:
                continue
            for output in node.output:
                if output and output not in visited:
                    visited.add(output)
                    queue.append(output)
                    yield output
