"""Values that count over the whole batch: the same row has other numbers in another batch.

The Indices of MaxPool count over the whole tensor; NonZero, NonMaxSuppression and a Range over the rows name a row of
the batch; ArgMax and TopK along the first axis choose one. Read back as positions in the same batch, by MaxUnpool or a
Gather, they say the same of a row whatever it shares a batch with. Taken as numbers they do not, and a run of other
rows must not be given them.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.row_dimensions import row_dimensions
from onnxcam.graph.validation import bodies
from onnxcam.graph.view import Graph, attributes, uses

_SHAPES = ("Shape", "Size")
_CONTROL = having(Trait.CONTROL)
# the input that names positions in the data, which is the first input
_READ_BACK = {
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "MaxUnpool": 1,
    "ScatterElements": 1,
    "ScatterND": 1,
}
_ALWAYS = {"MaxPool": (1,), "NonMaxSuppression": (0,), "Unique": (1, 2, 3), "EyeLike": (0,)}
_ALONG = {"ArgMax": (0, 0), "ArgMin": (0, 0), "TopK": (1, -1)}  # the output, and the axis by default
_COUNTING = ("CumSum", "NonZero", "Range")  # where they count rows
_SOURCES = {*_ALWAYS, *_ALONG, *_COUNTING}


def contents(graph: Graph, picture: str) -> set[str]:
    """The values that depend on what a picture shows, not on its size or the number of rows alone."""
    reached = {picture}
    for node in graph.nodes:
        if node.op_type not in _SHAPES and any(name in reached for name in uses(node)):
            reached.update(name for name in node.output if name)
    return reached


def batch_positions(graph: Graph, picture: str) -> set[str]:
    """The values computed from positions in the whole batch as from numbers.

    Arguments:
        graph: a normalised graph.
        picture: its input.
    """
    if not any(_is_source(node) for node in graph.nodes):
        return set()
    content = contents(graph, picture)
    rows = _RowCounts(graph, picture)
    positions: set[str] = set()
    for node in graph.nodes:
        place = _READ_BACK.get(node.op_type)
        if place is not None and len(node.input) > place and node.op_type.startswith("Gather"):
            # of a table that is the same for all pictures an element is taken by number
            place = place if node.input[0] in content else None
        for index, name in enumerate(node.input):
            if name in positions and index != place:
                positions.update(output for output in node.output if output)
        positions.update(name for name in _of_node(graph, node, content, rows) if name)
    return positions


def _is_source(node: onnx.NodeProto) -> bool:
    if node.op_type in _CONTROL:
        return any(_is_source(inner) for inner in _inner(node))
    if node.op_type in _ALWAYS:  # of nearly every MaxPool nothing reads the Indices
        return any(node.output[place : place + 1] not in ([], [""]) for place in _ALWAYS[node.op_type])
    return node.op_type in _SOURCES


def _inner(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes of a node's subgraphs, at any depth."""
    graphs = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    return [inner for body in bodies(graphs) for inner in body.node]


def _of_node(graph: Graph, node: onnx.NodeProto, content: set[str], rows: Callable[[str], bool]) -> list[str]:
    """The outputs of a node that are positions themselves."""
    op, outputs = node.op_type, list(node.output)
    if op in _CONTROL:
        reads = any(name in content or rows(name) for name in uses(node))
        return outputs if reads and _is_source(node) else []
    if op in _ALWAYS:
        return [outputs[place] for place in _ALWAYS[op] if place < len(outputs)] if node.input[0] in content else []
    if op in _ALONG:
        place, default = _ALONG[op]
        axis, rank = int(attributes(node).get("axis", default)), len(graph.shape(node.input[0]) or ())
        first = axis == 0 or (rank > 0 and axis == -rank)
        return [outputs[place]] if first and node.input[0] in content and place < len(outputs) else []
    if op == "NonZero":
        return outputs if node.input[0] in content or rows(node.input[0]) else []
    if op == "Range":
        return outputs if any(rows(name) for name in node.input[:2]) else []
    if op == "CumSum":
        axis_of = graph.constant(node.input[1])
        first = axis_of is None or int(axis_of.ravel()[0]) in (0, -len(graph.shape(node.input[0]) or ()))
        return outputs if first and rows(node.input[0]) else []
    return []


class _RowCounts:
    """Whether values that depend on shapes alone may depend on the number of rows."""

    def __init__(self, graph: Graph, picture: str) -> None:
        self._graph, self._picture = graph, picture
        self._answers: dict[str, bool] = {}

    def __call__(self, value: str) -> bool:
        if value not in self._answers:
            self._answers[value] = False  # of a loop in a damaged graph
            self._answers[value] = self._counts(value)
        return self._answers[value]

    def _counts(self, value: str) -> bool:
        queue, visited = [value], set()
        while queue:
            name = queue.pop()
            node = self._graph.producer.get(name)
            if name in visited or node is None or self._graph.is_constant(name):
                continue
            visited.add(name)
            if node.op_type == "Size":
                return True
            if node.op_type == "Shape":
                if int(attributes(node).get("start", 0)) == 0 and self._first_is_free(node):
                    return True
                continue
            source = self._graph.producer.get(node.input[0]) if node.input else None
            if source is not None and source.op_type == "Shape" and self._leaves_first_out(node):
                continue
            queue += [other for other in node.input if other]
        return False

    def _first_is_free(self, node: onnx.NodeProto) -> bool:
        """Whether the first dimension of what a Shape reads may be the number of rows."""
        shape = self._graph.shape(node.input[0])
        if shape is not None and (not shape or isinstance(shape[0], int)):
            return False
        return not row_dimensions(self._graph, self._picture).is_fixed(node.input[0])

    def _leaves_first_out(self, node: onnx.NodeProto) -> bool:
        """Whether a node takes dimensions of a shape without the first one."""
        if node.op_type == "Gather":
            places = self._graph.constant(node.input[1])
            rank = len(self._graph.shape(self._graph.producer[node.input[0]].input[0]) or ())
            return places is not None and not ({0, -rank} & {int(place) for place in places.ravel()})
        if node.op_type == "Slice" and len(node.input) > 1:
            starts = self._graph.constant(node.input[1])
            rank = len(self._graph.shape(self._graph.producer[node.input[0]].input[0]) or ())
            return starts is not None and bool(starts.size) and int(starts.ravel()[0]) not in (0, -rank)
        return False
