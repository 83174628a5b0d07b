"""The part of the model's input that a layer's grid covers; kept free of onnx, as manifests are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Span = tuple[float, float]


class Window(NamedTuple):
    """Where a layer's grid lies on the model's input, in input pixels: pixel i covers [i, i + 1).

    Attributes:
        height, width: where the grid starts and stops along the input's height and width. A stop before the start means
            that it is mirrored; a part outside the input is padding.
        transposed: whether the grid's rows lie along the input's width and its columns along the height.
    """

    height: Span
    width: Span
    transposed: bool = False

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Window:
        """The window that a manifest's entry of a layer describes."""
        (top, bottom), (left, right) = entry["height"], entry["width"]
        return cls((top, bottom), (left, right), bool(entry.get("transposed")))

    def describe(self) -> dict[str, Any]:
        """The manifest's entry."""
        entry: dict[str, Any] = {"height": [*map(_plain, self.height)], "width": [*map(_plain, self.width)]}
        return entry | ({"transposed": True} if self.transposed else {})

    def words(self) -> str:
        """The window for people: `rows 4 to 28, columns 32 to 0 (mirrored)`."""
        parts = []
        for name, (start, stop) in (("rows", self.height), ("columns", self.width)):
            parts.append(f"{name} {start:.4g} to {stop:.4g}" + (" (mirrored)" if stop < start else ""))
        return ", ".join(parts) + (", transposed" if self.transposed else "")

    def place(
        self, maps: np.ndarray, input_size: tuple[int, int], size: tuple[int, int], interpolation: str = "bilinear"
    ) -> np.ndarray:
        """Draw maps `[N, h, w]` of the layer where they lie on the input, half-pixel, 0 outside the window.

        Arguments:
            input_size: height and width of the model's input.
            size: height and width of the result, which covers the whole input.
            interpolation: `bilinear` or `nearest`.

        Returns:
            float32 `[N, H, W]`.
        """
        values = np.asarray(maps.transpose(0, 2, 1) if self.transposed else maps, np.float32)
        nearest = interpolation == "nearest"
        down = _interpolation(values.shape[1], self.height, input_size[0], size[0], nearest)
        across = _interpolation(values.shape[2], self.width, input_size[1], size[1], nearest)
        return np.asarray(down @ values @ across.T, np.float32)


def assemble_crops(maps: np.ndarray, windows: Sequence[Window], input_size: tuple[int, int]) -> np.ndarray:
    """Draw the maps of crops where they lie on the input and add them up, in cells of about the crops' own size.

    Each is a term of the score, so that where crops overlap their maps count together.

    Arguments:
        maps: one per crop, `[crops, h, w]`.
        windows: what each covers.
        input_size: height and width of the model's input.

    Returns:
        float32 `[1, H, W]`, 0 where no crop lies.
    """
    cells = []
    for side, axis in zip(input_size, (0, 1), strict=True):
        counts = (maps.shape[1 + (axis ^ int(window.transposed))] for window in windows)
        spans = ((window.height, window.width)[axis] for window in windows)
        extents = (abs(stop - start) for start, stop in spans)
        cells.append(max(round(side * count / extent) for count, extent in zip(counts, extents, strict=True)))
    size = (max(cells[0], 1), max(cells[1], 1))
    placed = [window.place(one[None], input_size, size) for one, window in zip(maps, windows, strict=True)]
    return np.asarray(np.sum(placed, axis=0), np.float32)


def _interpolation(cells: int, span: Span, length: int, pixels: int, nearest: bool) -> np.ndarray:
    """The matrix `[pixels, cells]` of linear interpolation between cells that lie in a span of an axis, edges repeated.

    Arguments:
        length: of the axis, in the span's units.
    """
    start, stop = span
    centre = (np.arange(pixels) + 0.5) * length / pixels
    at = (centre - start) / (stop - start) * cells
    inside = np.flatnonzero((at >= 0) & (at < cells))
    if inside.size == 0 and max(start, stop) > 0 and min(start, stop) < length:
        # the window is narrower than a pixel and between two centres: take the pixel under its middle
        inside = np.array([min(max(int((start + stop) / 2 * pixels / length), 0), pixels - 1)])
    place = np.clip(np.floor(at[inside]) if nearest else at[inside] - 0.5, 0.0, cells - 1.0)
    low = np.minimum(place.astype(np.intp), max(cells - 2, 0))
    part = (place - low).astype(np.float32)
    matrix = np.zeros((pixels, cells), np.float32)
    matrix[inside, low] = 1 - part
    if cells > 1:
        matrix[inside, low + 1] = part
    return matrix


def _plain(number: float) -> float:
    """A number as short as JSON has it."""
    rounded = round(float(number), 4)
    return int(rounded) if rounded == int(rounded) else rounded
