"""Which class to explain: an index, a label, or each row's top-1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcam.errors import TargetError, listing, nearest

TOP1 = -1
_DIGITS = 1000  # of an index in a text
_NEAREST = 5  # classes in a message


def resolve(
    target: Any, rows: int, classes: int, labels: Sequence[str] | None = None, default: int = TOP1
) -> np.ndarray:
    """Resolve a target to class indices, one per row, -1 where the row's own top-1 class is meant.

    Arguments:
        target: None, -1 (top-1), an index (NumPy integers too), a label, or a sequence with one of these per row.
        rows: number of rows of the batch.
        classes: number of classes.
        labels: class names, by index.
        default: the class that None means.

    Returns:
        int64 `[rows]`.

    Raises:
        TargetError: a sequence of another length, an index outside 0..classes-1, an unknown or ambiguous label.
    """
    if listed(target):
        check_count(len(target), rows)
        indices = [index(item, classes, labels, default) for item in target]
    else:
        indices = [index(target, classes, labels, default)] * rows
    return np.asarray(indices, dtype=np.int64)


def listed(target: Any) -> bool:
    """Whether a target is a sequence with one per row."""
    return isinstance(target, (list, tuple)) or (isinstance(target, np.ndarray) and target.ndim > 0)


def check_count(targets: int, rows: int) -> None:
    """Refuse a list of targets that is not one per row.

    Raises:
        TargetError: another length.
    """
    if targets != rows:
        raise TargetError(f"got {targets} targets for {rows} pictures; pass one for all, or one per picture")


def refuse_masked(classes: np.ndarray, scores: np.ndarray, labels: Sequence[str] | None = None) -> None:
    """Refuse a class whose score is -inf: the model rules it out, and nothing about its score can be explained.

    Arguments:
        classes: one per row, `[N]`.
        scores: of each class, `[N, classes]`.

    Raises:
        TargetError: a row's class is masked.
    """
    masked = np.flatnonzero(np.isneginf(scores[np.arange(len(classes)), classes]))
    if len(masked):
        row, index = int(masked[0]), int(classes[masked[0]])
        name = f"{labels[index]!r} ({index})" if labels else str(index)
        others = int(np.isfinite(scores[row]).sum())
        advice = "choose a class that it scores" if others else "it masks every other class too: check the model"
        raise TargetError(
            f"class {name} is masked: its score is -inf for picture {row + 1}, as the model rules it out; {advice}"
        )


def index(target: Any, classes: int, labels: Sequence[str] | None = None, default: int = TOP1) -> int:
    """The class index that one target means, see `resolve`.

    Raises:
        TargetError: an index outside 0..classes-1, an unknown or ambiguous label, or something else.
    """
    if isinstance(target, np.ndarray) and target.ndim == 0:
        target = target.item()
    if target is None:
        return default
    if isinstance(target, str):
        return find_label(target, labels)
    if isinstance(target, (bool, np.bool_)) or not isinstance(target, (int, np.integer)):
        raise TargetError(
            f"target {target!r} is a {type(target).__name__}; expected an index, a label, or None for top-1"
        )
    number = int(target)
    if number != TOP1 and not 0 <= number < classes:
        raise TargetError(
            f"target {number} is not a class of this model; expected 0 to {classes - 1}, or -1 for the top-1"
        )
    return number


def by_text(text: str, labels: Sequence[str] | None) -> int | str:
    """A class as a user types it: a label, or an index where no label is those digits."""
    digits = text.strip()
    if not re.fullmatch(r"[+-]?\d+", digits):
        return text
    names = {part.strip().casefold() for label in labels or () for part in (label, *label.split(","))}
    # Python refuses to read numbers of thousands of digits; no label is that long, and none is an index
    return text if digits.casefold() in names or len(digits) > _DIGITS else int(digits)


def find_label(label: str, labels: Sequence[str] | None) -> int:
    """The index of a label, matched without case: the whole label first, then its comma-separated synonyms.

    Raises:
        TargetError: there are no labels, none matches, or several do.
    """
    if not labels:
        raise TargetError(
            f"target {label!r} is a label, but the model carries no labels; pass the class index or give labels"
        )
    text = label.strip().casefold()
    whole = [i for i, name in enumerate(labels) if name.strip().casefold() == text]
    parts = [i for i, name in enumerate(labels) if text in (part.strip().casefold() for part in name.split(","))]
    for matches in (whole, parts):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise TargetError(
                f"label {label!r} is ambiguous: classes {', '.join(f'{i} ({labels[i]})' for i in matches)}; "
                "pass the index instead"
            )
    synonyms: dict[str, int] = {}
    for i, name in enumerate(labels):
        for part in (*name.split(","), name):
            synonyms.setdefault(part.strip(), i)
    near = dict.fromkeys(synonyms[name] for name in nearest(label, synonyms, 4 * _NEAREST))
    names = [f"{labels[i]} ({i})" for i in list(near)[:_NEAREST]]
    raise TargetError(f"no class is called {label!r}; the nearest are {listing(names)}")


def best_classes(probabilities: np.ndarray, count: int) -> np.ndarray:
    """The indices of the `count` largest of `[classes]`, largest first, of equal ones the lower index first.

    Those below the smallest of them are not sorted: of a thousand classes, a tenth of the time.
    """
    places: np.ndarray = np.arange(len(probabilities))
    if 0 < count < len(probabilities) and not np.isnan(probabilities.max()):
        places = np.flatnonzero(probabilities >= np.partition(probabilities, -count)[-count])
    return np.asarray(places[np.argsort(-probabilities[places], kind="stable")[:count]])
