"""The number that an ascent maximises: a channel's mean, a place in a channel, a score, or a difference of two."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcam.errors import LayerError, SettingError, TargetError
from onnxcam.explain.explanation import name_of
from onnxcam.explain.saving import file_stem
from onnxcam.graph import layers
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.view import Graph
from onnxcam.network.layout import Layout
from onnxcam.network.network import Network
from onnxcam.targets import Contrast, Probability, Weights, objectives
from onnxcam.targets.readout import PROBABILITIES, REGRESSION
from onnxcam.targets.tasks import EMBEDDING

# of other kinds a logit
_SCORE = {PROBABILITIES: "log probability", REGRESSION: "value", EMBEDDING: "component"}
# activations that are constant over a part of their domain, element by element
_FLAT = ("Relu", "Clip", "ThresholdedRelu", "HardSigmoid")


@dataclass(frozen=True, eq=False)
class Scalar:
    """A weighted sum of a graph's value, as a mean over the rows of a batch.

    Attributes:
        value: name of the graph's value.
        coefficients: of its channels, or of the columns of the scores, float64 `[C]`.
        layout: the axes of a map or of tokens; None of `[N, C]`, `[N, C, 1, 1]` and scores.
        place: row and column in the map; None for the mean over all.
        title: in words.
        stem: for file names.
        layer: name of the layer; None of scores.
        channels: of the layer, or the classes.
        contrast: the channel or class that is subtracted.
    """

    value: str
    coefficients: np.ndarray
    layout: Layout | None
    place: tuple[int, int] | None
    title: str
    stem: str
    layer: str | None
    channels: tuple[int, ...]
    contrast: int | None = None

    def weights(self, shape: Sequence[int]) -> np.ndarray:
        """d scalar / d value, float64 of the value's shape.

        Raises:
            LayerError: the place does not lie on the map.
        """
        weights = np.zeros(shape)
        rows = max(shape[0], 1)
        if self.layout is None:
            weights += self.coefficients.reshape(1, -1, *[1] * (len(shape) - 2)) / rows
            return weights
        if self.layout.tokens:
            patches = weights[:, self.layout.prefix_tokens :]
            if self.place is None:
                patches += self.coefficients / (rows * max(patches.shape[1], 1))
            else:
                grid = self.layout.grid
                if grid is None:
                    raise LayerError(
                        f"layer {self.layer!r} holds tokens, and how they lie on the picture is unknown: a place "
                        "cannot be named; maximise a channel's mean, or set the grid with `onnxcam export --grid`"
                    )
                self._check_place(grid)
                patches[:, self.place[0] * grid[1] + self.place[1]] += self.coefficients / rows
            return weights
        canonical = self.layout.to_canonical(weights)  # a view
        if self.place is None:
            canonical += self.coefficients[None, :, None, None] / (rows * canonical.shape[2] * canonical.shape[3])
        else:
            self._check_place((canonical.shape[2], canonical.shape[3]))
            canonical[:, :, self.place[0], self.place[1]] += self.coefficients / rows
        return weights

    def of(self, value: np.ndarray) -> float:
        """The scalar, in float64."""
        return float(np.sum(self.weights(value.shape) * value.astype(np.float64)))

    def map_of(self, value: np.ndarray) -> np.ndarray | None:
        """The coefficients' sum at every place of one row, `[h, w]`; None of what has no places."""
        if self.layout is None or (self.layout.tokens and self.layout.grid is None):
            return None
        canonical = self.layout.to_canonical(value[:1].astype(np.float64))
        return np.asarray(np.tensordot(self.coefficients, canonical[0], 1))

    def at(self, row: int, column: int) -> Scalar:
        """The same channels at one place."""
        return replace(self, place=(row, column))

    def before_activation(self, graph: Graph) -> tuple[Scalar, str] | None:
        """The same of the value before the activation that can be flat, and that activation; None without one."""
        value = self.value
        while (node := graph.producer.get(value)) is not None and node.op_type == "Identity":
            value = node.input[0]
        if node is None or node.op_type not in _FLAT:
            return None
        return replace(self, value=node.input[0]), node.op_type

    def describe(self) -> dict[str, Any]:
        """What is maximised, for JSON."""
        entry: dict[str, Any] = {"title": self.title, "layer": self.layer}
        entry |= {"class": list(self.channels)} if self.layer is None else {"channels": list(self.channels)}
        return entry | {"place": None if self.place is None else list(self.place), "contrast": self.contrast}

    def _check_place(self, size: tuple[int, int]) -> None:
        assert self.place is not None
        if not all(0 <= at < side for at, side in zip(self.place, size, strict=True)):
            raise LayerError(
                f"place {list(self.place)} does not lie on layer {self.layer!r}, whose maps have {size[0]} rows and "
                f"{size[1]} columns, counted from 0"
            )


