"""Plots as pixels: lines, points and intervals between two axes; they differ by shape as well as by colour."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcam.image.opencv import import_cv2
from onnxcam.image.sheet import FAINT, INK, PAPER, Color
from onnxcam.image.text import Font

Pixels = NDArray[np.uint8]
# Okabe and Ito's palette: distinct in every kind of colour vision, and one is darker
ORANGE: Color = (213, 94, 0)
BLUE: Color = (0, 114, 178)
_GRID: Color = (222, 224, 228)
_TICK, _NAME = 18, 20
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 40, 62
_DASH = 8.0  # pixels of a dash, and between two
_SHIFT = 4  # fractional bits of OpenCV's coordinates


class Plot:
    """Two axes, from 0 to `right` and 0 to `top`, onto which is drawn.

    Arguments:
        size: height and width in pixels.
        title: above the axes. across, up: names of the axes.
        right, top: the largest values.
        percent: whether ticks are written as percentages.
    """

    def __init__(
        self,
        size: tuple[int, int],
        title: str,
        across: str,
        up: str,
        *,
        right: float = 1.0,
        top: float = 1.0,
        percent: bool = True,
    ) -> None:
        self._cv2: Any = import_cv2()
        self.pixels: Pixels = np.full((*size, 3), PAPER, np.uint8)
        self._right, self._top = right, top
        height, width = size
        self._box = (_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)
        ticks, names = Font(_TICK), Font(_NAME)
        for part in (0.0, 0.25, 0.5, 0.75, 1.0):
            x, y = self._place(part * right, part * top)
            self._segment((x, self._box[1]), (x, self._box[3]), _GRID)
            self._segment((self._box[0], y), (self._box[2], y), _GRID)
            if part in (0.0, 0.5, 1.0):
                text = _tick(part * right, percent)
                left = x - ticks.width(text) * part  # the last one ends at the edge
                ticks.draw(self.pixels, text, round(left), self._box[3] + 22, FAINT)
            text = _tick(part * top, percent)
            ticks.draw(self.pixels, text, round(self._box[0] - 8 - ticks.width(text)), round(y) + 6, FAINT)
        bold = Font(_NAME, 600)
        bold.draw(self.pixels, bold.fit(title, width - 8), 4, 22, INK)
        name = names.fit(f"{up} / {across}" if up else across, width - 8)
        names.draw(self.pixels, name, max(4, width - _RIGHT - names.width(name)), height - 12, INK)

    def line(
        self, across: Sequence[float] | np.ndarray, up: Sequence[float] | np.ndarray, color: Color, *,
        dashed: bool = False, thick: int = 2,
    ) -> None:  # fmt: skip
        """Draw a line through points."""
        points = [self._place(float(x), float(y)) for x, y in zip(across, up, strict=True)]
        drawn = 0.0
        for start, stop in itertools.pairwise(points):
            if not dashed:
                self._segment(start, stop, color, thick)
                continue
            first, last = np.array(start), np.array(stop)
            length = float(np.hypot(*(last - first)))
            at = 0.0
            while at < length:
                step = min(_DASH - drawn % _DASH, length - at)
                if int(drawn / _DASH + 1e-9) % 2 == 0:
                    a, b = (first + (last - first) * (part / length) for part in (at, at + step))
                    self._segment(a, b, color, thick)
                at, drawn = at + step, drawn + step

    def points(
        self, across: np.ndarray, up: np.ndarray, color: Color, *, square: bool = False, radius: int = 5
    ) -> None:
        """Draw a mark at each point: a filled circle, or an open square."""
        for x, y in zip(across, up, strict=True):
            left, top = (round(value) for value in self._place(float(x), float(y)))
            if square:
                corners = (left - radius, top - radius), (left + radius, top + radius)
                self._cv2.rectangle(self.pixels, *corners, (PAPER,) * 3, -1)
                self._cv2.rectangle(self.pixels, *corners, color, 2)
            else:
                self._cv2.circle(self.pixels, (left, top), radius, color, -1, self._cv2.LINE_AA)

    def intervals(self, across: np.ndarray, low: np.ndarray, high: np.ndarray, color: Color, *, shift: int = 0) -> None:
        """Draw an upright interval at each place, `shift` pixels to the right of it."""
        for x, bottom, top in zip(across, low, high, strict=True):
            start, stop = self._place(float(x), float(bottom)), self._place(float(x), float(top))
            self._segment((start[0] + shift, start[1]), (stop[0] + shift, stop[1]), color, 1)

    def key(self, row: int, text: str, color: Color, *, dashed: bool = False, square: bool = False) -> None:
        """Name a line in the upper left corner, or for a negative row in the lower right one."""
        font = Font(_TICK)
        below = row < 0
        y = self._box[3] - 12 + 24 * (row + 1) if below else self._box[1] + 18 + 24 * row
        x = self._box[2] - 44 - font.width(text) if below else self._box[0] + 8
        back = (x - 4, y - 16), (x + 40 + font.width(text), y + 6)
        self._cv2.rectangle(self.pixels, *back, (PAPER,) * 3, -1)
        data = [self._value(x + at, y - 5) for at in (0, 28)]
        self.line([point[0] for point in data], [point[1] for point in data], color, dashed=dashed)
        middle = np.mean(data, axis=0)
        self.points(middle[:1], middle[1:], color, square=square, radius=4)
        font.draw(self.pixels, text, x + 36, y, INK)

    def _place(self, across: float, up: float) -> tuple[float, float]:
        left, top, right, bottom = self._box
        return left + (right - left) * across / self._right, bottom - (bottom - top) * min(up / self._top, 1.0)

    def _value(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self._box
        return (x - left) / (right - left) * self._right, (bottom - y) / (bottom - top) * self._top

    def _segment(self, start: Any, stop: Any, color: Color, thick: int = 1) -> None:
        ends = [tuple(round(value * 2**_SHIFT) for value in end) for end in (start, stop)]
        self._cv2.line(self.pixels, *ends, color, thick, self._cv2.LINE_AA, _SHIFT)


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.3g} %" if percent else f"{value:.3g}"
