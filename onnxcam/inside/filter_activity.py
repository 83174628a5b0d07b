"""Where filters respond: each filter, the map of it, and the map laid over the picture in which it is strongest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image
from onnxcam.graph.ends import Ends
from onnxcam.image import sheet
from onnxcam.inside.activations import activations
from onnxcam.inside.feature_maps import as_input
from onnxcam.inside.filter_weights import Filters

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

FILTERS = 6


@dataclass(frozen=True, eq=False)
class Activity:
    """What one filter does in pictures.

    Attributes:
        channel: the filter's number.
        variance: of its map over the places of all pictures, the mean over pictures.
        picture: the name of the one in which it reaches its highest value.
        maximum: that value.
        values: its map there, float32 `[h, w]`.
        view: what the model sees of that picture, uint8 `[H, W, 3]`.
    """

    channel: int
    variance: float
    picture: str
    maximum: float
    values: np.ndarray
    view: np.ndarray

    def describe(self) -> dict[str, Any]:
        """The numbers, as JSON."""
        return {
            "channel": self.channel,
            "variance": self.variance,
            "picture": self.picture,
            "maximum": self.maximum,
        }


def activity(
    explainer: Explainer,
    filters: Filters,
    prepared: Iterable[tuple[image.Picture, np.ndarray, image.Geometry]],
    count: int = FILTERS,
) -> list[Activity]:
    """Find the filters that vary most over pictures, and for each the picture in which it is strongest.

    Arguments:
        prepared: pictures as `Explainer.prepare` gives them; read one at a time.
        count: how many filters.

    Raises:
        LayerError: the convolution's output is not a map.
    """
    value = _responding(explainer, filters)
    total: np.ndarray | None = None
    best: list[Activity] = []
    pictures = 0
    for picture, tensor, geometry in prepared:
        maps = activations(explainer, tensor, [value]).values[value][0]
        variance = maps.var(axis=(1, 2), dtype=np.float64)
        total = variance if total is None else total + variance
        pictures += 1
        peaks = maps.max(axis=(1, 2))
        if not best:
            best = [Activity(c, 0.0, picture.name, -np.inf, maps[c], np.empty(0)) for c in range(len(maps))]
        higher = [c for c in range(len(maps)) if peaks[c] > best[c].maximum]
        view = as_input(picture, geometry) if higher else np.empty(0)
        for channel in higher:
            best[channel] = Activity(channel, 0.0, picture.name, float(peaks[channel]), maps[channel].copy(), view)
    if total is None:
        return []
    order = np.argsort(-total, kind="stable")[:count]
    return [
        Activity(c, float(total[c] / pictures), one.picture, one.maximum, one.values, one.view)
        for c in map(int, order)
        for one in [best[c]]
        if one.view.size
    ]


def _responding(explainer: Explainer, filters: Filters) -> str:
    """The value in which the filters' responses are read: behind normalisation and activation."""
    graph = explainer.sessions.network.graph
    value = Ends(graph).of(filters.convolution)
    same = graph.shape(value) == graph.shape(filters.convolution)
    return value if same and len(filters.weights) == _channels(explainer, value) else filters.convolution


def _channels(explainer: Explainer, value: str) -> int:
    shape = explainer.sessions.network.graph.shape(value) or ()
    channels = shape[explainer.sessions.cut(value).layout.channels] if shape else None
    return channels if isinstance(channels, int) else -1


def rows(filters: Filters, activities: Sequence[Activity], scale: str, colormap: str = "viridis") -> list[sheet.Pixels]:
    """A row for each filter: its weights, where it responds, and that laid over the picture."""
    cells = []
    for one in activities:
        place = 0 if filters.colors else filters.strongest(one.channel)[0]
        inputs = filters.weights.shape[1]
        source = "" if filters.colors or inputs == 1 else f"input {filters.input(one.channel, place)}"
        gray = image.normalize(np.maximum(one.values, 0), "max")
        caption = f"responds up to {one.maximum:.3g}" if one.maximum > 0 else f"nowhere above {one.maximum:.3g}"
        size = (one.view.shape[0], one.view.shape[1])
        heat = image.resize_map(gray, size)
        cells += [
            sheet.Cell(_square(filters.tile(one.channel, place, scale=scale), size), f"filter {one.channel}", source),
            sheet.Cell(image.colorize(gray, colormap), caption),
            sheet.Cell(image.overlay(one.view, heat, 0.5, colormap), one.picture),
        ]
    return [sheet.grid(cells, 3)] if cells else []


def _square(pixels: sheet.Pixels, size: tuple[int, int]) -> sheet.Pixels:
    """A tile on a mat of the picture's shape, in whole multiples of its pixels."""
    height, width = size
    factor = max(min(height // pixels.shape[0], width // pixels.shape[1]), 1)
    large = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    canvas = np.full((max(height, large.shape[0]), max(width, large.shape[1]), 3), sheet.MAT, np.uint8)
    top, left = (canvas.shape[0] - large.shape[0]) // 2, (canvas.shape[1] - large.shape[1]) // 2
    canvas[top : top + large.shape[0], left : left + large.shape[1]] = large
    return canvas


def page(filters: Filters, activities: Sequence[Activity], scale: str = "layer") -> sheet.Pixels:
    """Draw the page of the filters with where those that vary most respond, in front.

    Returns:
        uint8 [H, W, 3] RGB.
    """
    notes = [*filters.notes(scale), f"First the {len(activities)} whose responses vary most."]
    first = sheet.heading(filters.layer, notes)
    every = [sheet.heading("All filters"), *filters.parts(scale)]
    return sheet.page([first, *rows(filters, activities, scale), *every])
