"""Maps of many boxes of a picture from the cells of the detector's head that each one's score is computed by.

The rows of one small run are boxes; each map is pasted into one that is 0 everywhere else. Where the head cannot be cut
(see `onnxcam.network.cells`) there are none, and the whole head is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import runtime
from onnxcam.cam.registry import GRAPH, Method
from onnxcam.network.names import ACTIVATIONS, COTANGENT, GRADIENT, MAP
from onnxcam.targets.objectives import Objective, PerRow
from onnxcam.targets.scalar_objectives import Combination, Product

if TYPE_CHECKING:
    from onnxcam.explain.features import HeadRun
    from onnxcam.network.cells import CellGraph, Patch
    from onnxcam.network.elements import Expression, Leaf

_COLUMNS = 8  # of a scalar that cells are cut out for: a score, an edge, a difference of two
_BYTES = 64 << 20  # of gradients of whole layers at a time


class Scalar(NamedTuple):
    """A scalar of few columns, to first order.

    Attributes:
        columns: of the scores, int64 `[k]`.
        weights: d scalar / d score of each, float64 `[k]`.
    """

    columns: np.ndarray
    weights: np.ndarray


def scalars(objective: Objective, scores: np.ndarray) -> list[Scalar] | None:
    """The scalar of each row of an objective; None where one of them is not a function of few columns.

    Arguments:
        scores: `[N, columns]` of the rows; one for all of them where they are of one picture.
    """
    parts = objective.objectives if isinstance(objective, PerRow) else [objective]
    result = []
    for row, part in enumerate(parts):
        if not isinstance(part, (Combination, Product)) or len(part.columns) > _COLUMNS:
            return None
        if isinstance(part, Combination):
            weights = np.asarray(part.weights, np.float64)
        else:
            factors = scores[row if len(scores) > 1 else 0, part.columns].astype(np.float64)
            weights = np.array([np.delete(factors, place).prod() for place in range(len(factors))])
        effective = np.flatnonzero(weights)
        if not len(effective):
            return None
        result.append(Scalar(np.asarray(part.columns)[effective], weights[effective]))
    return result


def several(
    features: HeadRun, layers: Sequence[str], methods: Sequence[Method], objectives: Sequence[Objective]
) -> list[list[np.ndarray]] | None:
    """Per method and layer the maps `[1, k, h, w]`, after ReLU, of several objectives of the only row.

    None where one of them, of the methods or of the layers needs more than cells around each box.
    """
    if not layers or not all(method.kind == GRAPH and method.gradient for method in methods):
        return None
    scalars_of_boxes = scalars(PerRow(list(objectives)), features.scores)
    if scalars_of_boxes is None:
        return None
    rows = np.zeros(len(scalars_of_boxes), np.int64)
    by_layer = []
    for layer in layers:
        of_layer = maps(features, layer, rows, scalars_of_boxes, list(dict.fromkeys(methods)))
        if of_layer is None:
            return None
        by_layer.append(dict(zip(dict.fromkeys(methods), of_layer, strict=True)))
    return [[np.maximum(of_layer[method], 0)[None] for of_layer in by_layer] for method in methods]


def maps(
    features: HeadRun, layer: str, rows: np.ndarray, scalars_of_boxes: Sequence[Scalar], methods: Sequence[Method]
) -> list[np.ndarray] | None:
    """The maps of scalars by graph methods, before their ReLU, from the cells around each.

    Arguments:
        features: a head run that exposes the layer.
        layer: its name.
        rows: the picture of each scalar, int64 `[boxes]`.
        scalars_of_boxes: the scalars.
        methods: graph methods that read the gradient.

    Returns:
        per method float32 `[boxes, h, w]`; None where the head cannot be cut.
    """
    from onnxcam.network.cells import NotLocal, local
    from onnxcam.network.elements import NotElementwise

    sessions = features.batch.sessions
    cut = sessions.cut(layer)
    activations = features.values[cut.layer.value]
    if cut.layout.name != "NCHW" or activations.ndim != 4 or activations.dtype != np.float32:
        return None
    nearby = [method.name for method in methods if local(method)]
    spread = [method.name for method in methods if method.name not in nearby]
    try:
        expressions = [_followed(features, layer, one.columns) for one in scalars_of_boxes]
        groups: dict[Any, list[int]] = {}
        for index, expression in enumerate(expressions):
            groups.setdefault(expression.form, []).append(index)
        runs = []
        for members in groups.values():
            first = expressions[members[0]]
            for names in [nearby] * bool(nearby) + [()] * bool(spread):
                session, cells = sessions.cells(layer, first, names)
                feeds = _feeds(
                    features,
                    cells,
                    rows[members],
                    [scalars_of_boxes[k] for k in members],
                    [expressions[k] for k in members],
                )
                computed = runtime.run(session, [MAP + name for name in names] or [GRADIENT], feeds)
                runs.append((members, cells, feeds, computed))
    except (NotLocal, NotElementwise):
        return None
    pasted = {
        name: np.zeros((len(scalars_of_boxes), *activations.shape[2:]), np.float32)
        for name in dict.fromkeys(nearby + spread)
    }
    for members, cells, feeds, computed in runs:
        places = _Places.of(cells, feeds)
        for name, values in computed.items():
            if name != GRADIENT:
                places.paste(values, pasted[name.removeprefix(MAP)], members)
                continue
            step = max(1, _BYTES // max(1, activations[0].nbytes))
            for start in range(0, len(members), step):
                some = members[start : start + step]
                gradient = np.zeros((len(some), *activations.shape[1:]), np.float32)
                places.from_row(start).paste(values[start : start + step], gradient, range(len(some)))
                whole = {ACTIVATIONS: activations[rows[some]], GRADIENT: gradient}
                for method, of_some in runtime.run(sessions.maps(layer, tuple(spread)), spread, whole).items():
                    pasted[method][some] = of_some
    return [pasted[method.name] for method in methods]


class _Places(NamedTuple):
    """Where the crops of a run lie."""

    patch: Patch
    row: np.ndarray
    column: np.ndarray

    @classmethod
    def of(cls, cells: CellGraph, feeds: dict[str, np.ndarray]) -> _Places:
        from onnxcam.network.cells import COLUMN, ROW

        return cls(cells.crops[cells.layer], feeds[ROW], feeds[COLUMN])

    def from_row(self, start: int) -> _Places:
        return self._replace(row=self.row[start:], column=self.column[start:])

    def paste(self, crops: np.ndarray, into: np.ndarray, members: Sequence[int]) -> None:
        """Paste crops `[n, ..., kh, kw]` into zeros `[..., h, w]` of the members."""
        for crop, place, i, j in zip(crops, members, self.row, self.column, strict=False):
            inside, outside = _overlap(self.patch, int(i), int(j), into.shape[-2:])
            into[(place, ..., *inside)] = crop[(..., *outside)]


def _overlap(
    patch: Patch, row: int, column: int, grid: Sequence[int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a grid under a patch around a cell, and the part of the patch over the grid."""
    inside, outside = [], []
    for first, count, size in (
        (row + patch.top, patch.size[0], grid[0]),
        (column + patch.left, patch.size[1], grid[1]),
    ):
        start, stop = max(0, first), max(0, min(size, first + count))
        inside.append(slice(start, stop))
        outside.append(slice(start - first, stop - first))
    return (inside[0], inside[1]), (outside[0], outside[1])


