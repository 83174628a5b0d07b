"""The default layers of a detector or a segmentation: where the head begins, on each level of a feature pyramid.

The last convolutions make a number of every cell, so that a map of their output shows one cell for a box. The layer to
look at is the last one through which everything goes that a level's candidates are computed from: the level's features,
which the branches for boxes and for classes both read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcam.errors import ModelError
from onnxcam.graph.coverage import covering
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import input_layout
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph, Shape, uses
from onnxcam.network.layout import Layout
from onnxcam.network.levels import trace
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import Detect, Segment

_CONVOLUTIONS = having(Trait.CONVOLVES)
_POOLING_REGIONS = ("RoiAlign", "MaxRoiPool")
_MOST_RANGES = 64  # of the candidates of one level
_Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PyramidLevel:
    """A level's features.

    Attributes:
        layer: the layer.
        candidates: those computed from it, as ranges [start, stop); None where they depend on the picture.
    """

    layer: Layer
    candidates: _Ranges | None = None


def levels_of(graph: Graph, picture: str, readout: Readout, layers: Sequence[Layer]) -> list[PyramidLevel]:
    """The levels in the order of the graph, one where there is no pyramid; none of tasks without cells.

    Arguments:
        picture: the graph's input.
        layers: the candidates for target layers.
    """
    if not isinstance(readout.task, (Detect, Segment)):
        return []
    pairs = []
    for values, ranges in _groups(graph, picture, readout):
        layer = _features(graph, picture, values, layers)
        if layer is not None:
            pairs.append((replace(layer, default=False, beside=None), ranges))
    return _levels(graph, pairs)


def levels_among(
    graph: Graph, picture: str, readout: Readout, layers: Sequence[Layer], previous: Iterable[dict[str, Any]]
) -> list[PyramidLevel]:
    """The levels of a detector among layers that a user has chosen: of each group of candidates the last of these
    layers through which everything goes that its scores are computed from, else one that is a branch of its level.

    Arguments:
        previous: entries of an explainable model that is augmented again, whose levels stay what they are.
    """
    if not isinstance(readout.task, Detect) or any(entry.get("level") for entry in previous):
        return []
    groups = _groups(graph, picture, readout, boxes=False)
    covered, reached = {}, {}
    for layer in layers:
        behind = graph.downstream([layer.value])
        covered[layer.value] = [all(layer.value in covering(graph, picture, end) for end in ends) for ends, _ in groups]
        reached[layer.value] = [not behind.isdisjoint(ends) for ends, _ in groups]

    def precedence(layer: Layer) -> tuple[int, int]:
        return -sum(reached[layer.value]), graph.position.get(layer.value, -1)

    pairs = []
    for index, (_, ranges) in enumerate(groups):
        whole = [layer for layer in layers if covered[layer.value][index]]
        # a branch inside of a level; but not another level, from which this one is computed in part
        part = [layer for layer in layers if reached[layer.value][index] and not any(covered[layer.value])]
        if whole:
            pairs.append((max(whole, key=lambda layer: graph.position.get(layer.value, -1)), ranges))
        elif part:
            pairs.append((max(part, key=precedence), ranges))
    return _levels(graph, pairs)


def _groups(
    graph: Graph, picture: str, readout: Readout, *, boxes: bool = True
) -> list[tuple[frozenset[str], _Ranges | None]]:
    """The last convolutions of each group of candidates, and which candidates these are, where that is known.

    Arguments:
        boxes: whether those of a candidate's box count too, or of its scores alone.
    """
    shape = graph.shape(picture) or ()
    one = tuple(dim for dim in (1, *shape[1:]) if isinstance(dim, int))
    size = one if len(one) == len(shape) else None  # else height and width are open
    if isinstance(readout.task, Detect) and size is not None and readout.task.candidates is not None:
        groups = _traced(graph, picture, readout, readout.task, size, boxes)
        if groups is not None:
            return groups
    ends = _last_convolutions(graph, picture, readout.value)
    return [(values, None) for values in _by_size(ends, _shapes(graph, picture, ends, size))]


def _levels(graph: Graph, pairs: Sequence[tuple[Layer, _Ranges | None]]) -> list[PyramidLevel]:
    """The levels in the order of the graph; groups of candidates with the same layer are one."""
    levels: dict[str, PyramidLevel] = {}
    for layer, ranges in pairs:
        other = levels.get(layer.value)
        if other is not None:
            ranges = None if ranges is None or other.candidates is None else _merged([*other.candidates, *ranges])
        levels[layer.value] = PyramidLevel(layer, ranges)
    return sorted(levels.values(), key=lambda level: graph.position.get(level.layer.value, -1))


def _traced(
    graph: Graph, picture: str, readout: Readout, task: Detect, size: tuple[int, ...], boxes: bool
) -> list[tuple[frozenset[str], _Ranges | None]] | None:
    """The last convolutions of each group of candidates, and which these are; None where they cannot be followed."""
    origins = trace(graph, picture, readout.value, size)
    if origins is None or task.columns != origins.level.size:
        return None
    count = task.count(origins.level.size)
    slabs = [slab for slab in (task.boxes if boxes else None, task.scores, task.objectness) if slab is not None]
    columns = np.concatenate([slab.columns(count) for slab in slabs], axis=1)
    patterns, members = np.unique(origins.level.reshape(-1)[columns], axis=0, return_inverse=True)
    groups: dict[frozenset[str], list[np.ndarray]] = {}
    for index, pattern in enumerate(patterns):
        ends = frozenset(origins.levels[level].value for level in pattern if level >= 0)
        if not ends:
            return None
        groups.setdefault(ends, []).append(np.flatnonzero(members.reshape(-1) == index))
    return [(ends, _ranges(np.sort(np.concatenate(parts)))) for ends, parts in groups.items()]


def _ranges(indices: np.ndarray) -> _Ranges:
    """Sorted indices as ranges [start, stop)."""
    breaks = np.flatnonzero(np.diff(indices) != 1)
    starts = [int(indices[0]), *(int(indices[place + 1]) for place in breaks)]
    stops = [*(int(indices[place]) + 1 for place in breaks), int(indices[-1]) + 1]
    return tuple(zip(starts, stops, strict=True))


def _merged(ranges: Iterable[tuple[int, int]]) -> _Ranges:
    return _ranges(np.unique(np.concatenate([np.arange(start, stop) for start, stop in ranges])))


def _last_convolutions(graph: Graph, picture: str, value: str) -> list[str]:
    """The outputs of the convolutions nearest to a value, on every path to it, those of maps of the picture; of a
    second stage the maps from which it pools regions."""
    ends: dict[str, None] = {}
    pooled: dict[str, None] = {}
    queue, visited = [value], set()
    while queue:
        name = queue.pop()
        node = graph.producer.get(name)
        if name in visited or node is None or graph.is_constant(name):
            continue
        visited.add(name)
        if node.op_type in _CONVOLUTIONS and _is_map(graph, picture, name):
            ends[name] = None
            continue
        if node.op_type in _POOLING_REGIONS:  # the second stage reads a level itself; where regions lie is a constant
            pooled[node.input[0]] = None
            continue
        if node.op_type not in ("Shape", "Size"):
            queue += uses(node)
    return list(pooled or ends)


def _is_map(graph: Graph, picture: str, value: str) -> bool:
    """Whether a value may be a map of the picture: other proportions are those of regrouped numbers, as where a
    convolution takes the mean of a distribution of each edge of a box."""
    shape, whole = graph.shape(value) or (), graph.shape(picture) or ()
    if len(shape) != 4 or len(whole) != 4:
        return False
    sides = Layout(input_layout(graph, picture)).size(whole)
    height, width = shape[2], shape[3]
    if not all(isinstance(side, int) for side in (*sides, height, width)):
        return True
    skew = abs(int(str(height)) * int(str(sides[1])) - int(str(width)) * int(str(sides[0])))
    return skew <= max(int(str(side)) for side in sides)  # a map may be rounded up along one axis


def _shapes(graph: Graph, picture: str, values: Sequence[str], size: tuple[int, ...] | None) -> list[Shape]:
    """Shapes of values, computed for one picture where the graph leaves them open: it may resize what it is given."""
    shapes = [graph.shape(value) or () for value in values]
    if size is None or all(isinstance(dim, int) for shape in shapes for dim in shape):
        return shapes
    try:
        static = StaticShapes(graph, {picture: size})
    except ModelError:
        return shapes
    return [static.shape(value) or shape for value, shape in zip(values, shapes, strict=True)]


def _by_size(values: Sequence[str], shapes: Sequence[Shape]) -> list[frozenset[str]]:
    """Values by the height and width of their maps; all together where these are not known."""
    sizes = [shape[2:] for shape in shapes]
    if any(not isinstance(side, int) for size in sizes for side in size):
        return [frozenset(values)] if values else []
    return [
        frozenset(value for value, other in zip(values, sizes, strict=True) if other == size)
        for size in dict.fromkeys(sizes)
    ]


def _features(graph: Graph, picture: str, ends: frozenset[str], layers: Sequence[Layer]) -> Layer | None:
    """The last layer through which everything goes that these values are computed from; themselves excepted, unless
    regions are pooled from them."""
    pooled = {value for value in ends if any(n.op_type in _POOLING_REGIONS for n in graph.consumers.get(value, ()))}
    shared = frozenset.intersection(*(covering(graph, picture, value) for value in ends)) - (ends - pooled)
    passing = [layer for layer in layers if layer.value in shared]
    return max(passing, key=lambda layer: graph.position[layer.value], default=None)


def record(
    levels: Sequence[PyramidLevel],
    entries: Sequence[dict[str, Any]],
    previous: Iterable[dict[str, Any]],
    count: int | None = None,
) -> None:
    """Say in a manifest's entries of layers which of them are levels of a pyramid, in place.

    Arguments:
        previous: entries of an explainable model that is augmented again, which stay levels.
        count: of candidates, where it is the same for all pictures: where some are of none of the layers, one level is
            named too.
    """
    by_value = {entry.get("value"): entry for entry in previous if entry.get("level")}
    for entry in entries:
        other = by_value.get(entry["value"])
        if other is not None:
            entry.update({key: other[key] for key in ("level", "candidates") if key in other})
    ranges_of = [level.candidates for level in levels]
    if len(levels) < 2:
        covered = sum(stop - start for ranges in ranges_of for start, stop in ranges or ())
        if count is None or None in ranges_of or covered == count or not levels:
            return
    of_level = {level.layer.value: level for level in levels}
    for entry in entries:
        level = of_level.get(entry["value"])
        if level is None:
            continue
        entry["level"] = True
        if level.candidates is not None and len(level.candidates) <= _MOST_RANGES:
            entry["candidates"] = [list(pair) for pair in level.candidates]
