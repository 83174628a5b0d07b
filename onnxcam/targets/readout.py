"""The readout of a model: the value of its graph whose numbers are explained, and what those numbers mean.

Five kinds of a classifier share one form, scores `[N, columns]`:

    logits         one column per class, a softmax over the columns gives probabilities
    probabilities  one column per class, log p of the probabilities that the model computes: exp gives them back
    multilabel     one column per class, each with a sigmoid of its own
    binary_logit   one column s for two classes: class 1 has the score +s, class 0 has -s
    regression     one column, the value itself: nothing is a probability

Another task (`onnxcam.targets.tasks`) has the same form, and its `Task` says what lies where in the columns:

    detection      boxes and their scores of classes, as many columns as the file's outputs have numbers
    segmentation   a score per class and cell of a grid
    embedding      the components of a vector
    regression     one column per quantity

Code elsewhere asks a `Readout` instead of comparing kinds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxcam.errors import ModelError, SettingError, TargetError
from onnxcam.targets import tasks
from onnxcam.targets.class_tables import class_table
from onnxcam.targets.tasks import DETECTION, EMBEDDING, SEGMENTATION, Task

LOGITS, PROBABILITIES, BINARY = "logits", "probabilities", "binary_logit"
MULTILABEL, REGRESSION = "multilabel", "regression"
KINDS = (LOGITS, PROBABILITIES, BINARY, MULTILABEL, REGRESSION)
# name of the output that carries the value where no original output does, by kind
APPENDED = dict.fromkeys((LOGITS, BINARY, MULTILABEL), "logits")
APPENDED |= {PROBABILITIES: "log_probabilities", REGRESSION: "value"}
APPENDED |= {DETECTION: "candidates", SEGMENTATION: "cells", EMBEDDING: "embedding"}
# of any task but classification
TASK_KINDS = (DETECTION, SEGMENTATION, EMBEDDING)


@dataclass(frozen=True)
class Readout:
    """A value of the graph and the meaning of its numbers.

    Attributes:
        value: name of the differentiated value, `[N, columns]` or `[N, columns, 1, 1]`, before a final Softmax or
            Sigmoid; of `probabilities` their logarithm, clamped at the smallest normal number.
        kind: one of `KINDS` or `TASK_KINDS`.
        size: number of classes; of a regression of quantities, of an embedding of components; 0 of a detector that does
            not tell.
        output: the model's own output that is this value; None if it has to be appended.
        probabilities_output: the model's own output that holds probabilities; None if there is none.
        scale: the number that stands for certainty in the model's own probabilities: 1, or 100 for percentages.
        stepped_over: operators between the value and the model's own output, from the output back.
        warnings: sentences about what is doubtful in the scores.
        name: of the appended output, where it cannot have the usual one.
        task: what the columns are, where the model is no classifier and not a regression of one value; None otherwise.
    """

    value: str
    kind: str
    size: int
    output: str | None = None
    probabilities_output: str | None = None
    scale: float = 1.0
    stepped_over: tuple[str, ...] = field(default=(), compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    name: str | None = field(default=None, compare=False)
    task: Task | None = None

    @classmethod
    def of_task(cls, value: str, task: Task, output: str | None = None, warnings: tuple[str, ...] = ()) -> Readout:
        """The readout of a task whose columns are `value`."""
        return cls(value, task.kind, task.size, output, warnings=warnings, task=task)

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> Readout:
        """The readout that a manifest's `scores` entry describes."""
        name = str(entry["name"])
        return cls(
            name,
            str(entry["kind"]),
            int(entry["classes"]),
            name,
            entry.get("probabilities"),
            float(entry.get("scale", 1.0)),
            tuple(entry.get("stepped_over", ())),
            tuple(entry.get("warnings", ())),
            task=None if entry.get("task") is None else tasks.from_entry(entry["task"]),
        )

    def describe(self) -> dict[str, Any]:
        """The manifest's `scores` entry; `scale`, `stepped_over` and `warnings` only where they say something."""
        entry: dict[str, Any] = {
            "name": self.output or self.appended,
            "kind": self.kind,
            "classes": self.size,
            "probabilities": self.probabilities_output,
        }
        if self.scale != 1:
            entry["scale"] = self._scale
        if self.stepped_over:
            entry["stepped_over"] = list(self.stepped_over)
        if self.warnings:
            entry["warnings"] = list(self.warnings)
        if self.task is not None:
            entry["task"] = self.task.describe()
        return entry

    def meaning(self) -> dict[str, Any]:
        """What an explanation says of the scores: `kind`, `stepped_over`, and `scale` where it is not 1."""
        entry: dict[str, Any] = {"kind": self.kind, "stepped_over": list(self.stepped_over)}
        return entry if self.scale == 1 else {**entry, "scale": self._scale}

    @property
    def _scale(self) -> int | float:
        return int(self.scale) if self.scale == int(self.scale) else self.scale

    @property
    def task_name(self) -> str | None:
        """What the model does that is no classifier, one of `onnxcam.targets.tasks.TASKS`; a quantity is one too."""
        if self.task is None:
            return tasks.REGRESS if self.numeric else None
        return self.task.name

    @property
    def appended(self) -> str:
        """Name of the output that carries the value where no output of the model does."""
        return self.name or APPENDED[self.kind]

    @property
    def columns(self) -> int:
        """Number of columns of the scores; 0 where it depends on the picture, as of some detectors."""
        if self.task is not None:
            return self.task.columns or 0
        return 1 if self.kind == BINARY else self.size

    @property
    def signed(self) -> bool:
        """Whether one column stands for two classes, by its sign."""
        return self.kind == BINARY

    @property
    def exclusive(self) -> bool:
        """Whether exactly one of the columns' classes is present: their probabilities sum to 1."""
        return self.kind in (LOGITS, PROBABILITIES)

    @property
    def logarithmic(self) -> bool:
        """Whether the scores are logarithms of probabilities, so that no softmax is applied to them."""
        return self.kind == PROBABILITIES

    @property
    def numeric(self) -> bool:
        """Whether the score is a quantity and not a class's: there are no probabilities."""
        return self.kind in (REGRESSION, EMBEDDING)

    @property
    def tabulated(self) -> bool:
        """Whether the classes' scores are a table made of the columns, those of candidates or cells."""
        return self.kind in (DETECTION, SEGMENTATION)

    @property
    def independent(self) -> bool:
        """Whether each class is present or absent on its own."""
        return self.kind in (MULTILABEL, DETECTION)

    def require_probabilities(self, setting: str, *, in_file: bool = False, advice: str = "leave it out") -> None:
        """Refuse a setting that compares probabilities, where there are none.

        Arguments:
            advice: what to do instead.
            in_file: whether the file itself compares them, which only has those of classes.

        Raises:
            SettingError: the scores are quantities, or the columns of another task.
        """
        if in_file and self.tabulated:
            raise SettingError(
                f"{setting} compares the probabilities of classes in the file, and this model's kind is {self.kind!r}; "
                "leave it out, and choose pictures where it is run (`when`)"
            )
        if self.numeric:
            raise SettingError(
                f"{setting} compares probabilities, and this model's score is a quantity (kind {self.kind!r}); {advice}"
            )

    def require_classes(self, what: str) -> None:
        """Refuse what is of classifiers alone.

        Arguments:
            what: subject of the sentence, such as `a monitor`.

        Raises:
            ModelError: the model does something else.
        """
        if self.task is not None:
            raise ModelError(
                f"{what} is of a classifier, and this model's task is {self.task.name!r}; explain its pictures with "
                "`onnxcam explain`, `onnxcam.Explainer` or `onnxcam serve`"
            )

    def of_columns(self, columns: int) -> Readout | None:
        """The readout of an array with this many columns: a binary classifier is also served with one column per
        class. None if the array cannot be of this classifier.
        """
        if columns == self.columns:
            return self
        return replace(self, kind=LOGITS) if self.signed and columns == self.size else None

    def per_class(self, scores: np.ndarray) -> np.ndarray:
        """The score of each class, `[N, size]`, from scores `[N, columns]`.

        Of a detector the highest score of each class among its candidates, of a segmentation the share of cells.
        """
        if self.tabulated and self.task is not None:
            return class_table(self.task, scores)
        return np.concatenate([-scores, scores], axis=1) if self.signed else scores

    def top1(self, scores: np.ndarray) -> np.ndarray:
        """The class with the highest score of each row (the lowest index on ties), int64 `[N]`."""
        return np.asarray(self.per_class(scores).argmax(axis=1), np.int64)

    def fill_top1(self, classes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Classes `[N]` with each negative one replaced by the row's top-1."""
        return np.where(classes < 0, self.top1(scores), classes)

    def best(self, scores: np.ndarray, count: int) -> np.ndarray:
        """The classes with the highest scores of each row, best first (the lower index on ties), int64 `[N, count]`.

        Raises:
            TargetError: `count` is not between 1 and the number of classes.
        """
        self.check_count(count)
        return np.argsort(-self.per_class(scores), axis=1, kind="stable")[:, :count].astype(np.int64)

    def check_count(self, count: Any, spelled: str | None = None) -> None:
        """Refuse a number of best classes that is not between 1 and the number of classes.

        Arguments:
            spelled: parameter and value as the message spells them; `top=COUNT` if None.

        Raises:
            TargetError: another number.
        """
        whole = isinstance(count, (int, np.integer)) and not isinstance(count, bool)
        if whole and count >= 1 and self.tabulated:
            return  # as many as there are on the picture
        if self.kind == EMBEDDING:
            raise TargetError(f"{spelled or f'top={count!r}'}: an embedding has no classes; leave it out")
        if not whole or not 1 <= count <= self.size:
            raise TargetError(f"{spelled or f'top={count!r}'}; expected 1 to {self.size}, the number of classes")

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities `[N, size]`, float32: a softmax, exp of log p, a sigmoid each, or (1 - p, p) of a single logit.

        Of a regression the value itself, which is what there is to show; of boxes and cells as `per_class`.
        """
        if self.tabulated:
            return self.per_class(scores)
        if self.numeric:
            return scores.astype(np.float32)
        if self.logarithmic:
            return np.asarray(np.exp(scores, dtype=np.float64).astype(np.float32))
        if self.exclusive:  # in few calls: next to a small model each counts
            top = np.maximum.reduce(scores, axis=1, keepdims=True)
            p: np.ndarray = scores.astype(np.float64)
            p -= top
            np.exp(p, out=p)
            p /= np.add.reduce(p, axis=1, keepdims=True)
            return p.astype(np.float32)
        y = scores.astype(np.float64)
        p = np.where(y >= 0, 1.0, np.exp(np.minimum(y, 0))) / (1.0 + np.exp(-np.abs(y)))
        return self._both(p).astype(np.float32, copy=False)

    def scores_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Scores `[N, columns]`, float64, of probabilities `[N, size]`: log p, or log p / (1 - p) of sigmoids.

        The inverse of `probabilities`, but for a constant per row that a softmax does not depend on.
        """
        log_p = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-300))
        if self.exclusive:
            return np.asarray(log_p)
        logits = log_p - np.log(np.maximum(1.0 - np.asarray(probabilities, np.float64), 1e-300))
        return np.asarray(logits[:, 1:] if self.signed else logits)

    def complete(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities `[N, size]` from those that the model emits: of a binary classifier that of class 1 alone, of
        others perhaps percentages.
        """
        if self.scale != 1:
            probabilities = probabilities / self.scale
        return self._both(probabilities)

    def _both(self, probabilities: np.ndarray) -> np.ndarray:
        """The probabilities of both classes from those of class 1 alone; of other kinds as they are."""
        if self.signed and probabilities.shape[1] == 1:
            return np.concatenate([1.0 - probabilities, probabilities], axis=1)
        return probabilities

    def one_hot(self, classes: np.ndarray) -> np.ndarray:
        """The cotangent of each row's class score: d per_class[n, classes[n]] / d scores, float64 `[N, columns]`."""
        hot = np.zeros((len(classes), self.size))
        hot[np.arange(len(classes)), classes] = 1.0
        return self.fold(hot)

    def fold(self, weights: np.ndarray) -> np.ndarray:
        """Weights per class `[N, size]` as weights of the columns `[N, columns]`."""
        return weights[:, 1:] - weights[:, :1] if self.signed else weights

    def probability_cotangent(self, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """d p[n, classes[n]] / d scores, float64 `[N, columns]`.

        p_c (1_c - p) of a softmax, p_c 1_c of log p, p (1 - p) of a sigmoid, 1 of a regression's value.
        """
        hot = self.one_hot(classes)
        if self.numeric:
            return hot
        p = self.probabilities(scores).astype(np.float64)
        p_class = p[np.arange(len(classes)), classes][:, None]
        if self.logarithmic:
            return np.asarray(p_class * hot)
        return np.asarray(p_class * (hot - p) if self.exclusive else p_class * (1 - p_class) * hot)

    def entropy(self, probabilities: np.ndarray) -> np.ndarray:
        """Entropy of probabilities `[N, size]`, 0 (certain) to 1 (uniform), float64 `[N]`.

        -sum p log p / log size; of independent classes the mean of each one's binary entropy, in bits; 0 of a
        regression.
        """
        p = probabilities
        if self.numeric:
            return np.zeros(len(p))
        if self.independent:
            return np.asarray(-(_plogp(p) + _plogp(1 - p)).mean(axis=1) / math.log(2))
        if p.shape[1] < 2:
            return np.zeros(len(p))
        return np.asarray(np.add.reduce(_plogp(p), axis=1) / -math.log(p.shape[1]))

    def are_probabilities(self, values: np.ndarray) -> bool:
        """Whether every value lies in 0..`scale` and, of exclusive classes, every row sums to it within 1 %."""
        if not values.min(initial=0.0) >= 0 or not values.max(initial=0.0) <= self.scale * (1 + 1e-6):
            return False
        if self.independent or values.shape[1] == 1:
            return True
        return bool((np.abs(values.sum(axis=1) - self.scale) <= 1e-2 * self.scale).all())


def _plogp(values: np.ndarray) -> np.ndarray:
    logarithms = np.maximum(values, 1e-300)
    np.log(logarithms, out=logarithms)
    return np.asarray(np.multiply(logarithms, values, out=logarithms))
