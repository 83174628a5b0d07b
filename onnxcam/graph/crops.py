"""Crops of the picture that a graph computes in one batch: where each row of a layer lies, as the graph says."""

from __future__ import annotations

from onnxcam.graph import edit
from onnxcam.graph.coverage import covering
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.tokens import window_of
from onnxcam.graph.view import Graph, attributes, uses
from onnxcam.graph.window import Window

# what keeps each row where it is
_ROWWISE = having(Trait.ELEMENTWISE | Trait.NORMALIZES) | {
    "Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Pad", "Resize",
}  # fmt: skip


def crops(graph: Graph, picture: str, value: str) -> tuple[Window, ...] | None:
    """The part of the picture that each row of a layer covers, in the order of the rows of a run of one picture.

    None where that is not certain. Certain it is where everything that the layer is computed from passes one Concat of
    crops, along the rows or along an axis of its own that a Reshape joins with them at once, and where nothing behind
    it moves rows or cuts pieces off.

    Arguments:
        picture: the input, of which one row at a time can be run.
        value: the layer's value.
    """
    (rows, *_), shape = graph.shape(picture) or (None,), graph.shape(picture)
    through = covering(graph, picture, value)
    joins = [
        node
        for node in graph.upstream([value])[0]
        if node.op_type == "Concat" and node.output[0] in through and not graph.is_constant(node.output[0])
    ]
    if (isinstance(rows, int) and rows > 1) or shape is None or len(shape) != 4 or len(joins) != 1:
        return None
    (join,) = joins
    source, rank = join.output[0], len(graph.shape(join.input[0]) or ())
    reached = graph.downstream([source])
    behind = [
        node
        for node in graph.upstream([value], stop=[source])[0]
        if reached.intersection(uses(node)) and graph.is_float(node.output[0])
    ]
    if rank == 5 and behind and behind[0].op_type == "Reshape" and source in behind[0].input[:1]:
        source, behind = behind[0].output[0], behind[1:]
    elif rank != 4:
        return None
    axis = int(attributes(join).get("axis", 0))
    stacked = rank == 5 and axis in (0, 1)
    if not (stacked or (rank == 4 and axis == 0)) or any(node.op_type not in _ROWWISE for node in behind):
        return None
    inside = graph.shape(source)
    if inside is None or len(inside) != 4 or not all(isinstance(dim, int) for dim in inside[1:]):
        return None
    tail = edit.extract(
        graph, [edit.info(source, graph.dtype(source), inside)], [edit.info(value, graph.dtype(value), None)]
    )
    if window_of(Graph(tail), value) is not None:
        return None
    windows = []
    for crop in join.input:
        before = graph.producer.get(crop)
        name = before.input[0] if stacked and before is not None and before.op_type == "Unsqueeze" else crop
        of_crop = graph.shape(name)
        if of_crop is None or len(of_crop) != 4 or of_crop[0] not in (1, rows):
            return None
        window = window_of(graph, name)
        if window is None:  # all of the picture, if it is not unknown
            whole = tuple(of_crop[2:]) == tuple(shape[2:])
            if not whole or not all(isinstance(side, int) for side in shape[2:]):
                return None
            window = Window((0.0, float(str(shape[2]))), (0.0, float(str(shape[3]))))
        windows.append(window)
    return tuple(windows) if len(windows) > 1 else None
