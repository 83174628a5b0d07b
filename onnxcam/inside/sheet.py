"""One picture of a maximised picture beside real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcam.image import sheet as sheets
from onnxcam.inside import boxes

if TYPE_CHECKING:
    from onnxcam.inside.natural import Comparison

_COLUMNS, _PARTS = 3, 4


def sheet(pixels: sheets.Pixels, title: str, value: float, comparison: Comparison | None) -> sheets.Pixels:
    """A page of the maximised picture and the real ones with the highest values, the part that is seen framed; under
    them the parts alone.

    Arguments:
        pixels: uint8 `[H, W, 3]`.
        title: what was maximised.
        value: what the plain model says of the maximised picture.

    Returns:
        uint8 `[h, w, 3]` RGB.
    """
    best = comparison.best if comparison is not None else []
    cells = [sheets.Cell(pixels, "made", f"{value:.4g}")]
    parts = []
    for entry in best:
        drawn = entry.pixels
        if entry.part is not None:
            x0, y0, x1, y1 = entry.part
            parts.append(sheets.Cell(entry.pixels[y0:y1, x0:x1], entry.name))
            drawn = boxes.outlined(drawn, entry.part)
        cells.append(sheets.Cell(drawn, entry.name, f"{entry.value:.4g}"))
    notes = ["Below each picture: its value in the plain model."]
    if best:
        notes[0] += " The real pictures are those with the highest ones."
    page = [sheets.heading(title, notes), sheets.grid(cells, _COLUMNS)]
    if parts:
        what = "The part of each real picture that the neuron sees, where it responds most; a box in the picture."
        page += [sheets.heading("What it sees of them", [what]), sheets.grid(parts, _PARTS)]
    return sheets.page(page)
