"""Feature maps: the activations of a layer's channels for one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam.errors import InputError, listing
from onnxcam.image import Geometry, Picture, paint, palette, sheet
from onnxcam.image.opencv import import_cv2
from onnxcam.inside.activations import activations
from onnxcam.inside.depths import requested
from onnxcam.network.names import INPUT

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

ORDERS = ("variance", "mean", "max", "index")
SCALES = ("channel", "layer")
MAX_CHANNELS = 64
COLUMNS = 6
CAPTIONS = "Below each map: the channel's number, and how much of it is exactly zero."
_MISSING = (255, 0, 255)  # values that are no numbers


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The activations of one layer for one picture.

    Attributes:
        layer: its name.
        values: float32 `[C, h, w]`; tokens on their grid.
        channels: those shown, in order.
        variance, mean, maximum: of each channel over its places, float32 `[C]`.
        zero_share: of each channel the share of its places that are exactly 0, float64 `[C]`.
        picture: what the model sees of the picture, uint8 `[H, W, 3]`.
    """

    layer: str
    values: np.ndarray
    channels: tuple[int, ...]
    variance: np.ndarray
    mean: np.ndarray
    maximum: np.ndarray
    zero_share: np.ndarray
    order: str = "variance"
    picture: np.ndarray | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.values.shape[0], self.values.shape[1], self.values.shape[2]

    def cells(self, count: int | None = None, scale: str = "channel", colormap: str = "viridis") -> list[sheet.Cell]:
        """Captioned pictures of the first channels shown: their number, and the share of zeros.

        Raises:
            InputError: an unknown scale or colour map.
        """
        if scale not in SCALES:
            raise InputError(f"scale is {scale!r}, expected one of {', '.join(map(repr, SCALES))}")
        limits = _limits(self.values) if scale == "layer" else None
        return [
            sheet.Cell(
                _colored(self.values[channel], limits or _limits(self.values[channel]), colormap),
                str(channel),
                _percent(self.zero_share[channel]),
            )
            for channel in self.channels[:count]
        ]

    def grid(self, *, scale: str = "channel", colormap: str = "viridis", columns: int = COLUMNS) -> sheet.Pixels:
        """Draw the channels shown as a labelled page, the picture beside them.

        Arguments:
            scale: `channel` (each from its own minimum to its own maximum) or `layer` (one scale for all).
            colormap: one of `onnxcam.image.COLORMAPS`.

        Returns:
            uint8 [H, W, 3] RGB.
        """
        cells = self.cells(None, scale, colormap)
        if self.picture is not None:
            cells.insert(0, sheet.Cell(self.picture, "picture"))
        parts = [sheet.heading(self.layer, [*self.notes(), CAPTIONS]), sheet.grid(cells, columns)]
        low, high = _limits(self.values)
        ends = (f"{low:.4g}", f"{high:.4g}") if scale == "layer" else ("channel's minimum", "channel's maximum")
        return sheet.page([*parts, sheet.scale(palette(colormap), *ends)])

    def notes(self, first: int | None = None) -> list[str]:
        """What a page of the first channels says about the layer."""
        count, height, width = self.shape
        how = {"index": "in order", "max": "highest maximum first"}.get(self.order, f"highest {self.order} first")
        number = len(self.channels[:first])
        some = f"{number} of {count} channels" if number < count else f"{count} channels"
        zeros = _percent(float((self.values == 0).mean()))
        lines = [f"{some}, {height} x {width}, {how}; {zeros} zeros"]
        dead = int((self.values.reshape(count, -1).max(axis=1) <= 0).sum()) if self.values.size else 0
        if dead:
            some = "1 channel is" if dead == 1 else f"{dead} channels are"
            lines.append(f"{some} nowhere above 0 in this picture")
        wrong = int((~np.isfinite(self.values)).reshape(count, -1).any(axis=1).sum())
        if wrong:
            some = "1 channel holds" if wrong == 1 else f"{wrong} channels hold"
            lines.append(f"{some} values that are infinite or not a number (pink)")
        return lines

    def describe(self) -> dict[str, Any]:
        """The numbers, as JSON."""
        return {
            "layer": self.layer,
            "shape": list(self.shape),
            "order": self.order,
            "channels": list(self.channels),
            "variance": [float(value) for value in self.variance],
            "mean": [float(value) for value in self.mean],
            "max": [float(value) for value in self.maximum],
            "zero_share": [float(value) for value in self.zero_share],
        }