def of_score(network: Network, labels: Sequence[str] | None, target: Any, contrast: Any) -> Scalar:
    """The score of a class, or the difference of two.

    Arguments:
        target: an index or a label; a `Contrast` of two, or `Weights`.
        contrast: the class that is subtracted, None for none.

    Raises:
        TargetError: no such class; one that depends on the picture, such as its top-1; a probability.
    """
    readout = network.readout
    if readout.tabulated:
        raise TargetError(
            f"a class of this model (kind {readout.kind!r}) has scores of many candidates or cells, and none is the "
            "one to be maximised: name a channel of a layer"
        )
    if isinstance(target, Probability):
        raise TargetError(
            "a probability saturates, and its gradient vanishes: maximise the class's score, or its difference from "
            "another class (contrast=)"
        )
    if contrast is not None:
        if isinstance(target, (Contrast, Weights)):
            raise TargetError("contrast= goes with one class, and target= is a function of several already")
        target = Contrast(target, contrast)
    resolved = objectives.by_index(target, readout, labels)
    named = [resolved.target, resolved.other] if isinstance(resolved, Contrast) else [resolved]
    if any(item is None or (isinstance(item, int) and item < 0) for item in named):
        raise TargetError(
            "which class a picture's top-1 is depends on the picture, and here there is none: name the class by its "
            "index or label"
        )
    objective = objectives.resolve(resolved, np.zeros((1, readout.columns or 0)), readout, labels)
    coefficients = objective.cotangent(np.zeros((1, readout.columns or 0)), np.zeros(1, np.int64))[0]
    kind = _SCORE.get(readout.kind, "logit")
    score = f"{kind} " if readout.kind == EMBEDDING else f"{kind} of "
    index = int(objective.classes[0])
    title, stem, other = f"{score}{name_of(index, labels)!r}", file_stem(name_of(index, labels)), None
    if isinstance(resolved, Contrast):
        other = int(resolved.other)
        title += f" - {score}{name_of(other, labels)!r}"
        stem += f"_minus_{file_stem(name_of(other, labels))}"
    elif isinstance(resolved, Weights):
        title, stem = f"weighted sum of the {kind}s, most of {name_of(index, labels)!r}", f"weights_{stem}"
    return Scalar(readout.value, coefficients, None, None, title, stem, None, (index,), other)


