"""Objectives: the one number per row that is explained, a function of its scores, and its gradient.

The logit of a class by default. Instead of an index or a label, `target` takes

    Contrast("tabby", "tiger cat")   why one rather than the other: the difference of two logits
    Contrast()                       the row's best class and its runner-up
    Probability("tabby")             the class's probability instead of its logit
    Weights({"tabby": 1, "lynx": 1}) a weighted sum of logits

Each is a cotangent `[N, K]` of the scores to the backward graph, so one graph serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxcam.errors import TargetError
from onnxcam.targets.classes import TOP1, check_count, refuse_masked
from onnxcam.targets.classes import index as class_index
from onnxcam.targets.classes import resolve as resolve_classes
from onnxcam.targets.difference import Scalar
from onnxcam.targets.readout import Readout

Labels = Sequence[str] | None
# kinds of objective
LOGIT, CONTRAST, PROBABILITY, WEIGHTS, FINER = "logit", "contrast", "probability", "weights", "finer"
# what the score of a class is called where it is not a logit
LOG_PROBABILITY, VALUE = "log_probability", "value"


class Objective(Protocol):
    """One number per row of a batch.

    Attributes:
        classes: the class each row is explained for, int64 `[N]`: the one its map is named after.
        linear: whether the number is a linear function of the scores.
    """

    classes: np.ndarray
    linear: bool

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The numbers of changed rows, float64 `[M]`, from their scores `[M, K]`; `rows` says which row each was."""

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """d value / d scores, float64 `[M, K]`."""

    def describe(self, row: int) -> tuple[str, int | None]:
        """The kind of a row's objective, and the class it is contrasted with."""


class Linear:
    """A weighted sum of scores: `weights` `[N, K]` of the scores as the model emits them."""

    linear = True

    def __init__(
        self, weights: np.ndarray, classes: np.ndarray, kind: str = LOGIT, others: np.ndarray | None = None
    ) -> None:
        self.weights = weights
        self.classes = classes
        self._kind = kind
        self._others = others

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """sum_k w_k y_k; scores without a weight count nothing, also those of masked classes, which are -inf."""
        weights = self.weights[rows]
        return np.asarray((np.where(weights == 0, 0.0, scores.astype(np.float64)) * weights).sum(axis=1))

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """w."""
        return np.asarray(self.weights[rows])

    def describe(self, row: int) -> tuple[str, int | None]:
        """The kind and the other class of the constructor."""
        return self._kind, None if self._others is None else int(self._others[row])


class Logit(Linear):
    """The score of one class per row."""


class Likelihood:
    """The probability of one class per row."""

    linear = False

    def __init__(self, classes: np.ndarray, readout: Readout) -> None:
        self.classes = classes
        self._readout = readout

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """p_c."""
        p = self._readout.probabilities(scores).astype(np.float64)
        return np.asarray(p[np.arange(len(rows)), self.classes[rows]])

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """p_c (1_c - p) for a softmax, p (1 - p) for a sigmoid."""
        return self._readout.probability_cotangent(scores, self.classes[rows])

    def describe(self, row: int) -> tuple[str, int | None]:
        """A probability."""
        return PROBABILITY, None


