"""Sheets: captioned cells in columns under a heading, legible at the width of a telephone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcam.image.opencv import import_cv2
from onnxcam.image.text import Font

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

# at 780 pixels a page is shown at half size on a telephone 390 wide: text of 22 is then 11
WIDTH = 780
PAPER, MAT = 255, (240, 241, 243)
INK: Color = (26, 28, 32)
FAINT: Color = (92, 98, 108)
_FRAME = 176
_MARGIN, _GAP = 20, 10
_TITLE, _NOTE, _CAPTION = 28, 22, 20


@dataclass(frozen=True)
class Cell:
    """A picture with a caption under it: text on the left, and fainter on the right."""

    pixels: Pixels
    left: str = ""
    right: str = ""


def grid(cells: Sequence[Cell], columns: int, *, width: int = WIDTH, framed: bool = False) -> Pixels:
    """Arrange cells in columns; every picture is brought to the width of its column, small ones with visible pixels.

    Args:
        cells: pictures of uint8 [h, w, 3] RGB, of one shape in a row.
        columns: cells in a row.
        width: of the result, in pixels.
        framed: whether each picture gets a thin frame, without which white ones have no edge.

    Returns:
        uint8 [H, width, 3] RGB.
    """
    side = (width - 2 * _MARGIN - (columns - 1) * _GAP) // columns
    font = Font(_CAPTION)
    rows = []
    # captions that do not fit next to each other go on two lines, in every cell alike
    wide = any(cell.left and cell.right and font.width(f"{cell.left} {cell.right}") > side for cell in cells)
    line = _CAPTION + 4
    for start in range(0, len(cells), columns):
        some = cells[start : start + columns]
        drawn = [_fit(cell.pixels, side) for cell in some]
        height = max(pixels.shape[0] for pixels in drawn)
        captioned = any(cell.left or cell.right for cell in some)
        row = np.full((height + (_CAPTION + 14 + wide * line if captioned else _GAP), width, 3), PAPER, np.uint8)
        for at, (cell, pixels) in enumerate(zip(some, drawn, strict=True)):
            left = _MARGIN + at * (side + _GAP)
            row[: pixels.shape[0], left : left + pixels.shape[1]] = _framed(pixels) if framed else pixels
            text = font.fit(cell.left, side)
            right = font.fit(cell.right, side - (font.width(text) + 4 if text and not wide else 0))
            font.draw(row, text, left, height + _CAPTION, INK)
            place = (left, line) if wide else (left + side - font.width(right), 0)
            font.draw(row, right, place[0], height + _CAPTION + place[1], FAINT)
        rows.append(row)
    return np.concatenate(rows) if rows else np.full((0, width, 3), PAPER, np.uint8)


def heading(title: str, notes: Sequence[str] = (), *, width: int = WIDTH) -> Pixels:
    """A title and lines of smaller text under it, wrapped to the width; uint8 [H, width, 3] RGB."""
    lines = [(text, _TITLE, 600, INK) for text in _wrapped(title, Font(_TITLE, 600), width - 2 * _MARGIN)]
    for note in notes:
        lines += [(text, _NOTE, 400, FAINT) for text in _wrapped(note, Font(_NOTE), width - 2 * _MARGIN)]
    height = sum(round(size * 1.35) for _, size, _, _ in lines) + 12
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    baseline = 0
    for text, size, weight, color in lines:
        baseline += round(size * 1.35)
        Font(size, weight).draw(canvas, text, _MARGIN, baseline - round(size * 0.3), color)
    return canvas


def page(parts: Sequence[Pixels]) -> Pixels:
    """Parts of one width under each other, with a margin around them."""
    width = parts[0].shape[1]
    space = np.full((_MARGIN, width, 3), PAPER, np.uint8)
    between = np.full((_GAP, width, 3), PAPER, np.uint8)
    pieces = [space]
    for part in parts:
        pieces += [part, between]
    return np.concatenate([*pieces, space[: _MARGIN - _GAP]])


def scale(colors: Pixels, low: str, high: str, *, middle: str = "", width: int = WIDTH) -> Pixels:
    """A colour scale with its ends labelled: `colors` is uint8 [n, 3], from low to high."""
    font = Font(_CAPTION)
    canvas = np.full((22 + _CAPTION + 12, width, 3), PAPER, np.uint8)
    span = width - 2 * _MARGIN
    ramp = colors[np.arange(span) * len(colors) // span]
    canvas[:22, _MARGIN : _MARGIN + span] = ramp
    baseline = 22 + _CAPTION
    font.draw(canvas, low, _MARGIN, baseline, FAINT)
    font.draw(canvas, middle, _MARGIN + (span - font.width(middle)) // 2, baseline, FAINT)
    font.draw(canvas, high, _MARGIN + span - font.width(high), baseline, FAINT)
    return canvas


def _fit(pixels: Pixels, side: int) -> Pixels:
    """The picture at the width of a column: whole multiples of its pixels where it is much smaller."""
    height, width = pixels.shape[:2]
    tall = min(side, 2 * side * width // max(height, 1)) if height > 2 * width else side
    size = (tall, max(round(height * tall / width), 1))
    if size == (width, height):
        return pixels
    cv2 = import_cv2()
    how = cv2.INTER_AREA if tall < width else cv2.INTER_NEAREST if tall >= 2 * width else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, size, interpolation=how), np.uint8)


def _framed(pixels: Pixels) -> Pixels:
    drawn = np.full_like(pixels, _FRAME)
    drawn[1:-1, 1:-1] = pixels[1:-1, 1:-1]
    return drawn


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """The text in lines of at most a width; a word that is wider is shortened."""
    lines: list[str] = []
    for word in " ".join(text.split()).split(" "):
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.width(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(font.fit(word, width))
    return lines
