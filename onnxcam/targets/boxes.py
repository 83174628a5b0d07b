"""Boxes of a detector: which candidate a user means, and the objective of one of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxcam.errors import TargetError
from onnxcam.targets.detections import CONFIDENCE, best_classes, detections
from onnxcam.targets.scalar_objectives import (
    BOX_EDGE,
    BOX_SCORE,
    BoxNumber,
    Combination,
    OfOnePicture,
    Product,
    Subject,
    moves,
)
from onnxcam.targets.scalars import EDGES, SCORE, Box, Placement, describe
from onnxcam.targets.tasks import Detect, Detection

Labels = Sequence[str] | None


def objective(task: Detect, target: Box, row: np.ndarray, placement: Placement, labels: Labels) -> OfOnePicture:
    """The objective of one number of a box.

    Arguments:
        target: its class by index.
        row: `[columns]` of the unchanged picture.
        placement: how the picture lies on the model's input.

    Raises:
        TargetError: there is no such box; the message says which there are.
    """
    candidate, class_index, doubt = find(task, target, row, placement, labels)
    size, count = placement.input_size, task.count(len(row))
    edges = task.pixels(task.boxes.read(row, count)[candidate], size)
    p = task.probabilities(row)[candidate]
    score = float(p[0] if task.labels is not None else p[class_index])
    subject = Subject(
        class_index,
        None,
        score,
        (float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3])),
        candidate,
        describe(Box(candidate, part=target.part)),
        doubt,
    )
    if moves(task) or target.part not in (SCORE, *EDGES):
        return BoxNumber(subject, task, candidate, class_index, target.part, size, edges, len(row))
    if target.part != SCORE:
        columns = task.boxes.columns(count)[candidate]
        return Combination(subject, columns, task.matrix(size)[:, EDGES.index(target.part)], BOX_EDGE)
    terms = task.terms(candidate, class_index, len(row))
    if len(terms) > 1:
        return Product(subject, terms)
    return Combination(subject, terms, np.ones(1), BOX_SCORE)


def find(
    task: Detect, target: Box, row: np.ndarray, placement: Placement, labels: Labels
) -> tuple[int, int, str | None]:
    """The candidate that a target means, its class, and a sentence about what is doubtful in it."""
    count = task.count(len(row))
    classes, scores = best_classes(task, row)
    if not count:
        raise TargetError("the model reports no box on this picture: there is nothing to explain")
    if target.index is not None:
        if target.index >= count:
            one = "one candidate, index 0" if count == 1 else f"{count:,} candidates, 0 to {count - 1}"
            raise TargetError(f"the box {target.index} is not one of this picture's; the model has {one}")
        return target.index, int(classes[target.index]), None
    reported = detections(task, row, placement.input_size, labels)
    matching = [one for one in reported if target.label is None or one.class_index == target.label]
    if target.label is not None and not matching:
        raise TargetError(_no_label(task, target.label, row, reported, labels))
    if target.at is not None:
        matching = _at(matching, target.at, placement)
    place = target.rank or 0
    if place >= len(matching) and target.rank:
        ranks = f"{len(matching)} have one, rank 0 to {len(matching) - 1}" if matching else "none has one"
        raise TargetError(f"rank {place} is not a box of this picture: of a score of {CONFIDENCE:g} or more {ranks}")
    if matching:
        return matching[place].index, matching[place].class_index, None
    best = int(np.where(np.isnan(scores), -np.inf, scores).argmax())
    name = _name(int(classes[best]), labels)
    doubt = (
        f"no box has a score of {CONFIDENCE:g} or more on this picture: the best candidate is explained, index {best} "
        f"({name}) with {scores[best]:.3g}"
    )
    return best, int(classes[best]), doubt


def on_picture(detection: Detection, placement: Placement) -> Detection:
    """A detection with its box in pixels of the picture, within its edges."""
    return replace(detection, box=to_picture(detection.box, placement))


def to_picture(box: tuple[float, ...], placement: Placement) -> tuple[float, float, float, float]:
    """A box of the model's input in pixels of the picture, within its edges."""
    (height, width), (sy, sx), (top, left) = placement.picture_size, placement.scale, placement.offset
    x = [min(max((edge - left) / sx, 0.0), float(width)) for edge in (box[0], box[2])]
    y = [min(max((edge - top) / sy, 0.0), float(height)) for edge in (box[1], box[3])]
    return x[0], y[0], x[1], y[1]


def _at(boxes: list[Detection], at: tuple[float, float], placement: Placement) -> list[Detection]:
    """The boxes at a point of the picture.

    Raises:
        TargetError: there is none; the nearest is named.
    """
    height, width = placement.picture_size
    x, y = at
    if not (0 <= x < width and 0 <= y < height):
        raise TargetError(f"the point {x:g}, {y:g} lies outside the picture, which is {width} x {height} pixels")
    placed = [(one, to_picture(one.box, placement)) for one in boxes]
    inside = [one for one, (x0, y0, x1, y1) in placed if x0 <= x <= x1 and y0 <= y <= y1]
    if inside:
        return inside
    if not placed:
        raise TargetError(f"no box at the point {x:g}, {y:g}: none has a score of {CONFIDENCE:g} or more")
    distances = [np.hypot(max(b[0] - x, 0, x - b[2]), max(b[1] - y, 0, y - b[3])) for _, b in placed]
    near, box = placed[int(np.argmin(distances))]
    edges = ", ".join(f"{edge:.0f}" for edge in box)
    raise TargetError(
        f"no box at the point {x:g}, {y:g}; the nearest is index {near.index} ({near.label}) at {edges}, "
        f"{min(distances):.0f} pixels away"
    )


def _no_label(task: Detect, index: int, row: np.ndarray, reported: list[Detection], labels: Labels) -> str:
    """What to say where no box of a class is reported."""
    classes, scores = best_classes(task, row)
    others = sorted({one.label for one in reported})
    there = f"there are {', '.join(others)}" if others else "there is no box at all"
    of_class = scores if task.labels is None else np.where(classes == index, scores, -np.inf)
    if task.labels is None:
        of_class = task.probabilities(row)[:, index]
    best = int(of_class.argmax())
    is_best = task.labels is None and int(classes[best]) == index
    hint = f"; its best candidate is index {best} with {of_class[best]:.3g}" if is_best else ""
    return f"no box of {_name(index, labels)} has a score of {CONFIDENCE:g} or more on this picture: {there}{hint}"


def _name(index: int, labels: Labels) -> str:
    return labels[index] if labels and index < len(labels) else str(index)
