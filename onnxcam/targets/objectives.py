"""What is explained: one number per row, made of its class scores, and how that number changes with them.

A class's own logit by default. Instead of an index or a label, `target` takes

    Contrast("tabby", "tiger cat")   why one rather than the other: the difference of two logits
    Contrast()                       the row's best class and its runner-up
    Probability("tabby")             the class's probability instead of its logit
    Weights({"tabby": 1, "lynx": 1}) a weighted sum of logits

What each of them needs of the scores is a cotangent `[N, K]`, so one backward graph serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxcam.errors import TargetError
from onnxcam.targets import classes as targets

Labels = Sequence[str] | None
# kinds of objective
LOGIT, CONTRAST, PROBABILITY, WEIGHTS, FINER = "logit", "contrast", "probability", "weights", "finer"


class Objective(Protocol):
    """One number per row, settled for the rows of one batch.

    Attributes:
        classes: the class each row is explained for, int64 `[N]`: what a map is called after.
        linear: whether the number is a linear function of the logits.
    """

    classes: np.ndarray
    linear: bool

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The numbers of changed rows, float64 `[M]`, from their scores `[M, K]`; `rows` says which row each was."""

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """d value / d scores, float64 `[M, K]`."""

    def told(self, row: int) -> tuple[str, int | None]:
        """What is explained of a row: its kind, and the class it is contrasted with."""


class Linear:
    """A weighted sum of logits: `weights` `[N, K]` of the scores as the model emits them."""

    linear = True

    def __init__(
        self, weights: np.ndarray, classes: np.ndarray, kind: str = LOGIT, others: np.ndarray | None = None
    ) -> None:
        self.weights = weights
        self.classes = classes
        self._kind = kind
        self._others = others

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """sum_k w_k y_k."""
        return np.asarray((scores.astype(np.float64) * self.weights[rows]).sum(axis=1))

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """w."""
        return np.asarray(self.weights[rows])

    def told(self, row: int) -> tuple[str, int | None]:
        """As it was made."""
        return self._kind, None if self._others is None else int(self._others[row])


class Logit(Linear):
    """Each row's own class."""


class Likelihood:
    """The probability of one class per row."""

    linear = False

    def __init__(self, classes: np.ndarray, kind: str) -> None:
        self.classes = classes
        self._kind = kind

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """p_c."""
        p = targets.probabilities(scores, self._kind).astype(np.float64)
        return np.asarray(p[np.arange(len(rows)), self.classes[rows]])

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """p_c (1_c - p) for a softmax, p (1 - p) for a sigmoid."""
        p = targets.probabilities(scores, self._kind).astype(np.float64)
        chosen = self.classes[rows]
        own = p[np.arange(len(rows)), chosen][:, None]
        if self._kind == "binary_logit":
            return np.asarray(own * (1 - own) * np.where(chosen == 1, 1.0, -1.0)[:, None])
        hot = one_hot(chosen, scores.shape[1])
        return np.asarray(own * (1 - own) * hot if self._kind == "multilabel" else own * (hot - p))

    def told(self, row: int) -> tuple[str, int | None]:
        """A probability."""
        return PROBABILITY, None


