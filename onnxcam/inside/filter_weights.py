"""Filters: the weights of a convolution, as pictures and numbers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import floor, log10
from typing import Any

import numpy as np
import onnx

from onnxcam.errors import InputError, LayerError
from onnxcam.graph import layers as target_layers
from onnxcam.graph.load import Source
from onnxcam.graph.view import attributes
from onnxcam.image import sheet
from onnxcam.image.opencv import import_cv2
from onnxcam.image.text import Font
from onnxcam.inside.convolutions import convolution_of, convolutions, reads_colors, weights_of
from onnxcam.network.network import Network

ROOM = 64
_PREFIX = "onnxcam/"  # what the names of values begin with that onnxcam makes
SCALES = ("layer", "filter")
_ROWS = 12  # filters, where several slices of each are drawn
_TALLEST = 4  # times as many filters as inputs of a matrix are drawn, or ROOM of them: more would be a line
_POSITIVE, _NEGATIVE = np.array((178, 24, 43.0)), np.array((20, 86, 164.0))
_LIGHT, _DARK = (255, 255, 255), (26, 28, 32)
_PRINTED = 3  # sides of the largest filters whose values are printed
_SIDE = 180  # pixels in which they are


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of one convolution.

    Attributes:
        layer: the name asked for.
        convolution: the value that the convolution computes.
        weights: float32 `[O, I, kh, kw]`: dequantised; I is the number of inputs of one filter, so 1 of a depthwise
            convolution; filters of a transposed convolution come in the same order.
        group: groups of the convolution.
        transposed: whether it is a transposed one.
        colors: `RGB` or `BGR` if the filters read the colours of the picture, else None.
    """

    layer: str
    convolution: str
    weights: np.ndarray
    group: int = 1
    transposed: bool = False
    colors: str | None = None

    @property
    def variance(self) -> np.ndarray:
        """Of each filter over its weights, float32 `[O]`."""
        return np.asarray(self.weights.reshape(len(self.weights), -1).var(axis=1))

    @property
    def order(self) -> list[int]:
        """The filters, in order; those that vary most first where there are more than fit on a page."""
        room = self._room
        if len(self.weights) <= room:
            return list(range(len(self.weights)))
        return [int(index) for index in np.argsort(-self.variance, kind="stable")]

    def grid(self, *, scale: str = "layer") -> sheet.Pixels:
        """Draw the filters as a labelled page.

        Filters that read the colours of the picture are colours themselves, grey where a weight is 0; others are red
        where positive, blue where negative and white at 0, their values printed where they fit.

        Arguments:
            scale: `layer`, one scale of colours for all, or `filter`, each on its own.

        Returns:
            uint8 [H, W, 3] RGB.

        Raises:
            InputError: an unknown scale.
        """
        return sheet.page([sheet.heading(self.layer, self.notes(scale)), *self.parts(scale)])

    def notes(self, scale: str = "layer") -> list[str]:
        """What the page says about the filters."""
        count, inputs, height, width = self.weights.shape
        number = min(self._room, count)
        kind = "transposed convolution" if self.transposed else "convolution"
        if self.group > 1:
            kind = f"depthwise {kind}" if inputs == 1 else f"{kind} in {self.group} groups"
        lines = [f"{kind}: {count} filters, {height} x {width}, of {inputs} input{'s' * (inputs != 1)} each"]
        if self.colors:
            how = "One scale for all." if scale == "layer" else "Each on its own scale."
            return [*lines, f"Colours are what a filter looks for; grey: weight 0. {how}"]
        if number < count:
            lines.append(f"Shown: the {number} that vary most.")
        if height * width > 1 and inputs > 1:
            lines.append("Beside each other: the strongest slices of a filter, with its number and the input's.")
        if self._printed and self._unit != 1:
            lines.append(f"Values in units of {self._unit:g}.")
        return lines

    def parts(self, scale: str = "layer") -> list[sheet.Pixels]:
        """The grid and the scale of the page."""
        if scale not in SCALES:
            raise InputError(f"scale is {scale!r}, expected one of {', '.join(map(repr, SCALES))}")
        _, inputs, height, width = self.weights.shape
        peak = self._peak()
        if self.colors:
            cells = [sheet.Cell(self.tile(index, scale=scale), str(index)) for index in self.order[: self._room]]
            return [sheet.grid(cells, 8)]
        ends = (f"{-peak:.3g}", f"{peak:.3g}") if scale == "layer" else ("filter's largest, negative", "positive")
        bar = sheet.scale(signed(np.linspace(-1, 1, 256)), *ends, middle="0")
        if height * width == 1:
            matrix = sheet.Cell(self._matrix(scale), "down: filters", "across: inputs")
            return [sheet.grid([matrix], 1, framed=True), bar]
        columns = 4 if self._printed else 6
        if inputs == 1:
            cells = [sheet.Cell(self.tile(index, scale=scale), str(index)) for index in self.order[: self._room]]
        else:
            slices = min(columns, inputs)
            columns -= columns % slices  # of few slices several filters fit beside each other
            cells = [
                sheet.Cell(self.tile(index, place, scale=scale), str(index), f"in {self.input(index, place)}")
                for index in self.order[: self._room]
                for place in self.strongest(index, slices)
            ]
        return [sheet.grid(cells, columns, framed=True), bar]

    def strongest(self, index: int, count: int = 1) -> list[int]:
        """The inputs of a filter with the largest sums of squares, the largest first."""
        power = (self.weights[index].astype(np.float64) ** 2).sum(axis=(1, 2))
        return [int(place) for place in np.argsort(-power, kind="stable")[:count]]

    def input(self, index: int, place: int) -> int:
        """The channel of the convolution's data that a filter's input is."""
        inputs: int = self.weights.shape[1]
        return index // (len(self.weights) // self.group) * inputs + place

    def tile(self, index: int, place: int = 0, *, scale: str = "layer") -> sheet.Pixels:
        """One filter (of several inputs one slice of it) as a picture; values are printed where they fit.

        Returns:
            uint8 [h, w, 3] RGB.
        """
        peak = self._peak(None if scale == "layer" else index)
        if self.colors:
            values = self.weights[index] if self.colors == "RGB" else self.weights[index][::-1]
            shades = np.nan_to_num(values.transpose(1, 2, 0).astype(np.float64) / peak)
            return np.asarray(np.rint(127.5 + 127.5 * shades), np.uint8)
        shares = self.weights[index, place].astype(np.float64) / peak
        pixels = signed(shares)
        return self._print(pixels, self.weights[index, place], shares) if self._printed else pixels

    def describe(self) -> dict[str, Any]:
        """The numbers, as JSON."""
        flat = self.weights.reshape(len(self.weights), -1).astype(np.float64)
        return {
            "layer": self.layer,
            "convolution": self.convolution,
            "shape": list(self.weights.shape),
            "group": self.group,
            "transposed": self.transposed,
            "colors": self.colors,
            "order": self.order,
            "variance": [float(value) for value in self.variance],
            "minimum": [float(value) for value in flat.min(axis=1)],
            "maximum": [float(value) for value in flat.max(axis=1)],
            "norm": [float(value) for value in np.sqrt((flat**2).sum(axis=1))],
        }

    @property
    def _room(self) -> int:
        """How many filters fit on a page."""
        _, inputs, height, width = self.weights.shape
        if self.colors or inputs == 1:
            return ROOM
        return _ROWS if height * width > 1 else max(ROOM, _TALLEST * inputs)

    @property
    def _printed(self) -> bool:
        _, _, height, width = self.weights.shape
        return not self.colors and height * width > 1 and max(height, width) <= _PRINTED

    @property
    def _unit(self) -> float:
        """A power of ten in which values have few digits, 1 where they have anyway."""
        peak = self._peak()
        return 1.0 if 0.1 <= peak < 100 else 10.0 ** floor(log10(peak))

    def _peak(self, index: int | None = None) -> float:
        """The largest absolute weight, of one filter or all; 1 where all are 0."""
        weights = self.weights if index is None else self.weights[index]
        finite = np.abs(weights[np.isfinite(weights)])
        return float(finite.max(initial=0)) or 1.0

    def _print(self, pixels: sheet.Pixels, values: np.ndarray, shares: np.ndarray) -> sheet.Pixels:
        cv2 = import_cv2()
        height, width = values.shape
        step = _SIDE // max(height, width)
        large = np.asarray(cv2.resize(pixels, (width * step, height * step), interpolation=cv2.INTER_NEAREST), np.uint8)
        font = Font(19)
        for row in range(height):
            for column in range(width):
                text = _short(float(values[row, column]) / self._unit)
                color = _LIGHT if abs(shares[row, column]) > 0.6 else _DARK
                left = column * step + (step - font.width(text)) // 2
                font.draw(large, text, left, row * step + step // 2 + 7, color)
        return large

    def _matrix(self, scale: str) -> sheet.Pixels:
        """Filters of 1 x 1 as one picture, a row for each, at least a quarter as high as it is wide."""
        rows = sorted(self.order[: self._room])
        values = self.weights[rows, :, 0, 0].astype(np.float64)
        peaks = self._peak() if scale == "layer" else np.array([self._peak(index) for index in rows])[:, None]
        return signed(values / peaks).repeat(max(values.shape[1] // (_TALLEST * len(values)), 1), axis=0)


def _short(value: float) -> str:
    """A number in at most five characters: 0.72, -1.8, 18."""
    text = f"{value:.2f}" if abs(value) < 0.995 else f"{value:.1f}" if abs(value) < 9.95 else f"{value:.0f}"
    return "0" if float(text) == 0 else text


def signed(shares: np.ndarray) -> sheet.Pixels:
    """Values from -1 to 1 as colours: blue, white at 0, red; uint8 [..., 3] RGB."""
    strength = np.clip(np.abs(np.nan_to_num(shares)), 0, 1)[..., None]
    color = np.where(shares[..., None] > 0, _POSITIVE, _NEGATIVE)
    return np.asarray(np.rint(255 + (color - 255) * strength), np.uint8)


def filters(source: Source, layer: str | None = None) -> Filters:
    """Read the filters of a layer.

    Arguments:
        source: any image classifier: path, bytes or `ModelProto`.
        layer: a convolution (its node or its value), or a layer whose convolution it is; the first convolution if None.

    Raises:
        ModelError: not a usable classifier.
        LayerError: no such layer, or one without filters.
    """
    return filters_of(Network(source), layer)


def filters_of(network: Network, layer: str | None = None) -> Filters:
    """`filters` of an open network."""
    graph = network.graph
    if layer is None:
        every = convolutions(graph)
        if not every:
            raise LayerError("the model has no convolution with constant weights, so no filters to show")
        node = every[0]
        name = _name(network, node)
    else:
        exposed = network.layers.get(layer)
        value = exposed.value if exposed is not None else _value(network, layer)
        node, name = convolution_of(graph, value, layer), layer
    colors = None
    if reads_colors(graph, node, network.picture.name):
        preprocess = ((network.manifest or {}).get("input") or {}).get("preprocess") or {}
        colors = "BGR" if preprocess.get("color") == "BGR" else "RGB"
    group = int(attributes(node).get("group", 1))
    weights = weights_of(graph, node)
    return Filters(name, str(node.output[0]), weights, group, node.op_type == "ConvTranspose", colors)


def _name(network: Network, node: onnx.NodeProto) -> str:
    """The name under which users find a convolution: its value's, or its layer's where onnxcam made that value."""
    value = str(node.output[0])
    if not value.startswith(_PREFIX):
        return value
    for layer in target_layers.candidates(network.graph, network.readout.value):
        with suppress(LayerError):
            if convolution_of(network.graph, layer.value, layer.name) is node:
                return layer.name
    return value


def _value(network: Network, layer: str) -> str:
    """The value of a name: of a value, of a node, or of a layer (whose error then names the nearest)."""
    graph = network.graph
    named = [node for node in graph.nodes if node.name == layer]
    if layer in graph.producer:
        return layer
    return str(named[0].output[0]) if len(named) == 1 else network.cut(layer).layer.value
