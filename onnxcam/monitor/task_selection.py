"""Selects pictures of a detector or segmentation that are worth explaining: by the best box, or the largest class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcam.errors import InputError, SettingError, listing
from onnxcam.monitor.predictions import to_numpy
from onnxcam.monitor.selection import Selection, Selector
from onnxcam.network.manifest import Manifest
from onnxcam.targets import conditions
from onnxcam.targets.conditions import LABEL, Condition
from onnxcam.targets.tasks import Detect, Segment

QUANTITIES = ("confidence", LABEL)


def check_condition(condition: Condition, when: str, task: str) -> None:
    """Refuse what a condition asks of classifiers alone.

    Arguments:
        when: its text.
        task: of the model, `detect` or `segment`.

    Raises:
        SettingError: it has another quantity than `confidence` and `label`.
    """
    others = sorted(conditions.names(condition) - set(QUANTITIES))
    if conditions.risks(condition):
        others.append(conditions.RISK)
    if others:
        what = "the score of its best box" if task == Detect.name else "the share of its largest class"
        raise SettingError(
            f"when={when!r}: {listing(others)} is of classifiers, and this model's task is {task!r}; compare "
            f"`confidence`, {what}, or `label`"
        )


class TaskSelector(Selector):
    """Applies the condition and the sampling probabilities to the outputs of a detector or segmentation.

    A picture on which no candidate of a detector has a score above 0 has nothing to explain: it counts as confident,
    whatever the condition.

    Arguments:
        as of `Selector`.
    """

    def __init__(self, condition: Condition, manifest: Manifest, sample: float, baseline_sample: float) -> None:
        super().__init__(condition, manifest, sample, baseline_sample)
        task = self._readout.task
        assert isinstance(task, (Detect, Segment)), "of other tasks there is no selector"
        self._task = task
        self._outputs = [str(name) for name in (manifest.get("source") or {}).get("values", ())]
        self._one_picture = isinstance(task, Detect) and task.one_picture

    def count(self, scores: Any) -> int:
        """The number of pictures that outputs are of, as far as it can be told."""
        if self._one_picture:
            return 1
        parts = list(scores.values()) if isinstance(scores, Mapping) else scores
        return len(parts[0] if isinstance(parts, (list, tuple)) and len(self._outputs) > 1 else parts)

    def read(self, scores: Any) -> tuple[np.ndarray, bool]:
        """Return the columns `[N, columns]` of observed outputs, and whether they are of a single picture.

        Arguments:
            scores: the output of the file that carries the task; of several a list in the order of the file, or by
                name; or the columns themselves, `[N, columns]`, as the explainable file outputs them.

        Raises:
            InputError: not outputs of this model.
        """
        parts = self._parts(scores)
        for part in parts:
            if part.dtype.kind not in "fiu":
                raise InputError(f"got an output of {part.dtype} {list(part.shape)}; expected numbers")
        rows = {1 if self._one_picture else len(part) for part in parts if part.ndim or self._one_picture}
        if len(rows) != 1:
            raise InputError(f"the outputs have {sorted(rows)} rows; expected one number of pictures in all")
        count = rows.pop()
        flat = [part.reshape(count, -1) if part.size else part.reshape(count, 0) for part in parts]
        values = flat[0] if len(flat) == 1 else np.concatenate([part.astype(np.float32) for part in flat], axis=1)
        self._check(values, parts)
        return values, self._one_picture

    def columns(self, selection: Selection, row: int) -> np.ndarray | None:
        """Return a copy of the columns of one row, float32."""
        assert selection.scores is not None, "they are stored when rows are selected"
        return np.array(selection.scores[row], np.float32)

    def copied(self, scores: np.ndarray) -> int:
        """How many numbers `columns` copies."""
        return int(scores.shape[1])

    def quantities(self, selection: Selection, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return the confidence and the label of some rows."""
        columns = conditions.quantities(selection.probabilities[list(rows)], self._readout, QUANTITIES)
        return [{name: values[k].item() for name, values in columns.items()} for k in range(len(rows))]

    def prediction_sets(self, selection: Selection, rows: Sequence[int]) -> list[dict[str, Any] | None]:
        """Return None for each row: there are no sets of boxes or cells."""
        return [None] * len(rows)

    def _read_scores(
        self, scores: np.ndarray, form: str
    ) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray], np.ndarray | None]:
        p = np.asarray(self._readout.per_class(scores), np.float64)
        if isinstance(self._task, Segment):  # the highest of numbers that are none is no class
            p = np.where(np.isfinite(scores).all(axis=1)[:, None], p, np.nan)
        explainable = p.max(axis=1) != 0 if isinstance(self._task, Detect) else None
        return p, scores, conditions.quantities(p, self._readout, self._names), explainable

    def _parts(self, scores: Any) -> list[np.ndarray]:
        """The arrays that outputs consist of, in the order of the file's columns."""
        if isinstance(scores, Mapping):
            missing = [name for name in self._outputs if name not in scores]
            if missing:
                raise InputError(f"the outputs lack {listing(missing)}; got {listing(scores)}")
            return [to_numpy(scores[name]) for name in self._outputs]
        if isinstance(scores, (list, tuple)) and len(self._outputs) > 1:
            if len(scores) != len(self._outputs):
                raise InputError(f"got {len(scores)} outputs; expected those of {listing(self._outputs)}")
            return [to_numpy(part) for part in scores]
        return [to_numpy(scores)]

    def _check(self, values: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        """Refuse outputs that have another number of columns than the model."""
        expected, columns = self._readout.columns, values.shape[1]
        whole = isinstance(self._task, Segment) or not columns % self._task.width
        if (expected and columns != expected) or not whole:
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            size = f"{expected:,} numbers" if expected else "whole candidates or cells"
            raise InputError(
                f"got outputs {shapes}; expected {size} for each picture, from {listing(self._outputs or ['it'])} of "
                "the model that explains"
            )
