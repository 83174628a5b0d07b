"""Small charts as inline SVG, without scripts or files, and legible without colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape

import numpy as np

WIDTH, HEIGHT = 380, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 10, 22, 26
# low to high: ordered by lightness alone
_PALE, _DEEP = (247, 247, 243), (8, 48, 107)
# less and more: orange and purple are distinct in every kind of colour vision, and signs repeat the meaning
_LESS, _MORE = (179, 88, 6), (84, 39, 136)

# lines differ in dash and mark, and in the lightness of their colour (Okabe and Ito's palette)
_INKS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#8a5a83", "#6b6b00", "#56708a", "#a33b00")
_DASHES = ("none", "7 3", "2 2", "9 3 2 3", "5 5", "12 3", "3 6", "9 2 2 2 2 2")
_MARKS = (
    "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z",
    "M-3 -3h6v6h-6z",
    "M0 -3.8L3.6 2.8H-3.6z",
    "M0 -4L4 0L0 4L-4 0z",
    "M-3 -3L3 3M3 -3L-3 3",
    "M0 -4V4M-4 0H4",
    "M0 3.8L3.6 -2.8H-3.6z",
    "M-4 -1.4h8v2.8h-8z",
)


def bands(begin: Sequence[datetime], levels: np.ndarray, seconds: int) -> str:
    """Draw confidence over time: the median as a line with dots, the 10 % to 90 % range as a band, both labelled."""
    x, y = _axes(len(begin)), _vertical(1.0)
    measured: list[int] = np.flatnonzero(np.isfinite(levels[:, 1])).tolist()
    parts = [_frame(begin, seconds, [(0, "0"), (0.5, "0.5"), (1, "1")], y)]
    if measured:
        upper = [f"{x(k):.1f},{y(levels[k, 2]):.1f}" for k in measured]
        lower = [f"{x(k):.1f},{y(levels[k, 0]):.1f}" for k in reversed(measured)]
        parts.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
        middle = " ".join(f"{x(k):.1f},{y(levels[k, 1]):.1f}" for k in measured)
        parts.append(f'<polyline class="line" points="{middle}"/>')
        if len(measured) <= 24:
            parts += [f'<circle class="dot" cx="{x(k):.1f}" cy="{y(levels[k, 1]):.1f}" r="2.5"/>' for k in measured]
        last = measured[-1]
        parts.append(_text(x(last), y(levels[last, 1]) - 6, f"median {levels[last, 1]:.2f}", "end", "strong"))
        parts.append(_text(_LEFT + 4, y(levels[measured[0], 2]) - 4, "9 of 10 below", "start", "faint"))
        parts.append(_text(_LEFT + 4, y(levels[measured[0], 0]) + 12, "1 of 10 below", "start", "faint"))
    return _svg("Confidence over time", parts)


def bars(
    begin: Sequence[datetime], seconds: int, rows: Sequence[tuple[str, str, np.ndarray]], title: str, unit: str = ""
) -> str:
    """Draw stacked bars over time, the first series at the bottom; a series has name, pattern and values.

    Arguments:
        begin: start of each bar.
        seconds: length of each bar's interval.
        rows: for each series its name, `solid` or `hatch`, and values.
        title: the chart's title, for screen readers.
        unit: unit of the values.
    """
    total = np.sum([values for _, _, values in rows], axis=0)
    top = float(np.nanmax(total, initial=0.0)) or 1.0
    x, y = _axes(len(begin)), _vertical(top)
    wide = max(1.0, (WIDTH - _LEFT - _RIGHT) / max(1, len(begin)) * 0.78)
    parts = [_frame(begin, seconds, [(0, "0"), (top, f"{_short(top)}{unit}")], y)]
    base = np.zeros(len(begin))
    for _, kind, values in rows:
        for k, value in enumerate(np.nan_to_num(values)):
            if value > 0:
                low, high = y(base[k]), y(base[k] + value)
                parts.append(
                    f'<rect class="{kind}" x="{x(k) - wide / 2:.1f}" y="{high:.1f}" width="{wide:.1f}" '
                    f'height="{max(0.5, low - high):.1f}"/>'
                )
        base += np.nan_to_num(values)
    at = float(_LEFT)
    if len(rows) > 1:
        for name, kind, values in rows:
            legend = f"{name} {int(np.nansum(values)):,}"
            parts.append(f'<rect class="{kind}" x="{at}" y="3" width="12" height="10"/>')
            parts.append(_text(at + 16, 12, legend, "start", ""))
            at += 28 + 6.2 * len(legend)
    return _svg(title, parts)


def curves(rows: Sequence[np.ndarray], title: str, ends: tuple[str, str], top: float = 1.0) -> str:
    """Draw lines over equally spaced points, which differ by dashes and marks, see `key`."""
    y = _vertical(top)
    parts = []
    for value, text in ((0.0, "0"), (top / 2, _short(top / 2)), (top, _short(top))):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 5, y(value) + 4, text, "end", "faint"))
    parts.append(_text(_LEFT, HEIGHT - 8, ends[0], "start", "faint"))
    parts.append(_text(WIDTH - _RIGHT, HEIGHT - 8, ends[1], "end", "faint"))
    for number, values in enumerate(rows):
        wide = (WIDTH - _LEFT - _RIGHT) / max(1, len(values) - 1)
        points = [(_LEFT + k * wide, y(float(np.clip(v, 0, top)))) for k, v in enumerate(values)]
        parts.append(_stroke(number, points))
        every = max(1, len(points) // 4)
        # marks of different lines are staggered, so that they do not hide each other
        start = 0 if len(points) < 9 else (number * every // max(1, len(rows))) % every
        parts += [_mark(number, *point) for point in points[start::every]]
    return _svg(title, parts)


def key(number: int) -> str:
    """Draw the line of a number in `curves`, for the legend."""
    parts = [_stroke(number, [(0, 7), (34, 7)]), _mark(number, 17, 7)]
    return f'<svg class="key" viewBox="0 0 34 14" aria-hidden="true">{"".join(parts)}</svg>'


def _stroke(number: int, points: Sequence[tuple[float, float]]) -> str:
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    color, dash = _INKS[number % len(_INKS)], _DASHES[number % len(_DASHES)]
    return f'<polyline fill="none" stroke="{color}" stroke-width="1.8" stroke-dasharray="{dash}" points="{drawn}"/>'


def _mark(number: int, x: float, y: float) -> str:
    color, shape = _INKS[number % len(_INKS)], _MARKS[number % len(_MARKS)]
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{shape}" fill="#fff" stroke="{color}" stroke-width="1.4"/>'


def heat(values: np.ndarray, title: str, covered: Sequence[float] | None = None) -> str:
    """Draw a map `[h, w]`, dark where values are high; the maximum is marked by a ring.

    Arguments:
        covered: top, left, bottom and right of the part that the map covers, 0 to 1, which is framed; None for all.
    """
    top = float(values.max()) or 1.0
    height, width = values.shape
    parts = [_cell(r, c, _mix(_PALE, _DEEP, values[r, c] / top)) for r in range(height) for c in range(width)]
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    parts.append(f'<circle class="ring" cx="{column + 0.5}" cy="{row + 0.5}" r="0.3"/>')
    if covered is not None:
        top_edge, left, bottom, right = covered
        box = f'x="{left * width:g}" y="{top_edge * height:g}" width="{(right - left) * width:g}"'
        parts.append(f'<rect class="frame" {box} height="{(bottom - top_edge) * height:g}"/>')
    return _grid(height, width, parts, title)


def change(now: np.ndarray, before: np.ndarray, title: str, scale: float) -> str:
    """Draw the difference of two maps: more (+) or less (-) than before; no sign for less than a quarter of `scale`."""
    difference = now - before
    height, width = difference.shape
    parts = []
    for r in range(height):
        for c in range(width):
            part = float(np.clip(difference[r, c] / scale, -1, 1))
            parts.append(_cell(r, c, _mix(_PALE, _MORE if part > 0 else _LESS, abs(part))))
            if abs(part) >= 0.25:
                middle, arm = f"{c + 0.5} {r + 0.5}", 0.24
                path = f"M{middle}m{-arm} 0h{2 * arm}" + (f"M{middle}m0 {-arm}v{2 * arm}" if part > 0 else "")
                parts.append(f'<path class="sign {"light" if abs(part) > 0.5 else "dark"}" d="{path}"/>')
    return _grid(height, width, parts, title)


def _axes(count: int) -> Callable[[int], float]:
    return lambda k: _LEFT + (k + 0.5) * (WIDTH - _LEFT - _RIGHT) / max(1, count)


def _vertical(top: float) -> Callable[[float], float]:
    return lambda value: HEIGHT - _BOTTOM - value / top * (HEIGHT - _TOP - _BOTTOM)


def _frame(
    begin: Sequence[datetime], seconds: int, ticks: Sequence[tuple[float, str]], y: Callable[[float], float]
) -> str:
    parts = []
    for value, text in ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {y(value):.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 5, y(value) + 4, text, "end", "faint"))
    if begin:
        form = "%d %b %Y" if seconds >= 7 * 86400 else "%d %b" if seconds >= 86400 else "%d %b %H:%M"
        parts.append(_text(_LEFT, HEIGHT - 8, begin[0].strftime(form), "start", "faint"))
        if len(begin) > 1:
            parts.append(_text(WIDTH - _RIGHT, HEIGHT - 8, begin[-1].strftime(form), "end", "faint"))
    return "".join(parts)


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _grid(height: int, width: int, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg class="map" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _cell(row: int, column: int, color: str) -> str:
    return f'<rect x="{column}" y="{row}" width="1.02" height="1.02" fill="{color}"/>'


def _mix(start: tuple[int, int, int], end: tuple[int, int, int], part: float) -> str:
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(start, end, strict=True))


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:.3g}k"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
