"""Selects the rows of a batch that are worth explaining: the condition first, then the samples."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxcam.errors import InputError, SettingError
from onnxcam.monitor import coverage
from onnxcam.monitor.admission import Sampler
from onnxcam.monitor.predictions import to_numpy
from onnxcam.monitor.traffic import Ranking
from onnxcam.network.calibration.record import of_manifest
from onnxcam.network.manifest import Manifest
from onnxcam.targets import conditions
from onnxcam.targets.conditions import Condition, Top
from onnxcam.targets.readout import Readout

NAMED = 200  # classes of a prediction set in a record


class Selection(NamedTuple):
    """The selected rows of one batch.

    Attributes:
        probabilities: float64 `[N, classes]`.
        scores: `[N, columns]`, None where only probabilities of classes were observed.
        uncertain: numbers of the rows that met the condition and were sampled; `sampled_out` is how many were not.
        baseline: numbers of the other rows that are in the baseline's sample; `confident` is how many are not.
    """

    probabilities: np.ndarray
    scores: np.ndarray | None
    uncertain: np.ndarray
    sampled_out: int
    baseline: np.ndarray
    confident: int


class Selector:
    """Applies the condition and the sampling probabilities to the scores of a model described by a manifest.

    Raises:
        SettingError: the condition needs a calibration, and the manifest has none.
    """

    def __init__(self, condition: Condition, manifest: Manifest, sample: float, baseline_sample: float) -> None:
        self.sample = sample
        self.baseline_sample = baseline_sample
        self._calibration = of_manifest(manifest)
        self._condition = conditions.bind(condition, self._calibration, online=True)
        self._names = conditions.names(self._condition)
        self._readout = Readout.from_manifest(manifest["scores"])
        self._rankings = [Ranking(top, self._stored(top)) for top in sorted(conditions.tops(self._condition), key=str)]

    def _stored(self, top: Top) -> float | None:
        """The threshold that the file's calibration has for a share of traffic, None if it has none."""
        with contextlib.suppress(SettingError):
            return None if self._calibration is None else self._calibration.least_sure(top.share, top.by)
        return None

    def thresholds(self) -> dict[str, dict[str, Any]]:
        """Return how each `top` of the condition is decided at present, by its text."""
        return {ranking.top.key: ranking.describe() for ranking in self._rankings}

    def count(self, scores: Any) -> int:
        """The number of rows of a value that may be no scores."""
        return len(scores)

    def read(self, scores: Any) -> tuple[np.ndarray, bool]:
        """Return observed scores of any framework as rows, and whether they were of a single one.

        Raises:
            InputError: not scores of this model's classes.
        """
        array = to_numpy(scores)
        return self.as_rows(array), array.ndim == 1

    def columns(self, selection: Selection, row: int) -> np.ndarray | None:
        """Return what a row's explanation needs of its scores; None: that of a class needs nothing."""
        return None

    def copied(self, scores: np.ndarray) -> int:
        """How many numbers `columns` copies, for scores that `read` returned."""
        return 0

    def as_rows(self, scores: np.ndarray) -> np.ndarray:
        """Return scores as `[N, K]`: a single row becomes a batch, `[N, K, 1, 1]` is flattened.

        Raises:
            InputError: not scores of this model's classes.
        """
        values = scores[None] if scores.ndim == 1 else scores
        if values.ndim == 4 and values.shape[2:] == (1, 1):
            values = values[:, :, 0, 0]
        fits = values.ndim == 2 and self._readout.of_columns(values.shape[1]) is not None
        if not fits or values.dtype.kind not in "fiu":
            classes = self._readout.size
            raise InputError(
                f"got scores of {scores.dtype} {list(scores.shape)}; expected numbers [N, {classes}] for the "
                f"{classes} classes of the model that explains"
            )
        return values

    def select(self, scores: np.ndarray, form: str, sampler: Sampler) -> Selection:
        """Select the rows of a batch that `as_rows` returned."""
        p, observed, quantities, explainable = self._read_scores(scores, form)
        undecided: dict[str, np.ndarray] = {}
        for ranking in self._rankings:
            first = np.arange(len(p)) < ranking.undecided
            quantities[ranking.top.key] = ranking.decide(quantities[ranking.top.by])
            if first.any():
                undecided[ranking.top.key] = first
        met = conditions.evaluate(self._condition, quantities)
        for key, first in undecided.items():  # such rows meet a condition that holds either way: not `not top 5%`
            met &= conditions.evaluate(self._condition, quantities | {key: quantities[key] | first})
        others = ~met
        if explainable is not None:
            met, others = met & explainable, others & explainable
        uncertain, confident = met.nonzero()[0], others.nonzero()[0]
        sample = sampler.sample(uncertain, self.sample)
        baseline = sampler.sample(confident, self.baseline_sample)
        left = len(p) - len(uncertain) - len(baseline)
        return Selection(p, observed, sample, len(uncertain) - len(sample), baseline, left)

    def _read_scores(
        self, scores: np.ndarray, form: str
    ) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray], np.ndarray | None]:
        """Probabilities, scores, the condition's quantities, and the rows that can be explained (None: all)."""
        readout = self._readout.of_columns(scores.shape[1]) or self._readout
        values = np.asarray(scores, np.float64)
        form = conditions.form_of(values, readout, form)
        p = conditions.probabilities(values, readout, form)
        logits = scores if form == "logits" else None
        return p, logits, conditions.quantities(p, readout, self._names, self._calibration, logits), None

    def prediction_sets(self, selection: Selection, rows: Sequence[int]) -> list[dict[str, Any] | None]:
        """Return the prediction set of some rows, as records have it; None without a calibration.

        Of a large set the most likely classes are named, at most `NAMED`.
        """
        calibration = self._calibration
        if calibration is None:
            return [None] * len(rows)
        p, scores, readout = self._part(selection, rows)
        inside = calibration.sets(readout.scores_of(p) if scores is None else scores, readout)
        order = np.argsort(-np.nan_to_num(p, nan=-1.0), axis=1, kind="stable")
        return [
            {
                "size": int(row.sum()),
                "classes": [int(index) for index in ranked if row[index]][:NAMED],
                "alpha": calibration.alpha,
                "n": calibration.n,
                "empty": coverage.TOP if calibration.rule.never_empty else coverage.ALLOWED,
            }
            for row, ranked in zip(inside, order, strict=True)
        ]

    def quantities(self, selection: Selection, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return every quantity that a condition can refer to, of some rows; with a calibration their sets too."""
        p, scores, readout = self._part(selection, rows)
        names = (*conditions.QUANTITIES, *((conditions.CALIBRATED, conditions.SET) if self._calibration else ()))
        columns = conditions.quantities(p, readout, names, self._calibration, scores)
        return [{name: values[k].item() for name, values in columns.items()} for k in range(len(p))]

    def _part(self, selection: Selection, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None, Readout]:
        """Return probabilities, scores and their readout of some rows."""
        p, scores = selection.probabilities[list(rows)], selection.scores
        if scores is None:
            return p, None, self._readout
        return p, scores[list(rows)], self._readout.of_columns(scores.shape[1]) or self._readout