class Finer:
    """FinerCAM's: the class against those nearest to it in score, sum_d p_d (y_c - alpha y_d) / sum_d p_d.

    https://arxiv.org/abs/2501.11309; the nearest classes are those of the unchanged rows. Its authors' code adds 1e-9
    to the divisor, beside which the rivals' probabilities vanish where the model is certain: here it is left out.
    """

    linear = False

    def __init__(self, classes: np.ndarray, rivals: np.ndarray, alpha: float) -> None:
        self.classes = classes
        self._rivals = rivals
        self._alpha = alpha

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The weighted mean of the differences."""
        share, differences = self._parts(scores, rows)
        return np.asarray((share * differences).sum(axis=1))

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The weights p_d depend on the scores too and are differentiated with the rest, as in the source."""
        share, differences = self._parts(scores, rows)
        value = (share * differences).sum(axis=1, keepdims=True)
        dy = np.zeros(scores.shape)
        row = np.arange(len(rows))[:, None]
        # with s_d = p_d / sum p: ds_d / dy_j = s_d (1_dj - s_j)
        np.add.at(dy, (row, self._rivals[rows]), share * (differences - value - self._alpha))
        dy[row[:, 0], self.classes[rows]] += 1
        return dy

    def describe(self, row: int) -> tuple[str, int | None]:
        """Several rivals at once."""
        return FINER, None

    def _parts(self, scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p_d / sum p `[M, D]`, and y_c - alpha y_d `[M, D]`."""
        y = scores.astype(np.float64)
        row, rivals = np.arange(len(rows))[:, None], self._rivals[rows]
        of_rivals = y[row, rivals]
        share = np.exp(of_rivals - of_rivals.max(axis=1, keepdims=True))
        y_class = y[row[:, 0], self.classes[rows]][:, None]
        return share / share.sum(axis=1, keepdims=True), y_class - self._alpha * of_rivals


class PerRow:
    """An objective of its own for each row."""

    def __init__(self, objectives: list[Objective]) -> None:
        self.objectives = objectives
        self.classes = np.concatenate([objective.classes for objective in objectives])
        self.linear = all(objective.linear for objective in objectives)

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The value of each row's objective."""
        return self._gather("value", scores, rows)

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The cotangent of each row's objective."""
        return self._gather("cotangent", scores, rows)

    def describe(self, row: int) -> tuple[str, int | None]:
        """The description of the row's objective."""
        return self.objectives[row].describe(0)

    def _gather(self, quantity: str, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        gathered: np.ndarray | None = None
        for row in np.unique(rows):
            places = np.flatnonzero(rows == row)
            part = getattr(self.objectives[int(row)], quantity)(scores[places], np.zeros(len(places), np.int64))
            if gathered is None:
                gathered = np.empty((len(rows), *part.shape[1:]))
            gathered[places] = part
        return np.empty(0) if gathered is None else gathered


@dataclass(frozen=True)
class Contrast(Scalar):
    """Why `target` rather than `other`: the difference of their logits.

    Arguments:
        target: index, label, -1 for the row's top-1, or None for the class that `target=None` means.
        other: index, label, or None for the best of the other classes.
    """

    target: Any = None
    other: Any = None


@dataclass(frozen=True)
class Probability(Scalar):
    """The probability of a class instead of its logit.

    Arguments:
        target: index, label, -1 for the row's top-1, or None for the class that `target=None` means.
    """

    target: Any = None


@dataclass(frozen=True, eq=False)
class Weights(Scalar):
    """A weighted sum of logits: a vector with one weight per class, or weights by index or label."""

    weights: Any


SPECIAL = (Contrast, Probability, Weights)


def special(target: Any) -> bool:
    """Whether a target is more than a class per row."""
    if isinstance(target, (list, tuple)):
        return any(isinstance(item, SPECIAL) for item in target)
    return isinstance(target, SPECIAL)


def by_index(target: Any, readout: Readout, labels: Labels = None) -> Any:
    """One target with every class by its index: None, an index, -1, or a `Contrast`, `Probability` or `Weights` of
    these. Nothing about it can be wrong afterwards but a contrast of a row's top-1 class with itself.

    Raises:
        TargetError: as `classes.index`; or weights that are not one finite number per class; or a contrast of a class
            with itself.
    """

    def index(item: Any) -> int | None:
        return None if item is None else class_index(item, readout.size, labels)

    if isinstance(target, Weights):
        return Weights(_vector(target.weights, readout.size, labels))
    if isinstance(target, Probability):
        return Probability(index(target.target))
    if isinstance(target, Contrast):
        first, other = index(target.target), index(target.other)
        if first is not None and first >= 0 and first == other:
            raise _with_itself(first, labels)
        return Contrast(first, None if other is not None and other < 0 else other)
    return index(target)


def resolve(target: Any, scores: np.ndarray, readout: Readout, labels: Labels = None, default: int = TOP1) -> Objective:
    """The objective that a target means for the rows of a batch.

    Arguments:
        target: None, -1, an index, a label, a `Contrast`, `Probability` or `Weights`; or a sequence with one per row.
        scores: `[N, K]` of the unchanged rows.
        default: the class that None means.

    Raises:
        TargetError: as `by_index`; a sequence of another length; or a class that the model masks (a score of -inf).
    """
    rows, per_class = len(scores), readout.per_class(scores)
    if isinstance(target, (list, tuple)) and special(target):
        check_count(len(target), rows)
        return PerRow([resolve(item, scores[k : k + 1], readout, labels, default) for k, item in enumerate(target)])
    if isinstance(target, Weights):
        weights = np.repeat(_vector(target.weights, readout.size, labels)[None], rows, axis=0)
        for index in np.flatnonzero(weights[0]):
            refuse_masked(np.full(rows, index), per_class, labels)
        return Linear(readout.fold(weights), weights.argmax(axis=1), WEIGHTS)
    if isinstance(target, Contrast):
        classes = readout.fill_top1(resolve_classes(target.target, rows, readout.size, labels, default), scores)
        return _contrast(classes, resolve_classes(target.other, rows, readout.size, labels), scores, readout, labels)
    plain = target.target if isinstance(target, Probability) else target
    classes = readout.fill_top1(resolve_classes(plain, rows, readout.size, labels, default), scores)
    refuse_masked(classes, per_class, labels)
    return Likelihood(classes, readout) if isinstance(target, Probability) else logit(classes, readout)


def logit(classes: np.ndarray, readout: Readout) -> Logit:
    """The score of one class per row `[N]`, the usual objective."""
    return Logit(readout.one_hot(classes), classes)


def probable(objective: Objective, readout: Readout) -> Objective:
    """The probability of a class where its score is the objective; any other objective as it is."""
    if isinstance(objective, PerRow):
        return PerRow([probable(one, readout) for one in objective.objectives])
    return Likelihood(objective.classes, readout) if isinstance(objective, Logit) else objective


def finer(classes: np.ndarray, scores: np.ndarray, readout: Readout, alpha: float, count: int) -> Objective:
    """FinerCAM's objective for one class per row `[N]`.

    Raises:
        TargetError: the model has too few classes to compare, or they are not rivals of one softmax.
    """
    columns = scores.shape[1]
    if not readout.exclusive or columns < 2:
        raise TargetError(
            f"finercam compares a class with its rivals under one softmax; this model has {readout.kind} scores of "
            f"{columns} column{'s' if columns > 1 else ''}: use gradcam"
        )
    rows = np.arange(len(scores))
    distance = np.abs(scores.astype(np.float64) - scores[rows, classes][:, None])
    distance[rows, classes] = np.inf
    finite = int(np.isfinite(distance).sum(axis=1).min(initial=columns))  # masked classes are no rivals
    if not finite:
        raise TargetError("finercam compares a class with its rivals, and the model masks all others: use gradcam")
    rivals = np.argsort(distance, axis=1, kind="stable")[:, : min(count, finite)]
    return Finer(classes, rivals, alpha)


def _contrast(classes: np.ndarray, others: np.ndarray, scores: np.ndarray, readout: Readout, labels: Labels) -> Linear:
    """The difference between the scores of two classes per row, -1 in `others` for the best of the rest."""
    rows = np.arange(len(scores))
    rest = readout.per_class(scores).astype(np.float64)
    rest[rows, classes] = -np.inf
    others = np.where(others < 0, rest.argmax(axis=1), others)
    same = np.flatnonzero(classes == others)
    if len(same):
        raise _with_itself(int(classes[same[0]]), labels)
    for index in (classes, others):
        refuse_masked(index, readout.per_class(scores), labels)
    return Linear(readout.one_hot(classes) - readout.one_hot(others), classes, CONTRAST, others)


def _with_itself(index: int, labels: Labels) -> TargetError:
    name = labels[index] if labels else index
    return TargetError(
        f"{name!r} is the target itself, and a contrast of {name!r} with itself says nothing; name another class to "
        "compare it with"
    )


def _vector(weights: Any, size: int, labels: Labels) -> np.ndarray:
    """One weight per class, float64 `[size]`."""
    if isinstance(weights, Mapping):
        vector = np.zeros(size)
        for key, weight in weights.items():
            index = class_index(key, size, labels)
            if index < 0:
                raise TargetError("weights by class name an index from 0 or a label; -1 (top-1) is not one")
            vector[index] += float(weight)
    else:
        vector = np.asarray(weights, np.float64)
    if vector.shape != (size,) or not np.isfinite(vector).all() or not vector.any():
        raise TargetError(
            f"got weights of shape {list(vector.shape)}; expected {size} finite numbers, one per class, not all zero"
        )
    return vector
