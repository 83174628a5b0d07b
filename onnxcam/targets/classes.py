"""Which class to explain: indices, labels, or the model's own first choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcam.errors import TargetError, listing, nearest

Target = int | str | None
TOP1 = -1


def resolve(target: Any, rows: int, classes: int, labels: Sequence[str] | None = None) -> np.ndarray:
    """Class indices, one per row, -1 where the row's own top-1 class is meant.

    Arguments:
        target: None or -1 (top-1), an index (NumPy integers too), a label, or a sequence with one of these per row.
        rows: number of rows of the batch.
        classes: number of classes.
        labels: class names, by index.

    Returns:
        int64 `[rows]`.

    Raises:
        TargetError: a sequence of another length, an index outside 0..classes-1, an unknown or ambiguous label.
    """
    if isinstance(target, (list, tuple)) or (isinstance(target, np.ndarray) and target.ndim):
        if len(target) != rows:
            raise TargetError(f"got {len(target)} targets for {rows} pictures; pass one for all, or one per picture")
        chosen = [_one(t, classes, labels) for t in target]
    else:
        chosen = [_one(target, classes, labels)] * rows
    return np.asarray(chosen, dtype=np.int64)


def _one(target: Any, classes: int, labels: Sequence[str] | None) -> int:
    if isinstance(target, np.ndarray) and target.ndim == 0:
        target = target.item()
    if target is None:
        return TOP1
    if isinstance(target, str):
        return find_label(target, labels)
    if isinstance(target, (bool, np.bool_)) or not isinstance(target, (int, np.integer)):
        raise TargetError(
            f"target {target!r} is a {type(target).__name__}; expected an index, a label, or None for top-1"
        )
    index = int(target)
    if index != TOP1 and not 0 <= index < classes:
        raise TargetError(f"target {index} is no class of this model; expected 0 to {classes - 1}, or -1 for the top-1")
    return index


def find_label(label: str, labels: Sequence[str] | None) -> int:
    """The index of a label, matched without case: the whole label first, then its comma-separated synonyms.

    Raises:
        TargetError: no labels are known, none matches, or several do.
    """
    if not labels:
        raise TargetError(
            f"target {label!r} is a label, but the model carries no labels; pass the class index or give labels"
        )
    wanted = label.strip().casefold()
    whole = [i for i, held in enumerate(labels) if held.strip().casefold() == wanted]
    parts = [i for i, held in enumerate(labels) if wanted in (part.strip().casefold() for part in held.split(","))]
    for found in (whole, parts):
        if len(found) == 1:
            return found[0]
        if found:
            raise TargetError(
                f"label {label!r} is ambiguous: classes {', '.join(f'{i} ({labels[i]})' for i in found)}; "
                "pass the index instead"
            )
    synonyms = {part.strip(): i for i, held in enumerate(labels) for part in (*held.split(","), held)}
    near = [f"{labels[synonyms[name]]} ({synonyms[name]})" for name in nearest(label, synonyms)]
    raise TargetError(f"no class is called {label!r}; the nearest are {listing(dict.fromkeys(near))}")


def chosen(target: np.ndarray, scores: np.ndarray, kind: str) -> np.ndarray:
    """The classes really explained: `target` with -1 replaced by each row's top-1, int64 `[N]`."""
    if kind == "binary_logit":
        top = (scores[:, 0] > 0).astype(np.int64)
    else:
        top = scores.argmax(axis=1).astype(np.int64)
    return np.where(target < 0, top, target)


def probabilities(scores: np.ndarray, kind: str) -> np.ndarray:
    """Probabilities `[N, classes]` from logits `[N, K]`, in float32.

    Softmax for `logits`; a sigmoid each for `multilabel`; (1 - p, p) for `binary_logit`.
    """
    if kind == "logits":  # in few calls: beside a small model each counts
        top = np.maximum.reduce(scores, axis=1, keepdims=True)
        found: np.ndarray = np.subtract(scores, top, dtype=np.float64)
        np.exp(found, out=found)
        found /= np.add.reduce(found, axis=1, keepdims=True)
        return found.astype(np.float32)
    logits: np.ndarray = scores.astype(np.float64)
    p = np.where(logits >= 0, 1.0, np.exp(np.minimum(logits, 0))) / (1.0 + np.exp(-np.abs(logits)))
    if kind == "binary_logit":
        p = np.concatenate([1.0 - p, p], axis=1)
    return np.asarray(p, dtype=np.float32)
