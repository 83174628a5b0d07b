"""One number per class from the columns of a picture: a detector's best scores, the shares of cells."""

from __future__ import annotations

import numpy as np

from onnxcam.targets.detections import best_classes
from onnxcam.targets.tasks import Detect, Segment, Task


def class_table(task: Task, scores: np.ndarray) -> np.ndarray:
    """One number per class, float32 `[N, classes]`.

    Of a detector the highest score of each class among the candidates, of a segmentation the share of cells in which it
    is the highest (of a mask of a single class, above a half). Other tasks have no classes: their columns themselves.

    Arguments:
        scores: `[N, columns]`.
    """
    if isinstance(task, Detect):
        rows = [_best_scores(task, row) for row in scores]
        table = np.zeros((len(rows), max((len(row) for row in rows), default=0)), np.float32)
        for row, values in zip(rows, table, strict=True):
            values[: len(row)] = row
        return table
    if isinstance(task, Segment):
        return np.stack([_shares(task, row) for row in scores])
    return scores.astype(np.float32, copy=False)


def _best_scores(task: Detect, row: np.ndarray) -> np.ndarray:
    if task.labels is None:
        if not task.count(len(row)):
            return np.zeros(max(task.size, 1))
        best = task.probabilities(row).max(axis=0)
        if task.background is not None:
            best[task.background] = 0.0
        return np.asarray(best)
    classes, scores = best_classes(task, row)
    table = np.zeros(max(task.size, int(classes.max(initial=-1)) + 1, 1))
    np.maximum.at(table, np.maximum(classes, 0), scores)
    return table


def _shares(task: Segment, row: np.ndarray) -> np.ndarray:
    cells = row.reshape(-1, task.channels).T if task.channels_last else row.reshape(task.channels, -1)
    if task.channels == 1:
        limit = 0.5 if task.activation is None else 0.0
        return np.array([(cells[0] > limit).mean()], np.float32)
    return np.asarray(np.bincount(cells.argmax(axis=0), minlength=task.channels) / cells.shape[1], np.float32)
