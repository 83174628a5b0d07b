"""The parts of a picture that a map covers, and the marks on the rest: dimmed, hatched and framed.

A centre crop cuts off what the model never sees, and its map is 0 there as it is where a pixel does not matter. The two
are drawn differently: what is not visible to the model is pulled towards grey, hatched and divided from the rest by a
frame, so that it shows without colour, on light and dark pictures, and at any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcam.image.opencv import import_cv2

Pixels = NDArray[np.uint8]
Size = tuple[int, int]

# pixels keep this part of their light, the rest is grey; the lines of the hatching are darker by a step
_LIGHT, _GREY, _STEP = 0.3, 162, 52
# of a picture's longer side: the distance between lines, so that they show at any size
_DISTANCE = 1 / 32
_TABLE = 1 << 19  # bytes of lines that are kept for the next picture
# the levels that stand for hidden pixels in a grey map with a palette, see `Marks.levels`, and the greys that show them
HIDDEN, LINE, BLACK, WHITE = range(4)
_GREYS = 208, 164, 24, 255


class Rectangle(NamedTuple):
    """A part of a picture in its pixels: columns x0 to x1, rows y0 to y1, the last ones not included."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def area(self) -> int:
        """Pixels in it."""
        return max(self.x1 - self.x0, 0) * max(self.y1 - self.y0, 0)

    def intersection(self, other: Rectangle) -> Rectangle:
        """What both have in common; its area is 0 if that is nothing."""
        return Rectangle(max(self.x0, other.x0), max(self.y0, other.y0), min(self.x1, other.x1), min(self.y1, other.y1))

    def scaled(self, size: Size, new: Size) -> Rectangle:
        """The same part of a picture that is resized from one (height, width) to another; it keeps a pixel."""
        x0, x1 = _scaled(self.x0, self.x1, new[1] / size[1], new[1])
        y0, y1 = _scaled(self.y0, self.y1, new[0] / size[0], new[0])
        return Rectangle(x0, y0, x1, y1)


def _scaled(start: int, stop: int, factor: float, limit: int) -> tuple[int, int]:
    if stop <= start:
        return 0, 0
    first = min(round(start * factor), limit - 1)
    return first, max(round(stop * factor), first + 1)


def whole(size: Size) -> Rectangle:
    """All of a picture of this (height, width)."""
    return Rectangle(0, 0, size[1], size[0])


def hidden(size: Size, visible: Iterable[Rectangle]) -> list[Rectangle]:
    """The rest of a picture of this (height, width), as rectangles that do not overlap."""
    return list(_hidden((size[0], size[1]), tuple(visible)))


@lru_cache(64)  # the pictures of a folder are often of one size
def _hidden(size: Size, visible: tuple[Rectangle, ...]) -> tuple[Rectangle, ...]:
    all_of_it = whole(size)
    parts = [part for part in (one.intersection(all_of_it) for one in visible) if part.area]
    if all_of_it in parts:
        return ()
    rows = sorted({0, size[0], *(part.y0 for part in parts), *(part.y1 for part in parts)})
    columns = sorted({0, size[1], *(part.x0 for part in parts), *(part.x1 for part in parts)})
    rest: list[Rectangle] = []
    for y0, y1 in pairwise(rows):
        for x0, x1 in pairwise(columns):
            if any(part.x0 <= x0 and x1 <= part.x1 and part.y0 <= y0 and y1 <= part.y1 for part in parts):
                continue
            last = rest[-1] if rest else None
            if last is not None and (last.y0, last.y1, last.x1) == (y0, y1, x0):
                rest[-1] = last._replace(x1=x1)
            else:
                rest.append(Rectangle(x0, y0, x1, y1))
    return tuple(rest)


