"""Statistics of a map: position and concentration of its energy, to compare, log and monitor many maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from onnxcam.image.geometry import sum_cells
from onnxcam.image.opencv import import_cv2

BORDER = 0.1  # width of the frame whose share of the energy is a statistic, as a part of each side
PEAK = 0.5  # the height of a peak, as a part of the maximum
GRID = 32  # maps are averaged down to at most this many cells a side: fast, and smooth maps lose nothing


def describe(heatmap: np.ndarray, region: np.ndarray | None = None) -> dict[str, Any]:
    """Statistics of a map, the map read as a distribution of energy over the picture.

    Positions and lengths are in parts of the picture's height and width, so that maps of any size compare.

    Arguments:
        heatmap: `[h, w]`, not negative (values below zero, or not finite, count as zero).
        region: the region in which the map should lie, `[h, w]` with weights 0 to 1.

    Returns:
        `zero`: whether the map is zero everywhere; the other numbers are None then.
        `centroid`: [y, x], the energy's mean position, 0 at the top and left, 1 at the bottom and right.
        `spread`: root mean square distance of the energy from the centroid.
        `entropy`: of the energy's distribution, 0 (one cell) to 1 (even).
        `gini`: inequality of the cells, 0 (even) to 1 (one cell).
        `half_area`: the smallest part of the picture that contains half of the energy.
        `border`: the part of the energy in the outer tenth of the picture on each side.
        `peaks`: separate regions at or above half of the maximum.
        `region`: the part of the energy inside `region`, if there is one.
    """
    statistics = of_cells(gather(np.asarray(heatmap), cells_of(np.shape(heatmap))))
    if region is not None:
        statistics["region"] = None
        if not statistics["zero"]:
            mask = np.clip(np.nan_to_num(np.asarray(region, np.float64)), 0, 1)
            whole = _clean(np.asarray(heatmap, np.float64))
            statistics["region"] = _unit((whole * mask).sum() / whole.sum())
    return statistics


def cells_of(size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the cells to which a map of a size is summed."""
    return min(size[0], GRID), min(size[1], GRID)


def of_cells(grid: np.ndarray) -> dict[str, Any]:
    """The statistics of a map of which the sums over cells of equal area are known, as of `describe`.

    Arguments:
        grid: not negative, finite, of shape `cells_of`.
    """
    names: tuple[str, ...] = ("centroid", "spread", "entropy", "gini", "half_area", "border", "peaks")
    total = float(grid.sum())
    if not total > 0:
        return {"zero": True} | dict.fromkeys(names)
    share = grid / total
    height, width = share.shape
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    rows, columns = share.sum(axis=1), share.sum(axis=0)
    centre = float(rows @ y), float(columns @ x)
    cells = np.sort(share, axis=None)[::-1]
    cumulative = np.cumsum(cells)
    half = int(np.searchsorted(cumulative, 0.5))
    before = cumulative[half - 1] if half else 0.0
    positive = cells[cells > 0]
    inner = _inside(height) @ share @ _inside(width)
    return {
        "zero": False,
        "centroid": [centre[0], centre[1]],
        "spread": float(np.sqrt(rows @ (y - centre[0]) ** 2 + columns @ (x - centre[1]) ** 2)),
        "entropy": _unit(-(positive * np.log(positive)).sum() / np.log(cells.size)) if cells.size > 1 else 0.0,
        "gini": _unit((2 * cumulative.sum() - 1 - cells.size) / cells.size),
        "half_area": float((half + (0.5 - before) / cells[half]) / cells.size),
        "border": _unit(1 - inner),
        "peaks": _regions(grid >= PEAK * grid.max()),
    }


def _unit(value: float) -> float:
    """The value clipped to 0..1: sums of parts exceed it by a rounding error."""
    return float(min(1.0, max(0.0, value)))


def _clean(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.float32 and values.min(initial=0.0) >= 0 and np.isfinite(values.max(initial=0.0)):
        return values  # the usual case: unchanged, and float32 is ten times faster
    values = np.asarray(values, np.float64)
    return np.asarray(np.where(np.isfinite(values), np.maximum(values, 0.0), 0.0))


def gather(heatmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The energy of a map `[h, w]` summed over `size` cells of equal area, at most `[h, w]`; its position is kept."""
    values = sum_cells(_clean(np.asarray(heatmap)), size[0])
    return np.asarray(sum_cells(values.astype(np.float64).T, size[1]).T)


@lru_cache(2 * GRID)  # a side has at most that many cells
def _inside(side: int) -> np.ndarray:
    """The part of each cell that lies inside the frame."""
    low, high = BORDER * side, (1 - BORDER) * side
    edges = np.arange(side + 1)
    parts = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, 1)
    parts.flags.writeable = False  # shared by all callers
    return np.asarray(parts)


def _regions(mask: np.ndarray) -> int:
    """The number of 8-connected regions of bool `[h, w]`."""
    return int(import_cv2().connectedComponents(mask.view(np.uint8), connectivity=8)[0]) - 1  # that around them counts