def of_channel(
    network: Network,
    graph: Graph,
    layer: str,
    channel: Any,
    place: Sequence[int] | None,
    contrast: Any,
) -> Scalar:
    """The mean of a channel's map, or of several; one place of it; or the difference of two channels.

    Arguments:
        graph: of the network, its picture of the size in question.
        layer: a layer's, value's or node's name.
        channel: an index, or several whose mean is meant.
        place: row and column in the map, None for all.
        contrast: the channel that is subtracted, None for none.

    Raises:
        LayerError: no such layer, channel or place, or a layer without channels.
    """
    value, layout, channels = _layer(network, graph, layer)
    several = isinstance(channel, (list, tuple, np.ndarray))
    indices = tuple(_index(item, channels, layer, "channel") for item in (channel if several else [channel]))
    if not indices or len(set(indices)) < len(indices):
        raise LayerError(f"channel={channel!r} of layer {layer!r}: expected one index or several different ones")
    coefficients = np.zeros(channels)
    coefficients[list(indices)] = 1.0 / len(indices)
    names = "+".join(map(str, indices))
    title = f"{'mean of channel' if len(indices) == 1 else 'mean of channels'} {names} of {layer!r}"
    if layout is None:
        title = f"neuron {names} of {layer!r}"
    plain = re.sub(r"[^\w.-]+", "_", layer).strip("._")[:100] or "layer"
    stem = f"{plain}_{names[:60]}"
    where = None
    if place is not None:
        where = _place(place, layer, layout)
        title, stem = f"{title} at row {where[0]}, column {where[1]}", f"{stem}_at_{where[0]}_{where[1]}"
        title = title.removeprefix("mean of ")
    other = None
    if contrast is not None:
        other = _index(contrast, channels, layer, "contrast")
        if other in indices:
            raise LayerError(f"channel {other} of layer {layer!r} is contrasted with itself; name another one")
        coefficients[other] = -1.0
        title, stem = f"{title} - channel {other}", f"{stem}_minus_{other}"
    return Scalar(value, coefficients, layout, where, title, stem, layer, indices, other)


def _layer(network: Network, graph: Graph, name: str) -> tuple[str, Layout | None, int]:
    """The value of a layer, the axes of its maps (None where it has none), and its number of channels."""
    scores = network.readout.value
    value = _flat_value(graph, name)
    layout = None
    if value is None:
        resolved = layers.resolve(graph, network.layers.get(name, name), scores)
        value, layout = resolved.value, Layout.of_layer(resolved)
    if value not in graph.downstream([network.picture.name]) or value == network.picture.name:
        raise LayerError(
            f"layer {name!r} is not computed from the picture; choose another layer (`onnxcam layers` lists them)"
        )
    shape = graph.shape(value) or ()
    channels = shape[1 if layout is None else layout.channels] if len(shape) > 1 else None
    if not isinstance(channels, int) or channels < 1:
        raise LayerError(
            f"layer {name!r} has shape {describe(graph.shape(value))}, of which no axis is known to hold channels; "
            "choose another layer (`onnxcam layers` lists them)"
        )
    return value, layout, channels


def _flat_value(graph: Graph, name: str) -> str | None:
    """The value of this name, or of the node of this name, where it is `[N, C]` or `[N, C, 1, 1]` floats."""
    nodes = [node for node in graph.nodes if node.name == name and name not in graph]
    value = name if name in graph else nodes[0].output[0] if len(nodes) == 1 else None
    if value is None or not graph.is_float(value):
        return None
    shape = graph.shape(value) or ()
    return value if len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)) else None


def _index(channel: Any, channels: int, layer: str, name: str) -> int:
    """A channel's index.

    Raises:
        LayerError: none of this layer.
    """
    whole = isinstance(channel, (int, np.integer)) and not isinstance(channel, (bool, np.bool_))
    if not whole or not 0 <= channel < channels:
        close = f"; the nearest is {min(max(int(channel), 0), channels - 1)}" if whole else ""
        raise LayerError(
            f"{name} {channel!r} is not one of layer {layer!r}, which has {channels}, counted from 0 to {channels - 1}"
            f"{close}"
        )
    return int(channel)


def _place(place: Any, layer: str, layout: Layout | None) -> tuple[int, int]:
    """A row and a column.

    Raises:
        LayerError: the layer has no places. SettingError: something else than a row and a column.
    """
    if layout is None:
        raise LayerError(f"layer {layer!r} holds one number per channel: leave the place out")
    numbers = list(place) if isinstance(place, (list, tuple, np.ndarray)) else []
    if len(numbers) != 2 or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0 for n in numbers):
        raise SettingError(f"place is {place!r}; expected row and column on the layer's map, counted from 0")
    return int(numbers[0]), int(numbers[1])