class Marks(NamedTuple):
    """The marks on the hidden parts of a picture.

    Attributes:
        visible: the parts without marks.
        hidden: the parts that are dimmed and hatched.
        frame: lines around the visible parts, each `BLACK` or `WHITE`; they lie in hidden parts.
        distance, thickness: of the lines of the hatching, in pixels.
    """

    visible: tuple[Rectangle, ...] = ()
    hidden: tuple[Rectangle, ...] = ()
    frame: tuple[tuple[Rectangle, int], ...] = ()
    distance: int = 8
    thickness: int = 2

    @classmethod
    def of(cls, size: Size, visible: Sequence[Rectangle] | None) -> Marks:
        """The marks on a picture of this (height, width), of which these parts are visible; all of it for None."""
        return _NONE if visible is None else _marks((size[0], size[1]), tuple(visible))

    @classmethod
    def at(cls, size: Size, picture_size: tuple[int, ...], visible: Sequence[Rectangle] | None) -> Marks:
        """The marks on a picture that is shown at this (height, width); the parts are in its own pixels."""
        old = (picture_size[0], picture_size[1])
        return _NONE if visible is None else cls.of(size, [part.scaled(old, size) for part in visible])

    def __bool__(self) -> bool:
        return bool(self.hidden)

    def draw(self, pixels: Pixels, source: Pixels | None = None, first: int = 0) -> Pixels:
        """Draw the marks on rows `first` and following of a picture, uint8 [h, W, 3], in place.

        Arguments:
            source: the same rows of the picture itself, where something else lies over it in `pixels`.
        """
        source = pixels if source is None else source
        for part in within(self.hidden, first, len(pixels)):
            place = slice(part.y0 - first, part.y1 - first), slice(part.x0, part.x1)
            lines = self._lines(part, 3).copy()
            # not into `pixels` itself: whether operand and result are one changes how OpenCV rounds a row's last pixels
            pixels[place] = import_cv2().addWeighted(
                source[place], _LIGHT, lines, -_STEP, (1 - _LIGHT) * _GREY, dst=lines
            )
        stop = first + len(pixels)
        for part, level in self.frame:
            if part.y0 < stop and part.y1 > first:
                pixels[max(part.y0 - first, 0) : part.y1 - first, part.x0 : part.x1] = _GREYS[level]
        return pixels

    def levels(self, gray: Pixels) -> Pixels:
        """The grey levels [H, W] of a map for the colours of `marked`: the lowest of them stand for the marks."""
        levels = np.asarray(import_cv2().max(gray, len(_GREYS)), np.uint8)  # a seventh of numpy's time
        for part in self.hidden:
            levels[part.y0 : part.y1, part.x0 : part.x1] = self._lines(part)[..., 0]  # HIDDEN and LINE
        for part, level in self.frame:
            levels[part.y0 : part.y1, part.x0 : part.x1] = level
        return levels

    def _lines(self, part: Rectangle, channels: int = 1) -> Pixels:
        """Slanting lines of 1 on 0 over a part of the picture, uint8 [h, w, channels], not to be written to."""
        height, first = part.y1 - part.y0, part.y0 % self.distance
        periods = 1 << (-(-(first + height) // self.distance) - 1).bit_length()  # a power of 2: few different tables
        if periods * self.distance * (part.x1 - part.x0) * channels <= _TABLE:
            rows = _rows_of_lines(part.x0, part.x1, channels, self.distance, self.thickness, periods)
            return rows[first : first + height]
        rows = _rows_of_lines(part.x0, part.x1, channels, self.distance, self.thickness, 1)
        # no index is out of bounds; with mode="clip" numpy gathers rows without a copy
        return rows.take(np.arange(part.y0, part.y1) % self.distance, axis=0, mode="clip")


@lru_cache(64)
def _marks(size: Size, visible: tuple[Rectangle, ...]) -> Marks:
    rest = _hidden(size, visible)
    if not rest:
        return _NONE
    visible = tuple(part.intersection(whole(size)) for part in visible)
    longer = max(size)
    width = max(round(longer / 300), 1)
    frame = []
    # white beside the visible part and black beside that: one of them differs from whatever lies there
    for reach, level in ((2 * width, BLACK), (width, WHITE)):
        for part in visible:
            grown = Rectangle(part.x0 - reach, part.y0 - reach, part.x1 + reach, part.y1 + reach)
            frame += [(line, level) for line in (grown.intersection(one) for one in rest) if part.area and line.area]
    distance = max(round(longer * _DISTANCE), 4)
    return Marks(visible, rest, tuple(frame), distance, max(distance // 4, 1))


@lru_cache(16)
def _rows_of_lines(start: int, stop: int, channels: int, distance: int, thickness: int, periods: int) -> Pixels:
    """Slanting lines of 1 on 0 in these columns, uint8 [periods * distance, columns, channels]."""
    columns, rows = np.arange(start, stop), np.arange(distance)[:, None]
    table = ((columns + rows) % distance < thickness).astype(np.uint8)[..., None]
    lines = np.tile(np.repeat(table, channels, axis=2), (periods, 1, 1))
    lines.flags.writeable = False  # shared by all callers
    return lines


def within(parts: Iterable[Rectangle], first: int, count: int) -> Iterator[Rectangle]:
    """Yield what of these parts lies in rows `first` to `first + count`."""
    for part in parts:
        cut = part._replace(y0=max(part.y0, first), y1=min(part.y1, first + count))
        if cut.area:
            yield cut


_NONE = Marks()


def marked(table: Pixels) -> Pixels:
    """The colours of a map's 256 levels, uint8 [256, 3], with those of the marks, see `Marks.levels`."""
    return np.concatenate([np.repeat(np.array(_GREYS, np.uint8)[:, None], 3, axis=1), table[len(_GREYS) :]])
