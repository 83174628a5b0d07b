"""Outlines on pictures: boxes of objects with a chip of label and score, and the borders of regions.

Every line is white between two black ones and every chip white on black, so that one of them differs from whatever lies
below: photographs, colours of a heatmap, other outlines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import InputError
from onnxcam.image.opencv import import_cv2
from onnxcam.image.text import Font
from onnxcam.image.visible import Rectangle

Pixels = NDArray[np.uint8]
Size = tuple[int, int]

_WHITE, _BLACK = (255, 255, 255), (16, 18, 22)
# white core of an explained object's line, and size of its text, as parts of the picture's longer side
_LINE, _TEXT = 1 / 200, 1 / 28
_SMALLEST_TEXT, _LARGEST_TEXT = 11, 64
_CHIP_SHARE = 0.15  # of the picture's height: in lower pictures a chip would hide what it names
_NARROWEST_CHIP = 24  # pixels that are worth writing in
_STACKED = 8  # chips below one another in one corner


class Outline(NamedTuple):
    """The outline of one object or region.

    Attributes:
        box: x0, y0, x1, y1 in the picture's pixels, half-pixel: pixel i covers [i, i + 1). None with a `mask`.
        text: what the chip says, such as `dog 87 %`; empty for no chip.
        mask: bool `[H, W]` of the picture's size, whose borders are drawn; None with a `box`.
        foremost: whether it is what is explained; others have a thinner line.
    """

    box: tuple[float, float, float, float] | None = None
    text: str = ""
    mask: NDArray[np.bool_] | None = None
    foremost: bool = True

    def scaled(self, size: Size, new: Size) -> Outline:
        """The same outline on a picture that is resized from one (height, width) to another."""
        if self.box is not None:
            across, down = new[1] / size[1], new[0] / size[0]
            x0, y0, x1, y1 = self.box
            return self._replace(box=(x0 * across, y0 * down, x1 * across, y1 * down))
        if self.mask is None or size == new:
            return self
        cv2 = import_cv2()
        share = cv2.resize(np.asarray(self.mask, np.float32), (new[1], new[0]), interpolation=cv2.INTER_AREA)
        return self._replace(mask=np.asarray(share >= 0.5))


def outline(pixels: Pixels, outlines: Sequence[Outline]) -> Pixels:
    """Draw outlines and their chips on a picture.

    Args:
        pixels: uint8 [H, W, 3] RGB; it stays as it is.
        outlines: in order; those that are `foremost` lie above the others, and chips above all lines.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        InputError: a box that is not four finite numbers, or a mask of another size.
    """
    height, width = pixels.shape[:2]
    for one in outlines:
        _check(one, (height, width))
    canvas = np.array(pixels, np.uint8, order="C")
    ordered = sorted(outlines, key=lambda one: one.foremost)
    for one in ordered:
        _lines(canvas, one)
    occupied: list[Rectangle] = []
    for one in reversed(ordered):  # what is explained has the first choice of a place
        if one.text:
            _chip(canvas, one, occupied)
    return canvas


def line_width(size: Size, foremost: bool = True) -> int:
    """Pixels of the white line on a picture of this (height, width)."""
    wide = max(round(max(size) * _LINE), 1)
    return wide if foremost else max(wide // 2, 1)


def _check(one: Outline, size: Size) -> None:
    if one.box is not None and not (len(one.box) == 4 and all(map(np.isfinite, one.box))):
        raise InputError(f"the box of an outline is {one.box!r}; expected four finite numbers x0, y0, x1, y1")
    if one.box is None and one.mask is None:
        raise InputError("an outline has neither a box nor a mask; give one of them")
    if one.mask is not None and one.mask.shape != size:
        raise InputError(f"the mask of an outline has shape {list(one.mask.shape)}; the picture has {list(size)}")


def _lines(canvas: Pixels, one: Outline) -> None:
    """Draw the line: black, and white within it, so that a black edge of one pixel or more remains on each side."""
    wide = line_width((canvas.shape[0], canvas.shape[1]), one.foremost)
    edge = max(round(wide / 2), 1)
    if one.box is not None:
        x0, y0, x1, y1 = _corners(one.box, canvas.shape)
        for reach, color in ((edge, _BLACK), (0, _WHITE)):
            _frame(canvas, Rectangle(x0, y0, x1, y1), wide, reach, color)
        return
    cv2 = import_cv2()
    # of odd sizes, so that it reaches equally far on all sides; beyond the picture nothing belongs to the mask
    core, halo = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * n + 1, 2 * n + 1)) for n in (wide, edge))
    mask = cv2.copyMakeBorder(np.ascontiguousarray(one.mask, np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    white = (mask & ~cv2.erode(mask, core, borderType=cv2.BORDER_CONSTANT, borderValue=0))[1:-1, 1:-1]
    canvas[cv2.dilate(white, halo) != 0] = _BLACK
    canvas[white != 0] = _WHITE


def _corners(box: tuple[float, float, float, float], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The box in whole pixels, cut to the picture; it keeps a pixel."""
    height, width = shape[:2]
    x0, x1 = sorted((box[0], box[2]))
    y0, y1 = sorted((box[1], box[3]))
    left, top = min(max(round(x0), 0), width - 1), min(max(round(y0), 0), height - 1)
    return left, top, max(min(round(x1), width), left + 1), max(min(round(y1), height), top + 1)


