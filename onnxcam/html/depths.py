"""What each layer adds to a difference, by depth, as inline SVG on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 240, 66, 12, 16, 30
_FLOOR = 1e-8  # less is rounding, and drawn as that


class Depth(NamedTuple):
    """A layer of the chart.

    Attributes:
        name: of the layer.
        local: what it adds itself, as a relative distance.
        total: what has accumulated behind it.
        expected: what its precision gives, None where that is not known.
        blamed: whether it is at fault.
    """

    name: str
    local: float
    total: float
    expected: float | None
    blamed: bool


def depths(layers: Sequence[Depth], title: str) -> str:
    """Draw bars of what layers add, a dashed line of what has accumulated, and short lines of what is expected.

    A layer at fault has another colour and a mark above its bar.
    """
    values = [value for layer in layers for value in (layer.local, layer.total) if 0 < value < math.inf]
    low = max(_FLOOR, min(values, default=_FLOOR))
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(max([*values, 10 * low])))
    width = max(820, _LEFT + _RIGHT + 14 * len(layers))
    step = (width - _LEFT - _RIGHT) / max(1, len(layers))

    def y(value: float) -> float:
        part = (math.log10(min(max(value, 10.0**bottom), 10.0**top)) - bottom) / max(1, top - bottom)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for power in range(bottom, top + 1):
        at = y(10.0**power)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{width - _RIGHT}"/>')
        if power % 2 == 0 or top - bottom < 5:
            label = f"{100 * 10.0**power:g} %"
            parts.append(f'<text class="faint" x="{_LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    points = []
    for place, layer in enumerate(layers):
        x = _LEFT + (place + 0.5) * step
        wide, high = max(2.0, 0.62 * step), y(layer.local)
        words = f"{layer.name}: adds {100 * layer.local:.3g} %, accumulated {100 * layer.total:.3g} %"
        parts.append(
            f'<rect class="{"blamed" if layer.blamed else "local"}" x="{x - wide / 2:.1f}" y="{high:.1f}" '
            f'width="{wide:.1f}" height="{max(0.5, _HEIGHT - _BOTTOM - high):.1f}">'
            f"<title>{escape(words)}</title></rect>"
        )
        if layer.expected:
            at = y(layer.expected)
            parts.append(f'<path class="expected" d="M{x - 0.45 * step:.1f} {at:.1f}h{0.9 * step:.1f}"/>')
        if layer.blamed:
            parts.append(f'<text x="{x:.1f}" y="{max(10.0, high - 4):.1f}" text-anchor="middle">▼</text>')
        points.append(f"{x:.1f},{y(layer.total):.1f}")
    parts.append(f'<polyline class="total" points="{" ".join(points)}"/>')
    foot = _HEIGHT - 12
    parts.append(f'<text class="faint" x="{_LEFT}" y="{foot}">the picture</text>')
    parts.append(f'<text class="faint" x="{width - _RIGHT}" y="{foot}" text-anchor="end">the scores</text>')
    size = f'style="max-width:{1.3 * width:.0f}px" viewBox="0 0 {width} {_HEIGHT}"'
    return f'<svg class="depths" {size} role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>'
