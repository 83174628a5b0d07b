"""Boxes of a detector: which candidate a user means, and the objective of one of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxcam.errors import TargetAbsent, TargetError
from onnxcam.targets.detections import CONFIDENCE, best_class, best_classes, detections
from onnxcam.targets.scalar_objectives import (
    BOX_EDGE,
    BOX_SCORE,
    BoxNumber,
    Combination,
    OfOnePicture,
    Product,
    Subject,
    iou,
    moves,
)
from onnxcam.targets.scalars import EDGES, SCORE, Box, Placement, describe
from onnxcam.targets.tasks import Detect, Detection, Size

Labels = Sequence[str] | None


def objective(task: Detect, target: Box, row: np.ndarray, placement: Placement, labels: Labels) -> OfOnePicture:
    """The objective of one number of a box.

    Arguments:
        target: its class by index.
        row: `[columns]` of the unchanged picture.
        placement: how the picture lies on the model's input.

    Raises:
        TargetAbsent: there is no such box on this picture; the message says which there are.
        TargetError: a candidate that the model has on no picture, or a point outside the picture.
    """
    candidate, class_index, doubt = find(task, target, row, placement, labels)
    return of_candidate(task, candidate, class_index, target.part, row, placement, doubt)


def of_candidate(
    task: Detect,
    candidate: int,
    class_index: int,
    part: str,
    row: np.ndarray,
    placement: Placement,
    doubt: str | None = None,
) -> OfOnePicture:
    """The objective of one number of a candidate.

    Arguments:
        part: one of `onnxcam.targets.scalars.PARTS`.
        doubt: what is doubtful in the choice.
    """
    size, count = placement.input_size, task.count(len(row))
    edges = task.pixels(task.boxes.read(row, count)[candidate], size)
    p = task.probabilities_of(row, candidate)
    score = float(p[0] if task.labels is not None else p[class_index])
    subject = Subject(
        class_index,
        None,
        score,
        (float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3])),
        candidate,
        describe(Box(candidate, part=part)),
        doubt,
    )
    if moves(task) or part not in (SCORE, *EDGES):
        return BoxNumber(subject, task, candidate, class_index, part, size, edges, len(row))
    if part != SCORE:
        columns = task.boxes.columns(count)[candidate]
        return Combination(subject, columns, task.matrix(size)[:, EDGES.index(part)], BOX_EDGE)
    terms = task.terms(candidate, class_index, len(row))
    if len(terms) > 1:
        return Product(subject, terms)
    return Combination(subject, terms, np.ones(1), BOX_SCORE)


def find(
    task: Detect, target: Box, row: np.ndarray, placement: Placement, labels: Labels
) -> tuple[int, int, str | None]:
    """The candidate that a target means, its class, and a sentence about what is doubtful in it."""
    count = task.count(len(row))
    nothing = TargetAbsent("the model reports no box on this picture: there is nothing to explain")
    if not count:
        raise nothing
    if target.index is not None:
        if target.index >= count:
            one = "one candidate, index 0" if count == 1 else f"{count:,} candidates, 0 to {count - 1}"
            raise TargetError(f"the box {target.index} is not one of this picture's; the model has {one}")
        return target.index, best_class(task, row, target.index), None
    classes, scores = best_classes(task, row)
    if not (np.isnan(scores) | (scores > 0)).any():
        raise nothing
    reported = detections(task, row, placement.input_size, labels)
    matching = [one for one in reported if target.label is None or one.class_index == target.label]
    if target.label is not None and not matching:
        raise TargetAbsent(_no_label(task, target.label, row, reported, labels))
    if target.at is not None:
        matching = _at(matching, target.at, placement)
    place = target.rank or 0
    if place >= len(matching) and target.rank:
        ranks = f"{len(matching)} have one, rank 0 to {len(matching) - 1}" if matching else "none has one"
        raise TargetAbsent(f"rank {place} is not a box of this picture: of a score of {CONFIDENCE:g} or more {ranks}")
    if matching:
        return matching[place].index, matching[place].class_index, None
    best = int(np.where(np.isnan(scores), -np.inf, scores).argmax())
    name = _name(int(classes[best]), labels)
    doubt = (
        f"no box has a score of {CONFIDENCE:g} or more on this picture: the best candidate is explained, index {best} "
        f"({name}) with {scores[best]:.3g}"
    )
    return best, int(classes[best]), doubt


def likest(task: Detect, row: np.ndarray, class_index: int, box: Sequence[float], input_size: Size) -> int:
    """The candidate of another picture that is most like a box: the highest score of its class times the overlap.

    Arguments:
        row: `[columns]` of that picture, which has a candidate.
        box: x0, y0, x1, y1 in pixels of the model's input.
    """
    count = task.count(len(row))
    p = task.probabilities(row)
    if task.labels is not None:
        of_class = task.labels.read(row, count)[:, 0].round() == class_index
        likely = np.where(of_class, p[:, 0], 0.0)
    else:
        likely = p[:, class_index]
    overlaps = iou(task.pixels(task.boxes.read(row, count), input_size), np.asarray(box))
    return int((likely * overlaps).argmax())


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
        TargetAbsent: there is none; the nearest is named.
        TargetError: the point lies outside the picture.
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
        raise TargetAbsent(f"no box at the point {x:g}, {y:g}: none has a score of {CONFIDENCE:g} or more")
    distances = [np.hypot(max(b[0] - x, 0, x - b[2]), max(b[1] - y, 0, y - b[3])) for _, b in placed]
    near, box = placed[int(np.argmin(distances))]
    edges = ", ".join(f"{edge:.0f}" for edge in box)
    raise TargetAbsent(
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
