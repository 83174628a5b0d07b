"""Both networks run side by side, and each operation of the new one run again on the old one's values.

A difference that an early layer makes is carried on by all later ones. Given the old network's values, an operation
shows what it adds itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnxcam import runtime
from onnxcam.diagnose.shift.alignment import Axes, Match
from onnxcam.diagnose.shift.operations import Pair
from onnxcam.graph import edit
from onnxcam.graph.view import Graph, copy_of
from onnxcam.network.network import Network

Open = Callable[[Any], Any]  # a session of a model
Values = dict[str, np.ndarray]

_OLD, _PAIR = "onnxcam.old", "onnxcam.pair"
CHUNK = 192 << 20  # bytes of values of one run


class Sight(NamedTuple):
    """What a picture shows of one operation, all in the old network's axes.

    Attributes:
        place: of the match.
        old: the old network's value.
        new: the new network's, as the next operations read it.
        exact: the new operation's on the old network's values, before it is quantized.
        local: the same after it.
        pairs: the old network's value after each of the pairs that quantize the new one.
    """

    place: int
    old: np.ndarray
    new: np.ndarray
    exact: np.ndarray
    local: np.ndarray
    pairs: tuple[np.ndarray, ...]


class _Part(NamedTuple):
    """The sessions of some of the matches."""

    places: tuple[int, ...]
    old: Any
    new: Any
    replay: Any
    boundary: tuple[int, ...]  # the matches whose old values the replay reads


class Replay:
    """Two networks on the same pictures.

    Arguments:
        old, new: the networks.
        matches: operations of both, in the new one's order.
        open_old, open_new: open a session of a part of each.
        first: a prepared batch for each, which shows how the axes lie.

    Attributes:
        matches: those whose values can be compared.
        absorbed: whether the two are given different values and their first layers make up for that.
    """

    def __init__(
        self,
        old: Network,
        new: Network,
        matches: Sequence[Match],
        open_old: Open,
        open_new: Open,
        first: tuple[np.ndarray, np.ndarray],
        tolerance: float,
    ) -> None:
        self._old, self._new = old, new
        self._open_old, self._open_new = open_old, open_new
        values = [match.old.value for match in matches]
        old_values = _run(open_old(exposing(old, values)), values, old, first[0])
        delivered = [match.new.delivered for match in matches]
        new_values = _run(open_new(exposing(new, delivered)), delivered, new, first[1])
        self.matches: list[Match] = []
        self._axes: list[Axes] = []
        sizes = []
        distances = []
        for match in matches:
            a, b = old_values[match.old.value], new_values[match.new.delivered]
            axes = Axes(a.shape, b.shape)
            if not axes.possible or not _comparable(match, a, b):
                continue
            axes.settle(a.astype(np.float64), b.astype(np.float64))
            self.matches.append(match)
            self._axes.append(axes)
            sizes.append(4 * a.size)
            distances.append(relative(axes.to_old(b), a))
        self.has_picture = bool(self.matches) and self.matches[0].new.node is None
        weighted = [d for match, d in zip(self.matches, distances, strict=True) if match.new.weight is not None]
        self.absorbed = self.has_picture and distances[0] > tolerance and bool(weighted) and weighted[0] <= tolerance
        self._model = self._rewired()
        self._parts = [self._part(places) for places in _chunks(sizes)]

    def run(self, old: np.ndarray, new: np.ndarray) -> Iterator[Sight]:
        """What one prepared batch of each shows of every match, in order; one row is looked at."""
        for part in self._parts:
            a = _run(part.old, self._old_names(part), self._old, old)
            b = _run(part.new, self._new_names(part), self._new, new)
            feeds = {f"{_OLD}.{place}": self._feed(place, a) for place in part.boundary}
            inputs = {info.name for info in part.replay.get_inputs()}
            if self._new.picture.name in inputs:
                feeds[self._new.picture.name] = new
            names = [info.name for info in part.replay.get_outputs()]
            c = runtime.run(part.replay, names, feeds)
            for place in part.places:
                match, axes = self.matches[place], self._axes[place]
                value = a[match.old.value]
                pairs = tuple(axes.to_old(c[_pair(place, k)]) for k in range(len(match.new.pairs)))
                if place == 0 and match.new.node is None:
                    exact = local = axes.to_old(b[match.new.value])
                else:
                    exact, local = axes.to_old(c[match.new.value]), axes.to_old(c[match.new.delivered])
                yield Sight(place, value, axes.to_old(b[match.new.delivered]), exact, local, pairs)

    def substitute(self, place: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """A function of a prepared batch and another value of one match: the old network's scores with it."""
        value, scores = self.matches[place].old.value, self._old.readout.value
        name = f"{_OLD}.substitute"
        model = onnx.ModelProto()
        model.CopyFrom(self._old.graph.model)
        for node in model.graph.node:
            for index, read in enumerate(node.input):
                if read == value:
                    node.input[index] = name
        graph = self._old.graph
        info = edit.info(name, graph.dtype(value), graph.shape(value))
        result = edit.info(scores, graph.dtype(scores), graph.shape(scores))
        reads = Graph(model)
        if value == scores:
            return lambda _, other: other
        session = self._open_old(edit.extract(reads, [info], [result]))
        inputs = {entry.name for entry in session.get_inputs()}
        kind = _dtype(graph, value)

        def scored(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
            feeds = {name: np.ascontiguousarray(other, kind), self._old.picture.name: picture}
            return runtime.run(session, [scores], {key: feed for key, feed in feeds.items() if key in inputs})[scores]

        return scored

    def _feed(self, place: int, values: Values) -> np.ndarray:
        match = self.matches[place]
        value = self._axes[place].to_new(values[match.old.value])
        return np.ascontiguousarray(value, _dtype(self._new.graph, match.new.value))

    def _old_names(self, part: _Part) -> list[str]:
        return list(dict.fromkeys(self.matches[place].old.value for place in (*part.boundary, *part.places)))

    def _new_names(self, part: _Part) -> list[str]:
        names = [self.matches[place].new.delivered for place in part.places]
        names += [match.new.value for match in self.matches[:1] if part.places[0] == 0]
        return list(dict.fromkeys(names))

    def _part(self, places: Sequence[int]) -> _Part:
        graph = Graph(self._model)
        outputs = []
        for place in places:
            match = self.matches[place]
            names = [_pair(place, k) for k in range(len(match.new.pairs))]
            if not (place == 0 and match.new.node is None):
                names += [match.new.value, match.new.delivered]
            kind = self._new.graph.dtype(match.new.value)
            outputs += [edit.info(name, kind, None) for name in dict.fromkeys(names)]
        inputs = [
            edit.info(f"{_OLD}.{place}", self._new.graph.dtype(match.new.value), None)
            for place, match in enumerate(self.matches)
        ]
        model = edit.extract(graph, inputs, outputs)
        read = {name for node in model.graph.node for name in node.input}
        boundary = tuple(place for place in range(len(self.matches)) if f"{_OLD}.{place}" in read)
        remaining = [info for info in model.graph.input if info.name in read]
        del model.graph.input[:]
        model.graph.input.extend(remaining)
        del model.graph.value_info[:]
        part = _Part(tuple(places), None, None, self._open_new(model), boundary)
        old = self._open_old(exposing(self._old, self._old_names(part)))
        return part._replace(old=old, new=self._open_new(exposing(self._new, self._new_names(part))))

    def _rewired(self) -> onnx.ModelProto:
        """The new network with the old one's values in place of its own, at every match."""
        model = onnx.ModelProto()
        model.CopyFrom(self._new.graph.model)
        graph = self._new.graph
        source: dict[str, str] = {}
        quantizers: set[str] = set()
        copies: list[onnx.NodeProto] = []
        for place, match in enumerate(self.matches):
            name = f"{_OLD}.{place}"
            for k, pair in enumerate(match.new.pairs):
                copies += _copied(pair, name, _pair(place, k))
                quantizers.add(str(pair.quantize.output[0]))
            if self.absorbed and place == 0:
                continue
            values = {match.new.value, *(pair.value for pair in match.new.pairs)}
            producer = graph.producer.get(match.new.value)
            if producer is not None and producer.op_type == "DequantizeLinear":
                values |= {
                    str(node.output[0])
                    for node in graph.consumers.get(producer.input[0], [])
                    if node.op_type == "DequantizeLinear"
                }
            source |= dict.fromkeys(values, name)
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear" and node.output[0] in quantizers:
                continue
            for index, read in enumerate(node.input):
                node.input[index] = source.get(read, read)
        model.graph.node.extend(copies)
        return model


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Relative distance of two values: |a - b| / |b|."""
    norm = float(np.linalg.norm(b.astype(np.float64)))
    return float(np.linalg.norm(a.astype(np.float64) - b)) / max(norm, 1e-12)


def _comparable(match: Match, old: np.ndarray, new: np.ndarray) -> bool:
    """Whether two values are numbers of one kind: integers between operators have a scale that is applied later."""
    if match.new.node is None:
        return old.dtype.kind in "fiu"
    return old.dtype.kind == "f" and new.dtype.kind not in "iub"


def _pair(place: int, number: int) -> str:
    return f"{_PAIR}.{place}.{number}"


def _copied(pair: Pair, value: str, output: str) -> list[onnx.NodeProto]:
    """The pair's nodes on another value."""
    quantize, dequantize = copy_of(pair.quantize), copy_of(pair.dequantize)
    quantize.name, dequantize.name = f"{output}.quantize", f"{output}.dequantize"
    quantize.input[0], quantize.output[0] = value, f"{output}.integers"
    dequantize.input[0], dequantize.output[0] = f"{output}.integers", output
    return [quantize, dequantize]


def exposing(network: Network, values: Sequence[str]) -> onnx.ModelProto:
    """The network from its picture to values of it."""
    graph = network.graph
    inner = [name for name in dict.fromkeys(values) if name != network.picture.name]
    infos = [edit.info(name, graph.dtype(name), graph.shape(name)) for name in inner]
    return edit.extract(graph, [network.picture], infos)


def _run(session: Any, names: Sequence[str], network: Network, picture: np.ndarray) -> Values:
    inner = [name for name in dict.fromkeys(names) if name != network.picture.name]
    values = runtime.run(session, inner, {network.picture.name: picture}) if inner else {}
    return values | {network.picture.name: picture}


def _dtype(graph: Graph, value: str) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(graph.dtype(value)))


def _chunks(sizes: Sequence[int]) -> list[list[int]]:
    """Runs of matches whose values fit in memory together."""
    chunks: list[list[int]] = [[]]
    total = 0
    for place, size in enumerate(sizes):
        if chunks[-1] and total + size > CHUNK:
            chunks.append([])
            total = 0
        chunks[-1].append(place)
        total += size
    return chunks