def features(
    explainer: Explainer,
    picture: Any,
    layers: Sequence[str] | str | None = None,
    *,
    max_channels: int = MAX_CHANNELS,
    order: str = "variance",
) -> list[FeatureMaps]:
    """Compute the feature maps of layers for one picture.

    Arguments:
        picture: as of `Explainer.explain`.
        layers: names of layers, of values or of nodes; None for an early, a middle and a deep one.
        max_channels: how many are shown; all are in `.values`.
        order: `variance`, `mean` or `max` over a channel's places, the highest first, or `index`.

    Returns:
        one `FeatureMaps` for each layer, in order.

    Raises:
        LayerError: no such layer, or one that is neither a map nor tokens on a grid.
        InputError: an unknown order, or fewer than one channel.
        PreprocessError, PictureError: as of `Explainer.explain`.
    """
    check_settings(max_channels, order)
    names = requested(explainer, layers)
    for name in names:
        explainer.sessions.cut(name)  # a wrong name is told before the picture is read
    prepared = explainer.prepare(picture)
    return of_prepared(explainer, prepared, names, max_channels=max_channels, order=order)[0]


def check_settings(max_channels: int, order: str) -> None:
    """Refuse what cannot be shown.

    Raises:
        InputError: an unknown order, or fewer than one channel.
    """
    if order not in ORDERS:
        raise InputError(f"order is {order!r}; expected one of {listing(ORDERS)}")
    if max_channels < 1:
        raise InputError(f"max_channels is {max_channels}; expected at least 1")


def of_prepared(
    explainer: Explainer,
    prepared: tuple[Picture, np.ndarray, Geometry],
    names: Sequence[str],
    *,
    max_channels: int,
    order: str,
) -> tuple[list[FeatureMaps], np.ndarray]:
    """`features` of a prepared picture, and its scores `[1, K]`."""
    picture, tensor, geometry = prepared
    run = activations(explainer, tensor, names)
    view = as_input(picture, geometry)
    return [_maps(name, run.values[name][0], max_channels, order, view) for name in names], run.scores


def _maps(layer: str, value: np.ndarray, max_channels: int, order: str, view: np.ndarray) -> FeatureMaps:
    values = np.ascontiguousarray(value)
    by_order = {
        "variance": values.var(axis=(1, 2)),
        "mean": values.mean(axis=(1, 2)),
        "max": values.max(axis=(1, 2)),
        "index": -np.arange(len(values)),
    }
    channels = np.argsort(-by_order[order], kind="stable")[:max_channels]
    return FeatureMaps(
        layer,
        values,
        tuple(int(channel) for channel in channels),
        by_order["variance"],
        by_order["mean"],
        by_order["max"],
        np.asarray((values == 0).mean(axis=(1, 2))),
        order,
        view,
    )


def as_input(picture: Picture, geometry: Geometry) -> sheet.Pixels:
    """What the model sees of a picture: resized and cropped as its input is, grey where that is padding."""
    cv2 = import_cv2()
    height, width = geometry.resized_size
    shrinks = height < geometry.picture_size[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    pixels = picture.pixels
    if pixels.shape[:2] != (height, width):
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=how), np.uint8)
    view = np.full((*geometry.input_size, 3), 128, np.uint8)
    spans = []
    for axis in (0, 1):
        start = geometry.offset[axis]
        first, stop = max(start, 0), min(start + pixels.shape[axis], geometry.input_size[axis])
        spans.append((slice(first, max(first, stop)), slice(first - start, max(first, stop) - start)))
    view[spans[0][0], spans[1][0]] = pixels[spans[0][1], spans[1][1]]
    return view


def input_size(explainer: Explainer, tensor: np.ndarray) -> tuple[int, int]:
    """Height and width of a prepared tensor."""
    return explainer.sessions.cut(INPUT).layout.size(tensor.shape)


def _limits(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _colored(values: np.ndarray, limits: tuple[float, float], colormap: str) -> sheet.Pixels:
    low, high = limits
    span = high - low
    shares = (values.astype(np.float64) - low) / span if span > 0 else np.zeros(values.shape)
    finite = np.isfinite(values)
    gray = np.rint(np.clip(np.where(finite, shares, 0), 0, 1) * 255).astype(np.uint8)
    colors = paint(gray, colormap)
    colors[~finite] = _MISSING
    return colors


def _percent(share: float) -> str:
    """A share as a percentage: 0 % and 100 % only where it is exactly that."""
    if 0 < share < 0.005:
        return "< 1 %"
    if 0.995 < share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %"
