"""The panel: original, heatmap and overlay side by side, with label, probability and colour bar.

`gallery` shows several maps of one picture in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import InputError
from onnxcam.image.colormap import DEFAULT, colorize, grayscale, look_up, palette
from onnxcam.image.geometry import Size, resize_map
from onnxcam.image.opencv import import_cv2
from onnxcam.image.outlines import Outline, outline
from onnxcam.image.overlay import check_alpha, draw
from onnxcam.image.picture import Picture, as_pixels
from onnxcam.image.text import Font
from onnxcam.image.visible import Marks, Rectangle, marked

Pixels = NDArray[np.uint8]

# the longer side of a cell, in pixels: small, as the size is most of the cost of writing a panel, and the picture, the
# map and the overlay are also written in full
_SMALLEST, _LARGEST, _NARROWEST = 224, 320, 72
_COLUMNS = 4
_PAPER, _INK, _FAINT, _MAT = 255, (26, 28, 32), (112, 118, 128), (240, 241, 243)
# cells of a picture wider than this are stacked
_WIDE = 2.2
_LINES = 3  # of a note, at most
_CAPTION = 13  # pixels around the smallest cell
_OVERLAY, _HATCHED = "overlay", "hatched: not seen"


def panel(
    picture: Picture | Pixels,
    heatmap: NDArray[Any],
    overlay: Pixels | None = None,
    *,
    label: str = "",
    probability: float | None = None,
    method: str = "heatmap",
    alpha: float | None = None,
    colormap: str = DEFAULT,
    visible: Sequence[Rectangle] | None = None,
    notes: Sequence[str] = (),
    blank: str = "no evidence at this layer",
    outlines: Sequence[Outline] = (),
    levels: Pixels | None = None,
) -> Pixels:
    """Compose the panel.

    Args:
        picture: a Picture, or uint8 [H, W, 3] RGB.
        heatmap: values 0 to 1, [H, W], of the picture's size.
        overlay: uint8 [H, W, 3] RGB; None: computed from `alpha` and `colormap`, at the panel's resolution.
        label: the explained class, any script; shortened to fit.
        probability: 0 to 1, shown as a percentage; None: not shown.
        method: caption of the middle cell.
        alpha: opacity of the colours in a computed overlay, see `onnxcam.image.overlay`.
        colormap: one of COLORMAPS; also draws the colour bar.
        visible: the parts of the picture that the heatmap covers, None for all of it; the rest is hatched.
        notes: sentences below the label, wrapped to the panel's width.
        blank: what is written in place of a heatmap that is zero everywhere, whose even colour could be read as a map.
        outlines: boxes and regions in the picture's pixels, drawn in all cells; without their chips in the middle one.
        levels: `onnxcam.image.grayscale` of the heatmap, where it is computed already.

    Returns:
        uint8 [h, w, 3] RGB; each cell's longer side is between 224 and 320 pixels whatever the picture's size.

    Raises:
        InputError: sizes differ, or there is no such colour map.
    """
    pixels = as_pixels(picture)
    if heatmap.shape != pixels.shape[:2]:
        raise InputError(
            f"the heatmap has shape {list(heatmap.shape)} but the picture has {list(pixels.shape[:2])}: give both in "
            "one size"
        )
    height, width = pixels.shape[:2]
    size = _cell(height, width)
    check_alpha(alpha)
    thumbnail = _show(pixels, size)
    gray, marks = _show_map(heatmap, size, levels), Marks.at(size, (height, width), visible)
    mixed = draw(thumbnail, gray, alpha, colormap, marks) if overlay is None else _show(as_pixels(overlay), size)
    colors = _words(blank, size) if _is_blank(heatmap, levels) else _colors(gray, marks, colormap)
    if outlines:
        scaled = [one.scaled((height, width), size) for one in outlines]
        thumbnail = outline(thumbnail, scaled)
        mixed = outline(mixed, scaled) if overlay is None else mixed
        colors = outline(colors, [one._replace(text="") for one in scaled])
    caption = f"{_OVERLAY} ({_HATCHED})" if marks else _OVERLAY
    if Font(_CAPTION * _unit(size)).width(caption) > max(size[1], _NARROWEST):
        caption, notes = _OVERLAY, [*notes, _HATCHED]
    cells = [
        ("picture", thumbnail),
        (method, colors),
        (caption, mixed),
    ]
    return _compose(cells, size, 1 if width > _WIDE * height else 3, label, probability, colormap, notes)


def gallery(
    picture: Picture | Pixels,
    maps: Sequence[tuple[str, NDArray[Any]]],
    *,
    label: str = "",
    probability: float | None = None,
    alpha: float | None = None,
    colormap: str = DEFAULT,
    visible: Sequence[Sequence[Rectangle] | None] = (),
    notes: Sequence[str] = (),
    outlines: Sequence[Sequence[Outline]] = (),
) -> Pixels:
    """Compose the picture and the overlays of several maps of it, each with its caption, at most four in a row.

    Args:
        picture: a Picture, or uint8 [H, W, 3] RGB.
        maps: captions, and heatmaps with values 0 to 1, [H, W], of the picture's size.
        label, probability, alpha, colormap, notes: as in `panel`.
        visible: for each map the parts of the picture that it covers, as in `panel`; empty where all cover all of it.
        outlines: for each map its boxes and regions, as in `panel`; those of all maps are drawn on the picture.

    Returns:
        uint8 [h, w, 3] RGB; cells have the size of a panel's.

    Raises:
        InputError: sizes differ, or there is no such colour map.
    """
    pixels = as_pixels(picture)
    wrong = next((heatmap.shape for _, heatmap in maps if heatmap.shape != pixels.shape[:2]), None)
    if wrong is not None:
        raise InputError(
            f"a heatmap has shape {list(wrong)} but the picture has {list(pixels.shape[:2])}: give all in one size"
        )
    check_alpha(alpha)
    size = _cell(pixels.shape[0], pixels.shape[1])
    thumbnail = _show(pixels, size)
    old = (pixels.shape[0], pixels.shape[1])
    scaled = [[one.scaled(old, size) for one in some] for some in outlines]
    together: list[Outline] = []
    for one in (one for some in scaled for one in some):
        if not any(one is other or (one.mask is None and one == other) for other in together):
            together.append(one)
    cells = [("picture", outline(thumbnail, together) if together else thumbnail)]
    for place, (name, heatmap) in enumerate(maps):
        marks = Marks.at(size, pixels.shape, visible[place] if visible else None)
        mixed = draw(thumbnail, _show_map(heatmap, size), alpha, colormap, marks)
        mixed = outline(mixed, scaled[place]) if place < len(scaled) and scaled[place] else mixed
        cells.append((f"{name}: no evidence" if _is_blank(heatmap) else name, mixed))
        notes = [*notes, _HATCHED] if marks and _HATCHED not in notes else notes
    columns = _COLUMNS // 2 if size[1] > _WIDE * size[0] else _COLUMNS
    rows = -(-len(cells) // columns)
    return _compose(cells, size, -(-len(cells) // rows), label, probability, colormap, notes)


def _colors(gray: Pixels, marks: Marks, colormap: str) -> Pixels:
    """Grey levels in colours, and the marks."""
    table = palette(colormap)
    if marks:
        gray, table = marks.levels(gray), marked(table)
    return look_up(gray, table)


def _is_blank(heatmap: NDArray[Any], levels: Pixels | None = None) -> bool:
    """Whether a map is zero everywhere; several times faster than `any`."""
    return (levels is None or not levels.max()) and not (heatmap.max() or heatmap.min())


def _words(text: str, size: Size) -> Pixels:
    """A cell with words in place of a map."""
    cell = np.full((*size, 3), _MAT, np.uint8)
    font = Font(_CAPTION * _unit(size))
    lines = font.wrap(text, size[1] - 8, max(size[0] // font.line, 1))
    baseline = (size[0] - len(lines) * font.line) // 2 + round(0.8 * font.line)
    for line in lines:
        font.draw(cell, line, (size[1] - font.width(line)) // 2, baseline, _FAINT)
        baseline += font.line
    return cell


def _unit(box: Size) -> float:
    """The size of text and margins around cells of this size, 1 around the smallest."""
    return 1.0 + (max(box) - _SMALLEST) / (_LARGEST - _SMALLEST) * 0.3


def _cell(height: int, width: int) -> Size:
    """The size a picture has in a panel."""
    factor = min(max(max(height, width), _SMALLEST), _LARGEST) / max(height, width)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def _show(pixels: Pixels, size: Size) -> Pixels:
    """Resize the picture to the panel's resolution: averaged down, or enlarged with visible pixels if it is tiny."""
    if pixels.shape[:2] == size:
        return pixels
    cv2 = import_cv2()
    pixels = _halved(pixels, size)
    growth = min(size[0] / pixels.shape[0], size[1] / pixels.shape[1])
    # reducing by less than half: bilinear shows no loss in a photograph, and takes a tenth of the time
    how = (
        cv2.INTER_LINEAR
        if 0.5 < growth < 1
        else cv2.INTER_AREA
        if growth < 1
        else cv2.INTER_NEAREST
        if growth >= 3
        else cv2.INTER_CUBIC
    )
    return np.asarray(cv2.resize(pixels, (size[1], size[0]), interpolation=how), np.uint8)