class Finer:
    """FinerCAM's: the class against those nearest to it in score, sum_d p_d (y_c - alpha y_d) / (sum_d p_d + 1e-9).

    https://arxiv.org/abs/2501.11309; the nearest are found once, in the unchanged rows.
    """

    linear = False

    def __init__(self, classes: np.ndarray, rivals: np.ndarray, alpha: float) -> None:
        self.classes = classes
        self._rivals = rivals
        self._alpha = alpha

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The weighted mean of the differences."""
        p, differences, _ = self._parts(scores, rows)
        return np.asarray((p * differences).sum(axis=1) / (p.sum(axis=1) + 1e-9))

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The weights p_d depend on the scores too and are differentiated with the rest, as in the source."""
        p, differences, every = self._parts(scores, rows)
        total = p.sum(axis=1, keepdims=True) + 1e-9
        value = (p * differences).sum(axis=1, keepdims=True) / total
        found = np.zeros(every.shape)
        place = np.arange(len(rows))[:, None]
        by_weight = (differences - value) / total
        # dp_d / dy_j = p_d (1_dj - p_j)
        found -= every * (p * by_weight).sum(axis=1, keepdims=True)
        rivals = self._rivals[rows]
        np.add.at(found, (place, rivals), p * by_weight - self._alpha * p / total)
        found[place[:, 0], self.classes[rows]] += p.sum(axis=1) / total[:, 0]
        return found

    def told(self, row: int) -> tuple[str, int | None]:
        """Several rivals at once."""
        return FINER, None

    def _parts(self, scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        y = scores.astype(np.float64)
        every = np.exp(y - y.max(axis=1, keepdims=True))
        every /= every.sum(axis=1, keepdims=True)
        place, rivals = np.arange(len(rows))[:, None], self._rivals[rows]
        own = y[place[:, 0], self.classes[rows]][:, None]
        return every[place, rivals], own - self._alpha * y[place, rivals], every


@dataclass(frozen=True)
class Contrast:
    """Why `target` rather than `other`: the difference of their logits.

    Arguments:
        target: index, label, or None for the row's best class.
        other: index, label, or None for the best of the other classes.
    """

    target: Any = None
    other: Any = None


@dataclass(frozen=True)
class Probability:
    """The probability of a class (index, label, or None for the row's best) instead of its logit."""

    target: Any = None


@dataclass(frozen=True, eq=False)
class Weights:
    """A weighted sum of logits: a vector with one weight per class, or weights by index or label."""

    weights: Any


SPECIAL = (Contrast, Probability, Weights)


def special(target: Any) -> bool:
    """Whether a target is more than a class per row."""
    if isinstance(target, (list, tuple)):
        return any(isinstance(item, SPECIAL) for item in target)
    return isinstance(target, SPECIAL)


def resolve(target: Any, scores: np.ndarray, kind: str, classes: int, labels: Labels = None) -> Objective:
    """The objective that a target means for the rows of a batch.

    Arguments:
        target: None, -1, an index, a label, a `Contrast`, `Probability` or `Weights`; or a sequence with one per row.
        scores: logits `[N, K]` of the unchanged rows.
        kind: the manifest's `logits`, `binary_logit` or `multilabel`.

    Raises:
        TargetError: as `targets.resolve`; or weights that are not one finite number per class; or a contrast of a class
            with itself.
    """
    rows = len(scores)
    if isinstance(target, (list, tuple)) and special(target):
        if len(target) != rows:
            raise TargetError(f"got {len(target)} targets for {rows} pictures; pass one for all, or one per picture")
        return _Each([resolve(item, scores[k : k + 1], kind, classes, labels) for k, item in enumerate(target)])
    if isinstance(target, Contrast):
        return _contrast(target, scores, kind, classes, labels)
    if isinstance(target, Probability):
        wanted = targets.resolve(target.target, rows, classes, labels)
        return Likelihood(targets.chosen(wanted, scores, kind), kind)
    if isinstance(target, Weights):
        weights = np.repeat(_vector(target.weights, classes, labels)[None], rows, axis=0)
        return Linear(fold(weights, kind), weights.argmax(axis=1), WEIGHTS)
    return logit(targets.chosen(targets.resolve(target, rows, classes, labels), scores, kind), kind, classes)


def logit(chosen: np.ndarray, kind: str, classes: int) -> Logit:
    """Each row's own class `[N]`, the usual objective."""
    if kind == "binary_logit":
        return Logit(np.where(chosen == 1, 1.0, -1.0)[:, None], chosen)
    return Logit(one_hot(chosen, classes), chosen)


def probable(objective: Objective, kind: str) -> Objective:
    """The probability of a class where its logit is the objective; any other objective as it is."""
    if isinstance(objective, _Each):
        return _Each([probable(one, kind) for one in objective.held])
    return Likelihood(objective.classes, kind) if isinstance(objective, Logit) else objective


def finer(chosen: np.ndarray, scores: np.ndarray, kind: str, alpha: float, count: int) -> Objective:
    """FinerCAM's objective for these classes.

    Raises:
        TargetError: the model has too few classes to compare, or they are not rivals of one softmax.
    """
    classes = scores.shape[1]
    if kind != "logits" or classes < 2:
        raise TargetError(
            f"finercam compares a class with its rivals under one softmax; this model has {kind} scores of "
            f"{classes} column{'s' if classes > 1 else ''}: use gradcam"
        )
    own = scores[np.arange(len(scores)), chosen][:, None]
    distance = np.abs(scores.astype(np.float64) - own)
    distance[np.arange(len(scores)), chosen] = np.inf
    rivals = np.argsort(distance, axis=1, kind="stable")[:, : min(count, classes - 1)]
    return Finer(chosen, rivals, alpha)


def one_hot(chosen: np.ndarray, classes: int) -> np.ndarray:
    """float64 `[N, classes]`."""
    found = np.zeros((len(chosen), classes))
    found[np.arange(len(chosen)), chosen] = 1.0
    return found


def fold(weights: np.ndarray, kind: str) -> np.ndarray:
    """Weights per class as weights of the columns the model emits: a single logit s stands for (-s, +s)."""
    return weights[:, 1:] - weights[:, :1] if kind == "binary_logit" else weights


def _contrast(target: Contrast, scores: np.ndarray, kind: str, classes: int, labels: Labels) -> Linear:
    rows = len(scores)
    wanted = targets.chosen(targets.resolve(target.target, rows, classes, labels), scores, kind)
    other = targets.resolve(target.other, rows, classes, labels)
    every = np.concatenate([-scores, scores], axis=1) if kind == "binary_logit" else scores
    rest = every.astype(np.float64).copy()
    rest[np.arange(rows), wanted] = -np.inf
    other = np.where(other < 0, rest.argmax(axis=1), other)
    same = np.flatnonzero(wanted == other)
    if len(same):
        name = labels[wanted[same[0]]] if labels else wanted[same[0]]
        raise TargetError(f"a contrast of {name!r} with itself says nothing; name another class to compare it with")
    return Linear(fold(one_hot(wanted, classes) - one_hot(other, classes), kind), wanted, CONTRAST, other)


def _vector(weights: Any, classes: int, labels: Labels) -> np.ndarray:
    if isinstance(weights, Mapping):
        found = np.zeros(classes)
        for key, weight in weights.items():
            index = int(targets.resolve(key, 1, classes, labels)[0])
            if index < 0:
                raise TargetError("weights by class name an index from 0 or a label; -1 (top-1) is none")
            found[index] += float(weight)
    else:
        found = np.asarray(weights, np.float64)
    if found.shape != (classes,) or not np.isfinite(found).all() or not found.any():
        raise TargetError(
            f"got weights of shape {list(found.shape)}; expected {classes} finite numbers, one per class, not all zero"
        )
    return found


class _Each:
    """One objective per row."""

    def __init__(self, held: list[Objective]) -> None:
        self.held = held
        self.classes = np.concatenate([one.classes for one in held])
        self.linear = all(one.linear for one in held)

    def value(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Each row's own."""
        return self._gather("value", scores, rows)

    def cotangent(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Each row's own."""
        return self._gather("cotangent", scores, rows)

    def told(self, row: int) -> tuple[str, int | None]:
        """Each row's own."""
        return self.held[row].told(0)

    def _gather(self, what: str, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray | None = None
        for row in np.unique(rows):
            places = np.flatnonzero(rows == row)
            part = getattr(self.held[int(row)], what)(scores[places], np.zeros(len(places), np.int64))
            if found is None:
                found = np.empty((len(rows), *part.shape[1:]))
            found[places] = part
        return np.empty(0) if found is None else found
