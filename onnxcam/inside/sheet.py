"""One picture of a maximised picture beside real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcam.image.opencv import import_cv2
from onnxcam.image.text import Font

if TYPE_CHECKING:
    from onnxcam.inside.natural import Comparison

_CELL, _MARGIN, _GAP, _LINE = 224, 16, 12, 22
_INK, _FAINT, _PAPER = (26, 28, 32), (92, 98, 108), 255
_BOX = (255, 214, 0), (26, 28, 32)  # yellow on black: visible on any picture


def sheet(pixels: np.ndarray, title: str, value: float, comparison: Comparison | None) -> np.ndarray:
    """A row of cells: the maximised picture, then the real pictures with the highest values, the part that is seen
    framed; below each the part alone.

    Arguments:
        pixels: uint8 `[H, W, 3]`.
        title: what was maximised.
        value: what the plain model says of the maximised picture.

    Returns:
        uint8 `[h, w, 3]` RGB.
    """
    cells: list[tuple[str, str, np.ndarray, tuple[int, int, int, int] | None]]
    cells = [("made", f"{value:.4g}", pixels, None)]
    if comparison is not None:
        cells += [(entry.name, f"{entry.value:.4g}", entry.pixels, entry.part) for entry in comparison.best]
    parts = any(part is not None for *_, part in cells)
    rows = 2 if parts else 1
    top = _MARGIN + 2 * _LINE
    height = top + rows * (_CELL + 2 * _LINE) + _MARGIN
    width = 2 * _MARGIN + len(cells) * _CELL + (len(cells) - 1) * _GAP
    canvas = np.full((height, width, 3), _PAPER, np.uint8)
    heading, caption = Font(19, 600), Font(14)
    heading.draw(canvas, heading.fit(title, width - 2 * _MARGIN), _MARGIN, _MARGIN + 18, _INK)
    for index, (name, number, pixels, part) in enumerate(cells):
        left = _MARGIN + index * (_CELL + _GAP)
        _paste(canvas, pixels, left, top, part)
        text = f"{number}  {name}"
        caption.draw(canvas, caption.fit(text, _CELL), left, top + _CELL + 17, _INK if index == 0 else _FAINT)
        if part is not None:
            x0, y0, x1, y1 = part
            below = top + _CELL + 2 * _LINE
            _paste(canvas, pixels[y0:y1, x0:x1], left, below, None)
            caption.draw(canvas, caption.fit("what it sees of it", _CELL), left, below + _CELL + 17, _FAINT)
    return canvas


def _paste(canvas: np.ndarray, pixels: np.ndarray, left: int, top: int, part: tuple[int, int, int, int] | None) -> None:
    """Fit a picture into a cell, its part framed."""
    cv2 = import_cv2()
    height, width = pixels.shape[:2]
    factor = _CELL / max(height, width)
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST if factor >= 3 else cv2.INTER_CUBIC
    cell = np.ascontiguousarray(cv2.resize(np.ascontiguousarray(pixels), (size[1], size[0]), interpolation=how))
    if part is not None:
        x0, y0, x1, y1 = (round(edge * factor) for edge in part)
        corners = (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0))
        cv2.rectangle(cell, *corners, _BOX[1], 4)
        cv2.rectangle(cell, *corners, _BOX[0], 2)
    y, x = top + (_CELL - size[0]) // 2, left + (_CELL - size[1]) // 2
    canvas[y : y + size[0], x : x + size[1]] = cell
