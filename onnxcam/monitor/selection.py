"""Selects the rows of a batch that are worth explaining: the condition first, then the samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from onnxcam.errors import InputError
from onnxcam.monitor.admission import Sampler
from onnxcam.network.manifest import Manifest
from onnxcam.targets import conditions
from onnxcam.targets.conditions import Condition
from onnxcam.targets.readout import Readout


class Selection(NamedTuple):
    """The selected rows of one batch.

    Attributes:
        probabilities: float64 `[N, classes]`.
        uncertain: numbers of the rows that met the condition and were sampled; `sampled_out` is how many were not.
        baseline: numbers of the other rows that are in the baseline's sample; `confident` is how many are not.
    """

    probabilities: np.ndarray
    uncertain: np.ndarray
    sampled_out: int
    baseline: np.ndarray
    confident: int


class Selector:
    """Applies the condition and the sampling probabilities to the scores of a model described by a manifest."""

    def __init__(self, condition: Condition, manifest: Manifest, sample: float, baseline_sample: float) -> None:
        self.sample = sample
        self.baseline_sample = baseline_sample
        self._condition = condition
        self._names = conditions.names(condition)
        self._readout = Readout.from_manifest(manifest["scores"])

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
        readout = self._readout.of_columns(scores.shape[1]) or self._readout
        p = conditions.probabilities(scores, readout, form)
        met = conditions.evaluate(self._condition, conditions.quantities(p, readout, self._names))
        uncertain, confident = np.flatnonzero(met), np.flatnonzero(~met)
        sample = sampler.sample(uncertain, self.sample)
        baseline = sampler.sample(confident, self.baseline_sample)
        return Selection(p, sample, len(uncertain) - len(sample), baseline, len(confident) - len(baseline))

    def quantities(self, probabilities: np.ndarray) -> list[dict[str, Any]]:
        """Return every quantity that a condition can refer to, row by row."""
        columns = conditions.quantities(probabilities, self._readout)
        return [{name: values[k].item() for name, values in columns.items()} for k in range(len(probabilities))]
