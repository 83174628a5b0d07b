"""Which rows of a batch are worth explaining: the condition, then the samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from onnxcam.errors import InputError
from onnxcam.monitor.admission import Sampler
from onnxcam.network.manifest import Manifest
from onnxcam.targets import conditions
from onnxcam.targets.conditions import Condition
from onnxcam.targets.readout import Readout


class Verdict(NamedTuple):
    """Over one batch.

    Attributes:
        probabilities: float64 `[N, classes]`.
        unsure: numbers of the rows that met the condition and are in its sample; `sampled_out` are not in it.
        baseline: numbers of the others that are in the baseline's sample; `confident` are not.
    """

    probabilities: np.ndarray
    unsure: np.ndarray
    sampled_out: int
    baseline: np.ndarray
    confident: int


class Judge:
    """Knows the condition, the samples, and what kind of scores to expect."""

    def __init__(self, condition: Condition, held: Manifest, sample: float, baseline_sample: float) -> None:
        self.sample = sample
        self.baseline_sample = baseline_sample
        self._condition = condition
        self._names = conditions.names(condition)
        self._readout = Readout.from_manifest(held["scores"])

    def rows(self, scores: np.ndarray) -> np.ndarray:
        """Scores as `[N, K]`: one row is made a batch, `[N, K, 1, 1]` is flattened.

        Raises:
            InputError: no scores of this model's classes.
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

    def judge(self, scores: np.ndarray, form: str, sampler: Sampler) -> Verdict:
        """Look at a batch as `rows` gave it."""
        readout = self._readout.of_columns(scores.shape[1]) or self._readout
        p = conditions.probabilities(scores, readout, form)
        met = conditions.evaluate(self._condition, conditions.quantities(p, readout, self._names))
        unsure, sure = np.flatnonzero(met), np.flatnonzero(~met)
        kept = sampler.keep(unsure, self.sample)
        baseline = sampler.keep(sure, self.baseline_sample)
        return Verdict(p, kept, len(unsure) - len(kept), baseline, len(sure) - len(baseline))

    def quantities(self, probabilities: np.ndarray) -> list[dict[str, Any]]:
        """Everything a condition could speak of, row by row."""
        found = conditions.quantities(probabilities, self._readout)
        return [{name: values[k].item() for name, values in found.items()} for k in range(len(probabilities))]