def _followed(features: HeadRun, layer: str, columns: np.ndarray) -> Expression:
    """The columns of the scores followed back to convolutions behind the layer, or to values that pass the cut."""
    from onnxcam.network.elements import NotElementwise, follow

    sessions = features.batch.sessions
    network, cut = sessions.network, sessions.cut(layer)
    graph = network.graph_from(layer)
    shape = graph.shape(network.readout.value) or ()
    inner = [dim for dim in shape[2:] if isinstance(dim, int)]
    if len(shape) < 2 or len(inner) < len(shape) - 2:
        raise NotElementwise(network.readout.value)
    elements = []
    for column in columns:
        places = [0]
        for axis in range(1, len(shape)):
            step = int(np.prod(inner[axis - 1 :], dtype=np.int64))
            places.append(int(column) // step)
            column = int(column) % step
        elements.append(tuple(places))
    return follow(graph, network.readout.value, elements, set(cut.values) - {cut.layer.value})


def _feeds(
    features: HeadRun,
    cells: CellGraph,
    rows: np.ndarray,
    scalars_of_boxes: Sequence[Scalar],
    expressions: Sequence[Expression],
) -> dict[str, np.ndarray]:
    """The inputs of a run whose rows are boxes."""
    from onnxcam.network.cells import CHANNEL, COLUMN, CROP, NUMBER, ROW

    count = len(expressions)
    places = np.array([_cell(expression, cells) for expression in expressions], np.int64).reshape(count, 2)
    feeds: dict[str, np.ndarray] = {ROW: places[:, 0], COLUMN: places[:, 1]}
    for name, patch in cells.crops.items():
        values = features.values[name]
        crops = np.zeros((count, values.shape[1], *patch.size), np.float32)
        for crop, row, (i, j) in zip(crops, rows, places, strict=True):
            inside, outside = _overlap(patch, int(i), int(j), values.shape[2:])
            crop[(slice(None), *outside)] = values[(int(row), slice(None), *inside)]
        feeds[CROP + name] = crops
    for index, leaf in enumerate(expressions[0].leaves):
        leaves = [expression.leaves[index] for expression in expressions]
        if index in cells.channels:
            hot = np.zeros((count, cells.channels[index]), np.float32)
            hot[np.arange(count), [one.element[1] for one in leaves]] = 1
            feeds[f"{CHANNEL}{index}"] = hot
        else:
            feeds[f"{NUMBER}{leaf.value}.{index}"] = np.array(
                [
                    features.values[one.value][(int(row), *one.element[1:])]
                    for one, row in zip(leaves, rows, strict=True)
                ],
                np.float32,
            )
    for index in range(len(expressions[0].constants)):
        feeds[f"{NUMBER}{index}"] = np.array([one.constants[index] for one in expressions], np.float32)
    for index in range(len(expressions[0].results)):
        feeds[f"{COTANGENT}{index}"] = np.array([one.weights[index] for one in scalars_of_boxes], np.float32)
    return feeds


def _cell(expression: Expression, cells: CellGraph) -> tuple[int, int]:
    """The one cell that all leaves behind the layer lie in.

    Raises:
        NotLocal: they lie in several.
    """
    from onnxcam.network.cells import NotLocal

    behind: list[Leaf] = [expression.leaves[index] for index in cells.channels]
    places = {leaf.element[2:] for leaf in behind}
    if len(places) != 1:
        raise NotLocal("several cells")
    row, column = next(iter(places))
    return row, column
