"""From the scores of a detector to its boxes: each candidate's best class, a threshold, and an NMS where it is due."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcam.targets.tasks import Detect, Detection, Size

CONFIDENCE, OVERLAP, MOST = 0.25, 0.45, 300


def detections(
    task: Detect,
    scores: np.ndarray,
    input_size: Size,
    names: Sequence[str] | None = None,
    *,
    confidence: float = CONFIDENCE,
    overlap: float = OVERLAP,
    most: int = MOST,
) -> list[Detection]:
    """The objects of one picture, best first (the lower candidate on ties).

    Arguments:
        scores: one row of the readout, `[columns]`.
        input_size: height and width of the model's input, pixels.
        names: of the classes.
        confidence: the lowest score of an object.
        overlap: of two candidates of one class whose IoU is above it, the NMS drops the one with the lower score;
            nothing is dropped where the task is not `overlapping`.
        most: how many at most.

    Returns:
        detections whose boxes are in pixels of the model's input.
    """
    row = np.asarray(scores).reshape(-1)
    classes, best = best_classes(task, row)
    order = np.argsort(-best, kind="stable")
    order = order[(best[order] >= confidence) & (best[order] > 0)]
    boxes = task.pixels(task.boxes.read(row, task.count(len(row)))[order], input_size)
    keep = np.arange(len(order))
    if task.overlapping:
        keep = suppress(boxes, classes[order], overlap, most)
    return [
        Detection(
            int(order[place]),
            name_of(int(classes[order[place]]), names),
            int(classes[order[place]]),
            float(best[order[place]]),
            (float(boxes[place, 0]), float(boxes[place, 1]), float(boxes[place, 2]), float(boxes[place, 3])),
        )
        for place in keep[:most]
    ]


def name_of(class_index: int, names: Sequence[str] | None) -> str:
    """A class's name, or its index where no name is known."""
    return names[class_index] if names is not None and 0 <= class_index < len(names) else str(class_index)


def best_classes(task: Detect, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best class of each candidate but "no object", int64 `[M]`, and its score, float64 `[M]`."""
    p = task.probabilities(row)
    if task.labels is not None:
        labels = task.labels.read(row, len(p))[:, 0]
        return np.rint(labels).astype(np.int64), p[:, 0]
    if task.background is not None:
        p = p.copy()
        p[:, task.background] = -np.inf
    classes = p.argmax(axis=1) if p.shape[1] else np.zeros(len(p), np.int64)
    return classes.astype(np.int64), p[np.arange(len(p)), classes]


def best_class(task: Detect, row: np.ndarray, candidate: int) -> int:
    """The best class of one candidate, see `best_classes`."""
    if task.labels is not None:
        return int(np.rint(task.labels.read(row, task.count(len(row)))[candidate, 0]))
    p = task.probabilities_of(row, candidate)
    if task.background is not None:
        p = p.copy()
        p[task.background] = -np.inf
    return int(p.argmax()) if len(p) else 0


def suppress(boxes: np.ndarray, classes: np.ndarray, overlap: float, most: int) -> np.ndarray:
    """Greedy non-maximum suppression within each class.

    Arguments:
        boxes: x0, y0, x1, y1, `[n, 4]`, best first.
        classes: `[n]`.
        overlap: the highest IoU with a better box that a box is reported with.
        most: how many at most.

    Returns:
        places of the boxes that remain, best first, int64.
    """
    left = np.arange(len(boxes))
    remaining: list[int] = []
    while len(left) and len(remaining) < most:
        best, left = left[0], left[1:]
        remaining.append(int(best))
        same = classes[left] == classes[best]
        left = left[~(same & (iou(boxes[best], boxes[left]) > overlap))]
    return np.array(remaining, np.int64)


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box `[4]` with others `[n, 4]`, float64 `[n]`; 0 where both are empty."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    inner = np.clip(high - low, 0, None).prod(axis=1)
    areas = np.clip(others[:, 2:] - others[:, :2], 0, None).prod(axis=1)
    union = areas + float(np.clip(box[2:] - box[:2], 0, None).prod()) - inner
    return np.asarray(inner / np.where(union > 0, union, 1.0))
