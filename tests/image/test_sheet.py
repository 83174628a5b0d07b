"""Sheets of captioned cells: nothing that a caption says is cut off."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcam.image import sheet
from onnxcam.image.text import Font


@pytest.mark.parametrize("columns", [2, 4, 8])
def test_captions_that_do_not_fit_side_by_side_go_on_two_lines(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = Font.draw

    def note(self: Font, canvas: np.ndarray, text: str, *place: object) -> None:
        drawn.append(text)
        draw(self, canvas, text, *place)

    monkeypatch.setattr(Font, "draw", note)
    cells = [sheet.Cell(np.zeros((7, 7, 3), np.uint8), str(1270 + k), "100 %") for k in range(columns)]
    one = sheet.grid(cells, columns)
    assert drawn == [text for cell in cells for text in (cell.left, cell.right)]
    ink = (one != sheet.PAPER).any(2)
    assert not ink[-4:].any(), "the last line lies on the page"