def _frame(canvas: Pixels, part: Rectangle, wide: int, reach: int, color: tuple[int, int, int]) -> None:
    """Four lines of `wide` + 2 `reach` pixels: `wide` of them inside the box, so that a box at the border shows."""
    x0, y0, x1, y1 = part
    inner, outer = wide + reach, reach
    for row in (slice(y0 - outer, y0 + inner), slice(y1 - inner, y1 + outer)):
        canvas[max(row.start, 0) : max(row.stop, 0), max(x0 - outer, 0) : x1 + outer] = color
    for column in (slice(x0 - outer, x0 + inner), slice(x1 - inner, x1 + outer)):
        canvas[max(y0 - outer, 0) : y1 + outer, max(column.start, 0) : max(column.stop, 0)] = color


def _chip(canvas: Pixels, one: Outline, occupied: list[Rectangle]) -> None:
    """Write the text on a dark field: above the box, below it, or inside; where no other chip lies, if there is room.

    A picture too small for it has none.
    """
    height, width = canvas.shape[:2]
    size = min(max(round(max(height, width) * _TEXT), _SMALLEST_TEXT), _LARGEST_TEXT)
    size = size if one.foremost else max(round(size * 0.8), _SMALLEST_TEXT)
    font = Font(size, 600 if one.foremost else 400)
    padding = max(round(size * 0.3), 2)
    tall = round(size * 1.1) + padding
    if tall > height * _CHIP_SHARE or width < _NARROWEST_CHIP:
        return
    text = font.fit(one.text, width - 2 * padding)
    wide = font.width(text) + 2 * padding
    edge = line_width((height, width), one.foremost)
    x0, y0, x1, y1 = _bounds(one, canvas.shape)
    inside = 2 * edge
    places = [
        (x0, y0 - tall), (x1 - wide, y0 - tall), (x0, y1), (x1 - wide, y1),
        (x0 + inside, y0 + inside), (x0 + inside, y1 - inside - tall),
        (x1 - inside - wide, y0 + inside), (x1 - inside - wide, y1 - inside - tall),
        *((x0 + inside, y0 + inside + k * tall) for k in range(1, _STACKED)),
    ]  # fmt: skip
    chips = [_within(left, top, wide, tall, width, height) for left, top in places]
    whole = [chip for chip, (left, top) in zip(chips, places, strict=True) if chip.y0 == top] or chips
    free = [chip for chip in whole if not any(chip.intersection(other).area for other in occupied)]
    chip = (free or whole)[0]
    occupied.append(chip)
    canvas[chip.y0 : chip.y1, chip.x0 : chip.x1] = _BLACK
    font.draw(canvas, text, chip.x0 + padding, chip.y0 + padding // 2 + round(size * 0.88), _WHITE)


def _bounds(one: Outline, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The box of an outline in whole pixels: of a mask that around its largest part, the corner if it is empty."""
    if one.box is not None:
        return _corners(one.box, shape)
    _, _, parts, _ = import_cv2().connectedComponentsWithStats(np.ascontiguousarray(one.mask, np.uint8))
    if len(parts) < 2:
        return 0, 0, 1, 1
    left, top, wide, tall = (int(number) for number in parts[1:][parts[1:, 4].argmax()][:4])
    return left, top, left + wide, top + tall


def _within(left: int, top: int, wide: int, tall: int, width: int, height: int) -> Rectangle:
    """A chip moved into the picture."""
    x0, y0 = min(max(left, 0), max(width - wide, 0)), min(max(top, 0), max(height - tall, 0))
    return Rectangle(x0, y0, min(x0 + wide, width), min(y0 + tall, height))
