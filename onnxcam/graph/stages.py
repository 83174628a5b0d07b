"""The local part of a graph in stages, each of which computes on crops what a change of the picture changes.

A stage is a part of the graph between two cuts. Its inputs are crops of cached maps with the changed part pasted in,
as rows of a batch; its outputs are the changed parts of the maps at the next cut. There are two kinds:

exact     windows (convolutions, pooling) read inputs of the stage alone, everything else is point by point: they run
          without padding on exactly what is read, where padding lies in the crops
padded    any nodes: they run as they are on a crop that is as much larger as their windows reach; the cells at the
          crop's edges, which read padding where the map goes on, are discarded. At the picture's edge padding is right
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import NamedTuple

import numpy as np
import onnx

from onnxcam.graph import edit
from onnxcam.graph.locality import Locality, LocalNode, Taps, changes, hull, required
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import FLOATS, Graph, attributes

Spans = tuple[np.ndarray, np.ndarray]  # along rows and along columns, int64 `[n, 2]` each: from, and to before

# costs in multiplications, from runs on two cores: what a number costs that is copied into and out of a stage, that an
# operator writes, and what a run costs
_COPY_IN, _COPY_OUT, _WRITE, _RUN = 250.0, 60.0, 25.0, 2e6
_MOST_VALUES = 3  # that pass a cut
_FURTHEST = 30  # nodes of a stage
_CHEAP = having(Trait.CHEAP) | {"QuantizeLinear", "DequantizeLinear"}
_FUSED = having(Trait.ELEMENTWISE) | {"BatchNormalization"}
_MAKERS = having(Trait.CONVOLVES | Trait.NORMALIZES) | {"MatMul", "Gemm"}


class Read(NamedTuple):
    """An input of a stage.

    Attributes:
        name: of the stage's input.
        value: the map that it is a crop of.
        taps: of the window that reads it, in an exact stage; None where cells are read at their place.
        filling: what lies outside of the map.
    """

    name: str
    value: str
    taps: tuple[Taps, Taps] | None = None
    filling: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A part of the graph between two cuts.

    Attributes:
        nodes: of the part.
        exact: its kind, see the module.
        reads: its inputs.
        results: the maps at its end that it computes.
        aligned: at multiples of this many rows and columns of its inputs a crop of a padded stage begins.
    """

    nodes: tuple[LocalNode, ...]
    exact: bool
    reads: tuple[Read, ...]
    results: tuple[str, ...]
    aligned: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Stages one after another, and the maps that the rest of the graph reads.

    Attributes:
        stages: in order.
        values: the maps at the last cut: the whole rest of the graph runs on them.
        cached: the maps of the unchanged picture that stages read, the picture aside.
        share: of the multiplications of the whole graph that changes with the spans; of nodes that are not local, all.
        cost: of the stages and the rest relative to that of the whole, as estimated.
    """

    stages: tuple[Stage, ...]
    values: tuple[str, ...]
    cached: tuple[str, ...]
    share: float
    cost: float


class Planner:
    """Where to cut a graph for changes of some spans of the picture.

    Arguments:
        graph: a normalised graph.
        local: of it.
        picture: its input.
        scores: the value that is computed in the end.
    """

    def __init__(self, graph: Graph, local: Locality, picture: str, scores: str) -> None:
        self._graph, self._local, self._picture = graph, local, picture
        needed = {name for node in graph.upstream([scores])[0] for name in node.output}
        self._nodes = [entry for entry in local.nodes if needed.intersection(entry.node.output)]
        self._strides = self._cumulated()
        self._cuts = list(self._positions(scores, needed))
        self._operations = [local.operations[entry.node.output[0]] for entry in self._nodes]
        whole = sum(count for name, count in local.operations.items() if name in needed)
        self._others = max(whole - sum(self._operations), 0.0)  # of nodes that are not local
        self._costs = np.cumsum([0.0, *(self._cost(at) for at in range(len(self._nodes)))])

    def _cumulated(self) -> dict[str, tuple[int, int] | None]:
        """Cells of the picture from one cell of a map to the next; None where paths disagree."""
        strides: dict[str, tuple[int, int] | None] = {self._picture: (1, 1)}
        for entry in self._nodes:
            every = {strides[name] for name in entry.reads}
            step = every.pop() if len(every) == 1 else None
            if step is not None and entry.taps is not None:
                step = step[0] * entry.taps[0].step, step[1] * entry.taps[1].step
            strides |= dict.fromkeys(filter(None, entry.node.output), step)
        return strides

    def _cost(self, at: int) -> float:
        node = self._nodes[at].node
        floats = float(np.prod(self._local.shapes[node.output[0]]))
        fused = node.op_type in _CHEAP and len(self._nodes[at].reads) == 1
        return self._operations[at] + (0.0 if fused else _WRITE * floats)

    def _positions(self, scores: str, needed: set[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Behind how many nodes the graph can be cut, and the maps that pass there."""
        graph, last = self._graph, {}
        place = {name: at for at, entry in enumerate(self._nodes) for name in entry.node.output if name}
        for value in (self._picture, *place):
            readers = [node for node in graph.consumers.get(value, []) if needed.intersection(node.output)]
            ends = [place.get(node.output[0], len(self._nodes)) for node in readers]
            last[value] = len(self._nodes) if value == scores else max(ends, default=-1)
        quantized = any(node.op_type == "QuantizeLinear" for node in graph.nodes)
        passing: list[str] = [self._picture]
        for at in range(len(self._nodes) + 1):
            if at:
                passing += [name for name in self._nodes[at - 1].node.output if name]
            passing = [value for value in passing if last[value] >= at]
            if scores in passing or len(passing) > _MOST_VALUES:
                continue
            if at == 0 or all(self._free(value, quantized) for value in passing):
                yield at, tuple(passing)

    def _free(self, value: str, quantized: bool) -> bool:
        """Whether a cut at a map leaves what runtimes fuse together."""
        graph = self._graph
        if value == self._picture:
            return True
        if quantized and graph.dtype(value) in FLOATS:
            return False
        readers, maker = graph.consumers.get(value, []), graph.producer[value]
        return not (maker.op_type in _MAKERS and all(node.op_type in _FUSED for node in readers))

    def plan(self, spans: Spans) -> Plan:
        """The cuts for which changes of some spans of the picture's rows and of its columns cost least.

        Every span of rows is taken to come with every span of columns.
        """
        changed = [changes(self._local, self._picture, spans[axis], axis) for axis in (0, 1)]
        banned: set[tuple[int, int, bool]] = set()
        while True:
            chain, cost = self._shortest(changed, banned)
            stages = [self._stage(*link) for link in chain]
            wrong = [link for link, stage in zip(chain, stages, strict=True) if not self._fits(stage, changed)]
            if not wrong:
                break
            banned.update(wrong)
        values = self._cuts[chain[-1][1]][1] if chain else (self._picture,)
        reads = dict.fromkeys(read.value for stage in stages for read in stage.reads)
        cached = tuple(value for value in (reads | dict.fromkeys(values)) if value != self._picture)
        return Plan(tuple(stages), values, cached, self._share(changed), cost)

    def _share(self, changed: Sequence[Mapping[str, np.ndarray]]) -> float:
        """The part of all multiplications that changes."""
        outputs = [entry.node.output[0] for entry in self._nodes]
        parts = [self._fraction([changed[axis][name] for axis in (0, 1)], self._local.size(name)) for name in outputs]
        changing = float(np.dot(parts, self._operations)) + self._others
        return changing / max(sum(self._operations) + self._others, 1.0)

    @staticmethod
    def _fraction(spans: Sequence[np.ndarray], size: tuple[int, int]) -> float:
        """The mean area of spans of rows by spans of columns, of a map's."""
        means = [float((span[:, 1] - span[:, 0]).mean()) for span in spans]
        return means[0] * means[1] / max(size[0] * size[1], 1)

    def _shortest(
        self, changed: Sequence[Mapping[str, np.ndarray]], banned: set[tuple[int, int, bool]]
    ) -> tuple[list[tuple[int, int, bool]], float]:
        """The cheapest chain of stages, each from one cut to another; their relative cost with the rest."""
        best = [0.0] + [np.inf] * (len(self._cuts) - 1)
        links: dict[int, tuple[int, int, bool]] = {}
        least = self._least(changed)
        for end in range(1, len(self._cuts)):

            def hopeless(start: int, end: int = end) -> bool:
                return bool(best[start] + least[self._cuts[end][0]] - least[self._cuts[start][0]] >= best[end])

            for link, cost in self._links(end, changed, hopeless):
                total = best[link[0]] + cost
                if link not in banned and total < best[end]:
                    best[end], links[end] = total, link
        totals = [
            cost + float(self._costs[-1] - self._costs[at]) + _COPY_IN * sum(map(self._floats, values))
            for cost, (at, values) in zip(best, self._cuts, strict=True)
        ]
        totals[0] = float(self._costs[-1])
        end = int(np.argmin(totals))
        whole = float(self._costs[-1]) + self._others
        cost, chain = (totals[end] + self._others) / max(whole, 1.0), []
        while end:
            chain.append(links[end])
            end = links[end][0]
        return chain[::-1], cost

    def _floats(self, value: str) -> float:
        return float(np.prod(self._local.shapes[value]))

    def _least(self, changed: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """What the nodes before each cost if no more than what changes is computed."""
        outputs = [entry.node.output[0] for entry in self._nodes]
        parts = [self._fraction([by_map[name] for by_map in changed], self._local.size(name)) for name in outputs]
        return np.cumsum([0.0, *(np.diff(self._costs) * parts)])

    def _links(
        self, end: int, changed: Sequence[Mapping[str, np.ndarray]], hopeless: Callable[[int], bool]
    ) -> Iterator[tuple[tuple[int, int, bool], float]]:
        """Stages that end at a cut, with their costs; none from a start that is hopeless."""
        stop, values = self._cuts[end]
        needs = [{name: by_map[name] for name in values} for by_map in changed]
        at = stop
        for start in range(end - 1, -1, -1):
            first = self._cuts[start][0]
            if stop - first > _FURTHEST:
                return
            while at > first:
                at -= 1
                for axis, need in enumerate(needs):
                    required([self._nodes[at]], need, axis)
            for exact in () if hopeless(start) else (True, False):
                stage = self._candidate(start, end, exact)
                if stage is not None:
                    yield (start, end, exact), self._stage_cost(stage, first, stop, changed, needs)

    def _stage_cost(
        self,
        stage: Stage,
        first: int,
        stop: int,
        changed: Sequence[Mapping[str, np.ndarray]],
        needs: Sequence[Mapping[str, np.ndarray]],
    ) -> float:
        local = self._local
        if stage.exact:
            result = [hull([by_map[name] for name in stage.results]) for by_map in changed]
            size = local.size(stage.results[0])
            part = self._fraction(result, size)
            spans = [[windowed(read, result[axis], axis) for axis in (0, 1)] for read in stage.reads]
        else:
            need = [hull([by_map[read.value] for read in stage.reads]) for by_map in needs]
            size = local.size(stage.reads[0].value)
            crop = [padded_crop(need[axis], stage.aligned[axis], size[axis]) for axis in (0, 1)]
            part, spans = self._fraction(crop, size), [crop] * len(stage.reads)
        copied = sum(
            self._floats(read.value) * self._fraction(span, local.size(read.value))
            for read, span in zip(stage.reads, spans, strict=True)
        )
        written = part * sum(map(self._floats, stage.results))
        work = part * float(self._costs[stop] - self._costs[first])
        return work + _COPY_IN * copied + _COPY_OUT * written + _RUN

    def _candidate(self, start: int, end: int, exact: bool) -> Stage | None:
        """The stage between two cuts if it can be of a kind."""
        local, nodes = self._local, self._nodes[self._cuts[start][0] : self._cuts[end][0]]
        if exact:
            inside = {name for entry in nodes for name in entry.node.output}
            if any(entry.taps is not None and entry.reads[0] in inside for entry in nodes):
                return None
            if len({local.size(entry.node.output[0]) for entry in nodes}) != 1 or not all(map(_unpadded, nodes)):
                return None
        elif any(self._strides[entry.node.output[0]] is None for entry in nodes) or _steps(nodes) is None:
            return None
        stage = self._stage(start, end, exact)
        sizes = {local.size(read.value) for read in stage.reads}
        return stage if stage.results and stage.reads and (exact or len(sizes) == 1) else None

    def _stage(self, start: int, end: int, exact: bool) -> Stage:
        (first, before), (stop, after) = self._cuts[start], self._cuts[end]
        nodes = tuple(self._nodes[first:stop])
        reads: list[Read] = []
        for at, entry in enumerate(nodes):
            for value in entry.reads:
                if value not in before:
                    continue
                if exact and entry.taps is not None:
                    filling = -np.inf if entry.node.op_type == "MaxPool" else 0.0
                    reads.append(Read(f"{value}/{at}", value, entry.taps, filling))
                elif all(read.name != value for read in reads):
                    reads.append(Read(value, value))
        results = tuple(value for value in after if value not in before)
        every = [] if exact else list((_steps(nodes) or {}).values())
        rows, columns = (lcm(*(step[axis] for step in every)) for axis in (0, 1))
        return Stage(nodes, exact, tuple(reads), results, (rows, columns))

    def _fits(self, stage: Stage, changed: Sequence[Mapping[str, np.ndarray]]) -> bool:
        """Whether maps of one size have crops of one length in a padded stage, whatever the crop."""
        if stage.exact:
            return True
        for axis in (0, 1):
            crops = stage_crops(stage, self._local, changed[axis], axis)
            for length in {int(stop - start) for start, stop in crops if stop > start}:
                if not self._consistent(stage, axis, length):
                    return False
        return True

    def _consistent(self, stage: Stage, axis: int, length: int) -> bool:
        local = self._local
        lengths = {read.value: length for read in stage.reads}
        by_size = {local.size(read.value)[axis]: length for read in stage.reads}
        for entry in stage.nodes:
            every = {lengths[name] for name in entry.reads}
            if len(every) != 1:
                return False
            cells = every.pop()
            if entry.taps is not None:
                cells = entry.taps[axis].length(cells, entry.after[axis], entry.ceil)
            for name in filter(None, entry.node.output):
                lengths[name] = cells
                if cells < 1 or by_size.setdefault(local.size(name)[axis], cells) != cells:
                    return False
        return True


def _unpadded(entry: LocalNode) -> bool:
    """Whether a window gives the same without its own padding, of data that is padded."""
    if entry.taps is None:
        return True
    node, attrs = entry.node, attributes(entry.node)
    if node.op_type == "Pad":
        return False
    padded = any(tap.before for tap in entry.taps) or any(entry.after) or entry.ceil
    return (
        not padded
        or node.op_type in ("Conv", "MaxPool")
        or (node.op_type == "AveragePool" and bool(attrs.get("count_include_pad", 0)) and not entry.ceil)
    )


def steps(stage: Stage, value: str) -> tuple[int, int]:
    """Rows and columns of a padded stage's inputs from one cell of a value to the next."""
    return (_steps(stage.nodes) or {}).get(value, (1, 1))


def _steps(nodes: Sequence[LocalNode]) -> dict[str, tuple[int, int]] | None:
    """By map, cells of what the nodes read of others from one cell of it to the next; None where paths disagree."""
    every: dict[str, tuple[int, int]] = {}
    for entry in nodes:
        step, *others = {every.get(name, (1, 1)) for name in entry.reads}
        if others:
            return None
        if entry.taps is not None:
            step = step[0] * entry.taps[0].step, step[1] * entry.taps[1].step
        every |= dict.fromkeys(filter(None, entry.node.output), step)
    return every


def windowed(read: Read, span: np.ndarray, axis: int) -> np.ndarray:
    """What an input of an exact stage has for spans `[n, 2]` of its results."""
    return span if read.taps is None else read.taps[axis].backward(span)


def padded_crop(need: np.ndarray, aligned: int, size: int) -> np.ndarray:
    """The crops `[n, 2]` of a padded stage for what is read: within the map, at multiples of its stride."""
    first = np.maximum(need[:, 0], 0) // aligned * aligned
    last = np.minimum(-(-need[:, 1] // aligned) * aligned, size)
    return np.where((need[:, 0] < need[:, 1])[:, None], np.stack([first, last], axis=1), 0)


def stage_crops(stage: Stage, local: Locality, changed: Mapping[str, np.ndarray], axis: int) -> np.ndarray:
    """Along one axis, the crops `[n, 2]` of a padded stage's inputs, or what an exact stage computes."""
    if stage.exact:
        return hull([changed[name] for name in stage.results])
    need = {name: changed[name] for name in stage.results}
    required(reversed(stage.nodes), need, axis)
    first = stage.reads[0].value
    return padded_crop(hull([need[read.value] for read in stage.reads]), stage.aligned[axis], local.size(first)[axis])


def stage_model(graph: Graph, local: Locality, stage: Stage) -> onnx.ModelProto:
    """The model of a stage: crops of any size, any number of rows in; its results out."""

    def declared(name: str, value: str) -> onnx.ValueInfoProto:
        dims: list[int | str | None] = list(local.shapes[value])
        size = local.size(value)
        dims[0] = "rows"
        for axis, letter, length in zip(local.axes[value], "hw", size, strict=True):
            dims[axis] = f"{letter}{length}" if name == value else f"{letter}/{name}"
        return edit.info(name, graph.dtype(value), dims)

    boundary = dict.fromkeys(read.value for read in stage.reads)
    model = edit.extract(
        graph,
        [declared(value, value) for value in boundary],
        [declared(name, name) for name in stage.results],
    )
    by_output = {entry.node.output[0]: (at, entry) for at, entry in enumerate(stage.nodes)}
    names = {read.name for read in stage.reads}
    for node in model.graph.node:
        at, entry = by_output.get(node.output[0], (0, None))
        if entry is None or entry.taps is None or node.op_type == "Pad":
            continue
        pads = [tap.before for tap in entry.taps] + list(entry.after)
        if local.axes[entry.reads[0]] == (3, 2):
            pads = [pads[1], pads[0], pads[3], pads[2]]
        if stage.exact and f"{node.input[0]}/{at}" in names:
            node.input[0], pads = f"{node.input[0]}/{at}", [0, 0, 0, 0]
            _set(node, "ceil_mode", None)
        _set(node, "auto_pad", None)
        _set(node, "pads", pads)
    values = {name: info for info in model.graph.input for name in [info.name]}
    inputs = [values[r.name] if r.name in values and r.taps is None else declared(r.name, r.value) for r in stage.reads]
    others = [info for name, info in values.items() if name not in boundary]
    del model.graph.input[:]
    model.graph.input.extend([*inputs, *others])
    del model.graph.value_info[:]
    outputs = {info.name for info in model.graph.output}
    model.graph.value_info.extend(
        declared(name, name) for entry in stage.nodes for name in entry.node.output if name and name not in outputs
    )
    return model


def _set(node: onnx.NodeProto, name: str, value: list[int] | None) -> None:
    remaining = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(remaining)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value))
