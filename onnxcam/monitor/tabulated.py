"""Records of the rows of a table of explanations, for a baseline: as a monitor would have recorded the pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxcam.errors import InputError, SettingError
from onnxcam.explain.statistics import describe
from onnxcam.monitor.baseline import Candidate
from onnxcam.monitor.record import TOP, rounded, small, unit
from onnxcam.monitor.schema import Record
from onnxcam.monitor.table import OWN_LAYER, Configuration
from onnxcam.monitor.task_rows import MOST as BOXES
from onnxcam.targets import conditions
from onnxcam.targets.tasks import DETECT

ALWAYS = "always"
_QUANTITIES = ("confidence", "margin", "entropy", conditions.LABEL)
_OF_CLASSES = frozenset(("margin", "entropy"))
_BOXES = "box_scores"
# the columns that are read, besides those of `MORE` that there are
COLUMNS = (
    *("prediction", "label", "confidence", "margin", "entropy", "top", "top_confidence", "fired"),
    *("target", "target_label", "method", "layer"),
    *("map", "map_low", "map_high", "map_height", "map_width", "error", "model"),
)
MORE = ("path", _BOXES)


class Table:
    """The rows of a table as candidates for a baseline.

    Attributes:
        failed: rows with an error so far, which are skipped.
        others: rows so far that explain another class than the predicted one.

    Arguments:
        batches: the columns above, a few rows at a time.
        root: what a row's `path` is relative to: both together are its identity.
        moment: when the table was made, as records have it.
        when: the monitor's condition, which is evaluated on each row; None for that of the table.
        written: the condition of the table.
        name: of the model.
        labels: class names by index, for conditions on labels.
        task: of the model, None of a classifier.
        own_layer: whether each box is explained at the layer that its score comes from.
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, np.ndarray]],
        *,
        root: str,
        moment: str,
        when: str | None = None,
        written: str = ALWAYS,
        name: str | None = None,
        labels: Sequence[str] | None = None,
        task: str | None = None,
        own_layer: bool = False,
    ) -> None:
        self.failed = self.others = 0
        self._batches = batches
        self._root = root
        self._moment = moment
        self._when = written if when is None else when
        self._condition = None if self._when == ALWAYS else conditions.parse(self._when, labels)
        self._name, self._task, self._own_layer = name, task, own_layer
        leaves = set() if self._condition is None else conditions.leaves(self._condition)
        usable = [name for name in _QUANTITIES if task is None or name not in _OF_CLASSES]
        if not all(isinstance(leaf, conditions.Comparison) and leaf.quantity in usable for leaf in leaves):
            raise SettingError(
                f"the condition {self._when!r} cannot be evaluated on a table, which has {', '.join(usable)}; "
                "make the baseline from the monitor's own records"
            )

    def __iter__(self) -> Iterator[Candidate]:
        count = 0
        for batch in self._batches:
            errors = batch["error"]
            good = np.array([not error for error in errors], bool)
            self.failed += int((~good).sum())
            good &= np.asarray(batch["prediction"]) >= 0  # without a box a monitor has nothing to record
            self.others += int((good & (np.asarray(batch["target"]) != np.asarray(batch["prediction"]))).sum())
            unexplained = int((good & ~np.asarray(batch["fired"], bool)).sum())
            if unexplained:
                raise InputError(
                    "rows of this table have no map, as they did not meet the condition that it was made with; a "
                    "monitor records maps of confident rows too: make the table without --when, and name the "
                    "monitor's condition here, --when"
                )
            low = self._low(batch)
            paths = batch.get("path")
            for row in np.flatnonzero(good).tolist():
                identity = f"{self._root.rstrip('/')}/{count + row if paths is None else paths[row]}"
                yield self._candidate(batch, row, identity, bool(low[row]))
            count += len(errors)

    def _low(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Where the condition holds."""
        if self._condition is None:
            return np.ones(len(batch["error"]), bool)
        quantities = {name: batch[name] for name in ("confidence", "margin", "entropy")}
        return conditions.evaluate(self._condition, quantities | {conditions.LABEL: batch["prediction"]})

    def _candidate(self, batch: Mapping[str, np.ndarray], row: int, identity: str, low: bool) -> Candidate:
        layer = OWN_LAYER if self._own_layer else batch["layer"][row]
        configuration = Configuration(batch["model"][row], self._when, batch["method"][row], layer)

        def record() -> Record:
            return self._record(batch, row, configuration, low)

        # pictures have no time: the order must not depend on when each part of them was run
        return Candidate(configuration, self._moment, 0, identity, record)

    def _record(self, batch: Mapping[str, np.ndarray], row: int, configuration: Configuration, low: bool) -> Record:
        top = zip(batch["top"][row][:TOP], batch["top_confidence"][row][:TOP], strict=True)
        labels = {int(batch["prediction"][row]): batch["label"][row]}
        raw = _raw_map(batch, row)
        of_task: dict[str, Any] = {} if self._task is None else {"task": self._task, "own_layer": self._own_layer}
        if self._task == DETECT and _BOXES in batch:
            of_task["boxes"] = [{"score": unit(score)} for score in batch[_BOXES][row][:BOXES]]
        return {
            "model": {"name": self._name, "sha256": configuration.model},
            "trigger": {"when": configuration.when, "reason": "condition" if low else "baseline", "sample": 1.0},
            "prediction": {
                "top": [
                    {"index": int(index), "label": labels.get(int(index)), "probability": unit(probability)}
                    for index, probability in top
                ],
                **{name: unit(batch[name][row]) for name in ("confidence", "margin", "entropy")},
                "target": {"index": int(batch["target"][row]), "label": batch["target_label"][row]},
                "layer": batch["layer"][row],
                "method": configuration.method,
                **of_task,
            },
            "attention": rounded(describe(raw)),
            "map": small(raw),
        }


def _raw_map(batch: Mapping[str, np.ndarray], row: int) -> np.ndarray:
    """The map of a row as it was before it was normalized, however that was done.

    Raises:
        InputError: it is of several layers, which were normalized one by one.
    """
    if ", " in str(batch["layer"][row]):
        raise InputError(
            "the maps of this table are of several layers, and a monitor's are of one; make the table with one --layer"
        )
    low, high = float(batch["map_low"][row]), float(batch["map_high"][row])
    shape = int(batch["map_height"][row]), int(batch["map_width"][row])
    if not np.isfinite([low, high]).all():  # which nothing can be measured on
        return np.zeros(shape, np.float32)
    values = np.asarray(batch["map"][row], np.float64).reshape(shape)
    least, most = values.min(), values.max()
    share = (values - least) / (most - least) if most > least else np.ones(shape)
    return np.asarray(low + share * (high - low), np.float32)
