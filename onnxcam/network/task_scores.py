"""What scores of candidates are, measured: probabilities or logits, and which column is of no object."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from onnxcam.errors import ModelError
from onnxcam.network import task_boxes
from onnxcam.network.task_boxes import Declared, settled_by
from onnxcam.targets.tasks import SIGMOID, SOFTMAX, activate

_DOMINANT = 0.5  # mean probability of "no object" among candidates, most of which are of no object
_SUM = 1e-3
UNIT = 1 + 1e-5  # probabilities are not above it
_MOST_CLASSES = 1e5


@dataclass(frozen=True)
class Scores:
    """A reading of `[M, K]`: as of `Detect`."""

    activation: str | None
    background: int | None
    warnings: tuple[str, ...] = ()


def read(tables: list[np.ndarray], value: str, names: Collection[int], declared: Declared) -> Scores:
    """The meaning of the scores of all candidates.

    Arguments:
        tables: `[M, K]` of each picture.
        names: how many class names the file may have.

    Raises:
        ModelError: it cannot be told.
    """
    scores = np.concatenate(tables).astype(np.float64)
    scores = scores[np.isfinite(scores).all(axis=1)]
    columns = scores.shape[1]
    if not len(scores):
        raise ModelError(f"the scores {value!r} are not finite on any picture that was measured")
    inside = bool(scores.min() >= 0 and scores.max() <= UNIT)
    if inside and declared.activation in (None, task_boxes.PLAIN):
        sums = scores.sum(axis=1)
        if columns < 2 or np.abs(sums - 1).max() > _SUM:
            return Scores(None, _background(scores, value, names, declared) if declared.background else None)
        return Scores(None, _background(scores, value, names, declared))
    activation = declared.activation or _activation(scores, value)
    if activation == task_boxes.PLAIN:
        raise ModelError(
            f"the scores {value!r} take {scores.min():.3g} to {scores.max():.3g} and are no probabilities; "
            + settled_by(task_boxes.SIGMOID, task_boxes.SOFTMAX)
        )
    if activation == SIGMOID:
        return Scores(SIGMOID, _background(scores, value, names, declared) if declared.background else None)
    return Scores(SOFTMAX, _background(activate(scores, SOFTMAX), value, names, declared))


def doubt(tables: list[np.ndarray], declared: Declared) -> str | None:
    """Why numbers are no scores: above 1 as no probability is, and never below 0 as logits of most candidates are, such
    as percentages and areas. None where they may be scores, or where the user says what they are."""
    scores = np.concatenate(tables).astype(np.float64)
    scores = scores[np.isfinite(scores)]
    if declared.activation is not None or not len(scores) or scores.min() < 0 or scores.max() <= UNIT:
        return None
    return (
        f"its numbers take {scores.min():.3g} to {scores.max():.3g}, and are neither probabilities, which end at 1, "
        "nor logits, most of which are below 0; if they are logits, "
        + settled_by(task_boxes.SIGMOID, task_boxes.SOFTMAX)
    )


def _activation(scores: np.ndarray, value: str) -> str:
    """Whether logits are of a softmax with a class for "no object", or of one sigmoid per class.

    Most candidates are of no object: one logit, the first or the last, is above 0 and above all others then; or all
    are below 0.

    Raises:
        ModelError: neither is so.
    """
    if scores.shape[1] == 1:
        return SIGMOID
    share = activate(scores, SOFTMAX).mean(axis=0)
    best = int(share.argmax())
    if best in (0, len(share) - 1) and share[best] > _DOMINANT and np.median(scores[:, best]) > 0:
        return SOFTMAX
    negative = float((scores.max(axis=1) < 0).mean())
    if negative > _DOMINANT:
        return SIGMOID
    raise ModelError(
        f"the scores {value!r} are logits ({scores.min():.3g} to {scores.max():.3g}) of a softmax or of sigmoids, and "
        f'the numbers do not tell which: no column stands for "no object" in most of {len(scores)} candidates (the '
        f"highest mean share is {share[best]:.0%}, of column {best}), and all columns are below 0 in {negative:.0%}; "
        + settled_by(task_boxes.SIGMOID, task_boxes.SOFTMAX)
    )


def _background(p: np.ndarray, value: str, names: Collection[int], declared: Declared) -> int | None:
    """The column of "no object" among probabilities that sum to 1.

    Raises:
        ModelError: it cannot be told.
    """
    columns = p.shape[1]
    if declared.background is not None:
        return {task_boxes.FIRST: 0, task_boxes.LAST: columns - 1}.get(declared.background)
    share = p.mean(axis=0)
    best = int(share.argmax())
    if best in (0, columns - 1) and share[best] > _DOMINANT:
        return best
    raise ModelError(
        f'the scores {value!r} of a candidate sum to 1 over {columns} columns, and which of them means "no object" '
        f"cannot be told: the highest mean is {share[best]:.2g}, of column {best}; "
        + settled_by(task_boxes.FIRST, task_boxes.LAST, task_boxes.NONE)
    )


def distributions(value: str, orders: list[list[np.ndarray]]) -> str | None:
    """Why a table holds no boxes: each of its rows is a distribution over classes, as of a frame or of a member of an
    ensemble. None if it is none.

    Arguments:
        orders: the tables `[M, K]` of all pictures, in each of the orders of their axes.
    """
    for tables in orders:
        if tables and all(table.shape[1] > 1 and _sums_to_one(table) for table in tables):
            m, classes = tables[0].shape
            return (
                f"{value!r} holds {m} distributions over {classes} classes, and no boxes: average them in the file, or "
                "name a value [N, classes] inside it with `scores=` (on the command line: --scores NAME)"
            )
    return None


def _sums_to_one(table: np.ndarray) -> bool:
    numbers = table.astype(np.float64)
    return bool((numbers >= 0).all()) and bool((np.abs(numbers.sum(axis=1) - 1) < _SUM).all())


def in_unit(values: np.ndarray) -> bool:
    """Whether there are numbers, and all are probabilities."""
    return bool(len(values)) and bool((values >= 0).all()) and bool((values <= UNIT).all())


def is_unit(rows: list[np.ndarray]) -> bool:
    """Whether no number is anything but a probability."""
    joined = np.concatenate(rows)
    return not len(joined) or in_unit(joined.astype(np.float64))


def is_label(values: np.ndarray) -> bool:
    """Whether numbers are indices of classes; padding is -1 in some files."""
    return (
        bool((values == np.rint(values)).all()) and bool((values >= -1).all()) and bool((values < _MOST_CLASSES).all())
    )


def all_integral(rows: list[np.ndarray]) -> bool:
    """Whether all are whole numbers."""
    return all(bool((row == np.rint(row)).all()) for row in rows)


def all_equal(rows: list[np.ndarray]) -> bool:
    """Whether several numbers are all 0, or all 1."""
    joined = np.concatenate(rows)
    return len(joined) > 1 and bool((joined == joined[0]).all()) and joined[0] in (0, 1)