def _show_map(heatmap: NDArray[Any], size: Size, levels: Pixels | None = None) -> Pixels:
    """Resize the map's grey levels to the panel's resolution, averaged down so that a thin peak does not vanish."""
    values = np.ascontiguousarray(heatmap, np.float32)
    if size[0] >= values.shape[0] and size[1] >= values.shape[1]:
        return grayscale(resize_map(values, size))
    cv2 = import_cv2()
    gray = _halved(grayscale(values) if levels is None else levels, size)  # a quarter of the map's bytes
    return np.asarray(cv2.resize(gray, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)


def _halved(pixels: Pixels, size: Size) -> Pixels:
    """Average over 2 x 2 pixels while the result is at least of `size`: several times faster than other factors.

    An odd row or column at the end counts twice.
    """
    cv2 = import_cv2()
    while pixels.shape[0] >= 2 * size[0] and pixels.shape[1] >= 2 * size[1]:
        height, width = pixels.shape[:2]
        if height % 2 or width % 2:
            pixels = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = np.asarray(cv2.resize(pixels, half, interpolation=cv2.INTER_AREA), np.uint8)
    return pixels


def _compose(
    cells: list[tuple[str, Pixels]],
    size: Size,
    columns: int,
    label: str,
    probability: float | None,
    colormap: str,
    notes: Sequence[str],
) -> Pixels:
    box = height, width = max(size[0], _NARROWEST), max(size[1], _NARROWEST)
    unit = _unit(box)
    margin, gap = round(16 * unit), round(12 * unit)
    heading, caption = Font(19 * unit, 600), Font(_CAPTION * unit)
    step = (width + gap, height + round(28 * unit))
    rows = -(-len(cells) // columns)
    written = [line for note in notes for line in caption.wrap(note, columns * step[0] - gap, _LINES)]
    heading_height = round(36 * unit) if label or probability is not None else 0
    top = margin + heading_height + len(written) * caption.line
    bar = round(12 * unit)
    bar_left = margin + (columns - 1) * step[0] + width + gap
    bottom = top + (rows - 1) * step[1] + height
    digits = max(caption.width("0"), caption.width("1"))
    whole = (bottom + round(22 * unit) + margin, bar_left + bar + gap // 2 + digits + margin, 3)
    canvas = np.full(whole, _PAPER, np.uint8)
    for index, (name, pixels) in enumerate(cells):
        x, y = margin + index % columns * step[0], top + index // columns * step[1]
        _paste(canvas, pixels, x, y, box)
        text = caption.fit(name, width)
        caption.draw(canvas, text, x, y + height + round(17 * unit), _FAINT)
    ramp = np.linspace(1.0, 0.0, bottom - top, dtype=np.float32)[:, None]
    canvas[top:bottom, bar_left : bar_left + bar] = colorize(np.repeat(ramp, bar, axis=1), colormap)
    right = bar_left + bar + gap // 2
    caption.draw(canvas, "1", right, top + round(11 * unit), _FAINT)
    caption.draw(canvas, "0", right, bottom - 1, _FAINT)
    _title(canvas, heading, label, probability, margin, margin + round(19 * unit), gap)
    for index, text in enumerate(written):
        caption.draw(canvas, text, margin, margin + heading_height + index * caption.line + round(8 * unit), _INK)
    return canvas


def _paste(canvas: Pixels, pixels: Pixels, left: int, top: int, box: Size) -> None:
    """Paste a cell; a picture narrower than the narrowest cell gets a mat around it."""
    if pixels.shape[:2] != box:
        canvas[top : top + box[0], left : left + box[1]] = _MAT
    top += (box[0] - pixels.shape[0]) // 2
    left += (box[1] - pixels.shape[1]) // 2
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels


def _title(
    canvas: Pixels, font: Font, label: str, probability: float | None, left: int, baseline: int, gap: int
) -> None:
    share = "" if probability is None else percentage(probability)
    room = canvas.shape[1] - 2 * left - (font.width(share) + gap if share else 0)
    text = font.fit(label, room)
    font.draw(canvas, text, left, baseline, _INK)
    font.draw(canvas, share, left + (font.width(text) + gap if text else 0), baseline, _FAINT)


def percentage(probability: float) -> str:
    """Format a probability 0 to 1: 93.1 %, and never 100 % or 0 % unless it is exactly that."""
    share = probability * 100.0
    if 99.95 <= share < 100.0:
        return "> 99.9 %"
    if 0.0 < share < 0.05:
        return "< 0.1 %"
    return f"{share:.1f} %"
