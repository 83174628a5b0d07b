"""Regions of a model of semantic segmentation: which of its cells a box or a mask of the picture covers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcam.errors import TargetAbsent, TargetError
from onnxcam.targets.scalar_objectives import REGION, Combination, Subject
from onnxcam.targets.scalars import Placement, Region, describe
from onnxcam.targets.tasks import Segment

_BACKGROUND = ("background", "__background__", "unlabeled", "unlabelled")


def objective(
    task: Segment, target: Region, row: np.ndarray, placement: Placement, labels: Sequence[str] | None
) -> Combination:
    """The sum of a class's scores over the cells that a region covers.

    Arguments:
        target: its class by index, or None for the largest one there.
        row: `[columns]` of the unchanged picture.
        placement: how the picture lies on the model's input.

    Raises:
        TargetError: the region lies outside the picture or what the model sees of it.
        TargetAbsent: no cell is of the class.
    """
    p = task.probabilities(row, placement.input_size)
    members = _members(p, placement)
    index = target.label
    if target.region is None:
        index = largest(task, row, placement, labels)[0] if index is None else index
        cells = members[index]
        if not cells.any():
            best = _name(int(members.sum(axis=(1, 2)).argmax()), labels)
            raise TargetAbsent(
                f"no cell of the picture is {_name(index, labels)}: {best} is the largest; name a region to explain "
                "the class there"
            )
    else:
        cells = covered(target.region, (p.shape[1], p.shape[2]), placement)
        index = int(p[:, cells].sum(axis=1).argmax()) if index is None else index
    weights = np.zeros(p.shape)
    weights[index][cells] = 1.0
    flat = task.flatten(weights)
    columns = np.flatnonzero(flat)
    number = float(p[index][cells].mean())
    drawn = None if isinstance(target.region, tuple) else cells
    described, doubt = describe(Region(int(index), target.region)), _beyond(target.region, placement)
    subject = Subject(int(index), None, number, target=described, doubt=doubt, cells=drawn)
    return Combination(subject, columns, flat[columns], REGION)


def largest(
    task: Segment, row: np.ndarray, placement: Placement, labels: Sequence[str] | None, count: int = 1
) -> list[int]:
    """The classes with the most cells, largest first: at least one, at most `count`.

    A class called background counts only where there is no other.
    """
    members = _members(task.probabilities(row, placement.input_size), placement).sum(axis=(1, 2))
    order = [int(index) for index in np.argsort(-members, kind="stable") if members[index]]
    behind = [index for index in order if labels and labels[index].strip().casefold() in _BACKGROUND]
    order = [index for index in order if index not in behind] or behind or [0]
    return order[:count]


def members(task: Segment, row: np.ndarray, placement: Placement) -> np.ndarray:
    """The class of each cell of the picture, as one mask per class, bool `[K, h, w]`; padding is of none."""
    return _members(task.probabilities(row, placement.input_size), placement)


def areas(task: Segment, row: np.ndarray, placement: Placement) -> np.ndarray:
    """The share of each class among the cells of the picture, float64 `[K]`; of a single class of all cells."""
    p = task.probabilities(row, placement.input_size)
    counts = _members(p, placement).sum(axis=(1, 2))
    y, x = (_centres(p.shape[1 + axis], axis, placement) for axis in (0, 1))
    inside = int(_on_picture(y, x, placement).sum()) or p.shape[1] * p.shape[2]
    return np.asarray(counts / inside)


def covered(region: Any, grid: tuple[int, int], placement: Placement) -> np.ndarray:
    """The cells whose centres lie in a region, bool of the grid's shape; the cell around its middle if none does.

    Arguments:
        region: x0, y0, x1, y1, or a mask, in pixels of the picture.

    Raises:
        TargetError: a mask of another size; or a region outside the picture, or outside what the model sees of it.
    """
    height, width = placement.picture_size
    y, x = (_centres(grid[axis], axis, placement) for axis in (0, 1))
    inside: np.ndarray = _on_picture(y, x, placement)
    if isinstance(region, np.ndarray):
        if region.shape != (height, width):
            raise TargetError(
                f"the mask is {region.shape[0]} x {region.shape[1]} and the picture {height} x {width} (height x "
                "width); give a mask of the picture's size"
            )
        at = np.ix_(np.clip(y.astype(np.int64), 0, height - 1), np.clip(x.astype(np.int64), 0, width - 1))
        cells: np.ndarray = region[at] & inside
        rows, columns = np.nonzero(region)
        middle = (float(rows.mean()) + 0.5, float(columns.mean()) + 0.5)
        nearest = np.argmin((rows + 0.5 - middle[0]) ** 2 + (columns + 0.5 - middle[1]) ** 2)
        middle = (float(rows[nearest]) + 0.5, float(columns[nearest]) + 0.5)
        text = "the mask"
    else:
        x0, y0, x1, y1 = region
        text = f"the region {x0:g}, {y0:g}, {x1:g}, {y1:g}"
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise TargetError(f"{text} lies outside the picture, which is {width} x {height} pixels (width x height)")
        cells = np.outer((y >= y0) & (y < y1), (x >= x0) & (x < x1)) & inside
        middle = ((max(y0, 0) + min(y1, height)) / 2, (max(x0, 0) + min(x1, width)) / 2)
    if cells.any():
        return cells
    cell = []
    for axis in (0, 1):
        position = middle[axis] * placement.scale[axis] + placement.offset[axis]
        cell.append(int(np.floor(position * grid[axis] / placement.input_size[axis])))
    if not (0 <= cell[0] < grid[0] and 0 <= cell[1] < grid[1]):
        raise TargetError(f"{text} lies outside the part of the picture that the model sees")
    cells[cell[0], cell[1]] = True
    return cells


def _beyond(region: Any, placement: Placement) -> str | None:
    """A sentence about a region of which a part is not on the picture, or not in what the model sees of it."""
    if region is None:
        return None
    height, width = placement.picture_size
    if isinstance(region, np.ndarray):
        rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
        edges = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        text = "the mask"
    else:
        edges, text = region, f"the region {_spelled(region)}"
        inside = _clipped(edges, (0.0, 0.0, float(width), float(height)))
        if inside != edges:
            sentence = (
                f"{text} reaches beyond the picture, which is {width} x {height} pixels (width x height): the part "
                f"inside is explained, {_spelled(inside)}"
            )
            cropped = _beyond(inside, placement) if inside[0] < inside[2] and inside[1] < inside[3] else None
            return sentence if cropped is None else f"{sentence}; {cropped}"
    (top, left), (sy, sx) = placement.offset, placement.scale
    rows_in, columns_in = placement.input_size
    visible = (-left / sx, -top / sy, (columns_in - left) / sx, (rows_in - top) / sy)
    inside = _clipped(edges, visible)
    if max(abs(a - b) for a, b in zip(inside, edges, strict=True)) < 1:  # less than a pixel is rounding
        return None
    return (
        f"{text} reaches beyond the part of the picture that the model sees, {_spelled(_clipped(visible, edges))} of "
        "it: its preprocessing crops pictures, and the rest is left out"
    )


def _clipped(box: Sequence[float], edges: Sequence[float]) -> tuple[float, float, float, float]:
    return max(box[0], edges[0]), max(box[1], edges[1]), min(box[2], edges[2]), min(box[3], edges[3])


def _spelled(box: Sequence[float]) -> str:
    return ", ".join(f"{edge:g}" for edge in box)


def _centres(count: int, axis: int, placement: Placement) -> np.ndarray:
    """The centres of the grid's cells along one axis, in pixels of the picture."""
    centre = (np.arange(count) + 0.5) * placement.input_size[axis] / count
    return np.asarray((centre - placement.offset[axis]) / placement.scale[axis])


def _on_picture(y: np.ndarray, x: np.ndarray, placement: Placement) -> np.ndarray:
    """The cells whose centres lie on the picture, not on the padding around it, bool `[h, w]`."""
    height, width = placement.picture_size
    return np.asarray(np.outer((y >= 0) & (y < height), (x >= 0) & (x < width)))


def _members(p: np.ndarray, placement: Placement) -> np.ndarray:
    """The class of each cell of the picture, as one mask per class, bool `[K, h, w]`; padding is of none."""
    y, x = (_centres(p.shape[1 + axis], axis, placement) for axis in (0, 1))
    inside = _on_picture(y, x, placement)
    inside = inside if inside.any() else ~inside  # a picture narrower than a cell lies between centres
    if len(p) == 1:
        return np.asarray((p > 0.5) & inside)
    return np.asarray((p.argmax(axis=0)[None] == np.arange(len(p))[:, None, None]) & inside)


def _name(index: int, labels: Sequence[str] | None) -> str:
    return repr(labels[index]) if labels else str(index)
