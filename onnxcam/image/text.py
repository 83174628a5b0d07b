"""Text on pictures: OpenCV 5's TrueType fonts with Unicode, or OpenCV 4's stroke fonts with ASCII."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcam.image.opencv import import_cv2

Pixels = NDArray[np.uint8]
_ELLIPSIS = "..."
# a cache: measuring takes a millisecond, and the panels of a run repeat most texts
_widths: dict[tuple[bool, int, int, str], int] = {}
_CACHED = 10_000


class Font:
    """Text of one size (pixels, about the height of a capital with its accents) and weight (400 regular, 600 bold)."""

    def __init__(self, size: float, weight: int = 400) -> None:
        self._cv2: Any = import_cv2()
        self._size = max(round(size), 8)
        self._weight = weight
        self._face: Any = self._cv2.FontFace("sans") if hasattr(self._cv2, "FontFace") else None

    @property
    def line(self) -> int:
        """Height of a line in pixels."""
        return round(1.45 * self._size)

    def width(self, text: str) -> int:
        """Width in pixels of the text on one line."""
        text = self._printable(text)
        key = (self._face is not None, self._size, self._weight, text)
        if key not in _widths:
            if len(_widths) >= _CACHED:
                _widths.clear()
            _widths[key] = self._measure(text)
        return _widths[key]

    def _measure(self, text: str) -> int:
        if self._face is not None:
            # the rectangle omits trailing spaces, so a dot is appended
            rectangle = self._cv2.getTextSize((1, 1), text + ".", (0, 0), self._face, self._size, self._weight)
            return int(rectangle[0] + rectangle[2])
        font, scale, thickness = self._strokes()
        return int(self._cv2.getTextSize(text, font, scale, thickness)[0][0])

    def fit(self, text: str, width: int) -> str:
        """Shorten a text with an ellipsis if it is wider than `width` pixels."""
        text = " ".join(text.split())
        if self.width(text) <= width:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(text[:middle].rstrip() + _ELLIPSIS) <= width:
                low = middle
            else:
                high = middle - 1
        return text[:low].rstrip() + _ELLIPSIS if low else ""

    def wrap(self, text: str, width: int, most: int) -> list[str]:
        """Break a text into at most `most` lines no wider than `width` pixels; the last one is shortened to fit."""
        lines: list[str] = []
        text = " ".join(text.split())
        words = text.replace(" %", "\u00a0%").split(" ")
        while words and len(lines) < most:
            count = 1
            while count < len(words) and self.width(" ".join(words[: count + 1])) <= width:
                count += 1
            rest = len(lines) + 1 == most
            lines.append(self.fit(" ".join(words if rest else words[:count]), width))
            words = words[count:]
        return [line for line in lines if line]

    def draw(self, canvas: Pixels, text: str, left: int, baseline: int, color: tuple[int, int, int]) -> None:
        """Draw onto uint8 [H, W, 3], in place."""
        text = self._printable(text)
        if not text:
            return
        if self._face is not None:
            self._cv2.putText(canvas, text, (left, baseline), color, self._face, self._size, self._weight)
            return
        font, scale, thickness = self._strokes()
        self._cv2.putText(canvas, text, (left, baseline), font, scale, color, thickness, self._cv2.LINE_AA)

    def _strokes(self) -> tuple[int, float, int]:
        # a Hershey capital is 21 units high
        scale = self._size * 0.72 / 21.0
        return self._cv2.FONT_HERSHEY_SIMPLEX, scale, max(round(scale * (2.2 if self._weight > 500 else 1.2)), 1)

    def _printable(self, text: str) -> str:
        if not text.isprintable():
            import unicodedata  # here, as most texts need none

            text = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text)
        if self._face is not None:
            return text
        import unicodedata

        # the stroke fonts have ASCII only: strip accents, and replace other characters by a question mark
        plain = (unicodedata.normalize("NFKD", c) for c in text)
        bases = ("".join(p for p in c if not unicodedata.combining(p)) for c in plain)
        return "".join(c if c.isascii() else "?" for c in bases)
