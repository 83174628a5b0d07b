"""The columns of a task: the outputs that carry it, flattened and joined to one value `[N, columns]`."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import FLOATS, Dim, Graph
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import Detect, Task


def attach(graph: Graph, values: Sequence[str], task: Task, warnings: Sequence[str] = ()) -> tuple[Graph, Readout]:
    """Append the nodes that join the values of a task, and return the graph with its readout.

    Arguments:
        graph: a normalised graph, edited in place.
        values: in the order in which the task has them, each `[N, ...]`; without the axis of rows where the task takes
            one picture at a time.
        task: what lies where in the columns.
    """
    joined, rows = flatten(graph, values, one_picture=isinstance(task, Detect) and task.one_picture)
    outputs = {output.name for output in graph.outputs}
    if isinstance(joined, str):
        output = joined if joined in outputs else None
        return graph, Readout.of_task(joined, task, output, tuple(warnings))
    edit.add(graph.model, joined)
    value = joined.nodes[-1].output[0]
    graph = graph.again()
    graph.declare(edit.info(value, joined.dtype, [rows, task.columns]))
    return graph, Readout.of_task(value, task, None, tuple(warnings))


def flatten(graph: Graph, values: Sequence[str], *, one_picture: bool) -> tuple[Builder | str, Dim]:
    """The nodes that join values, or the value that is the columns already; and the number of rows."""
    rows: Dim = 1 if one_picture else (graph.shape(values[0]) or ("N",))[0]
    only = values[0] if len(values) == 1 else None
    if only is not None and not one_picture and len(graph.shape(only) or ()) == 2 and graph.is_float(only):
        return only, rows
    op = Builder(graph, prefix="onnxcam/columns")
    kinds = [graph.dtype(value) for value in values if graph.dtype(value) in FLOATS]
    op.dtype = kinds[0] if kinds else onnx.TensorProto.FLOAT
    parts = []
    for value in values:
        whole = len(graph.shape(value) or ()) == 2 and not one_picture
        flat = value if whole else op.Reshape(value, [1 if one_picture else 0, -1])
        parts.append(flat if graph.dtype(value) == op.dtype else op.cast(flat))
    if len(parts) > 1:
        op.Concat(*parts, axis=1)
    for node in op.nodes:
        kind = graph.dtype(node.input[0]) if node.op_type == "Reshape" else op.dtype
        op.infos[node.output[0]] = edit.info(node.output[0], kind, [rows, None])
    return op, rows
