"""What a manifest says of a calibration, and what it makes of scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcam.network.calibration import conformal, thresholds
from onnxcam.network.calibration.conformal import RAPS, Rule
from onnxcam.network.calibration.intervals import LEVEL
from onnxcam.network.calibration.temperature import tempered
from onnxcam.targets.readout import Readout

LEFT_OUT = "the calibration is left out"  # what every sentence about that begins with
CALIBRATED, PREDICTION_SET = "calibrated", "prediction_set"
# relative, of a threshold in the file: above the rounding of float32 probabilities and of their sums
MARGIN = 1e-5
# thresholds up to it are 0 in the file: runtimes flush the numbers around them to zero
SMALLEST = 1e-36


@dataclass(frozen=True)
class Calibration:
    """A temperature for probabilities and a rule for sets, of one file.

    Attributes:
        temperature: of `calibrated`.
        rule: of `prediction_set`, with the temperature of its own.
        alpha: share of pictures whose set may miss the true class.
        threshold: least conformity of a class in the set, 1 - `quantile`.
        n: number of pictures that the quantile was taken of.
        coverage_interval: in which the coverage lies with probability `coverage_level`.
        facts: what else the manifest says, such as `accuracy`, `likelihood`, `set_size`, `quantiles` and `risk`.
        outputs: names of the outputs `calibrated` and `prediction_set`.
        scores_sha256: digest of the graph from the picture to the scores; None before it is in a file.
        graph_bytes: length of the file's graph; None before it is in a file, or where that is not noted.
    """

    temperature: float
    rule: Rule
    alpha: float
    threshold: float
    n: int
    coverage_interval: tuple[float, float]
    coverage_level: float = LEVEL
    facts: Mapping[str, Any] | None = None
    outputs: tuple[str, str] = (CALIBRATED, PREDICTION_SET)
    scores_sha256: str | None = None
    graph_bytes: int | None = None

    @property
    def quantile(self) -> float:
        """The quantile of the nonconformity scores."""
        return 1.0 - self.threshold

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> Calibration:
        """The calibration that a manifest's `calibration` entry describes."""
        rule = Rule(
            str(entry["score"]),
            float(entry["set_temperature"]),
            float(entry.get("lambda") or 0.0),
            int(entry.get("k") or 0),
            entry.get("empty") == "top",
        )
        low, high = entry["coverage_interval"]
        return cls(
            float(entry["temperature"]),
            rule,
            float(entry["alpha"]),
            float(entry["threshold"]),
            int(entry["n"]),
            (float(low), float(high)),
            float(entry.get("coverage_level", LEVEL)),
            {key: value for key, value in entry.items() if key not in _FIELDS},
            (str(entry["outputs"][CALIBRATED]), str(entry["outputs"][PREDICTION_SET])),
            entry.get("scores_sha256"),
            entry.get("graph_bytes"),
        )

    def describe(self) -> dict[str, Any]:
        """The manifest's `calibration` entry."""
        regularised = self.rule.score == RAPS
        entry: dict[str, Any] = {
            "temperature": self.temperature,
            "set_temperature": self.rule.temperature,
            "score": self.rule.score,
            "alpha": self.alpha,
            "quantile": self.quantile,
            "threshold": self.threshold,
            "lambda": self.rule.penalty if regularised else None,
            "k": self.rule.k if regularised else None,
            "empty": "top" if self.rule.never_empty else "allowed",
            "n": self.n,
            "coverage_interval": list(self.coverage_interval),
            "coverage_level": self.coverage_level,
            "outputs": {CALIBRATED: self.outputs[0], PREDICTION_SET: self.outputs[1]},
            "scores_sha256": self.scores_sha256,
            "graph_bytes": self.graph_bytes,
        }
        return entry | dict(self.facts or {})

    def probabilities(self, scores: np.ndarray, readout: Readout) -> np.ndarray:
        """The output `calibrated`, float32 `[N, size]`, from the model's scores `[N, columns]`."""
        return np.asarray(tempered(scores, readout, self.temperature), np.float32)

    def sets(self, scores: np.ndarray, readout: Readout) -> np.ndarray:
        """The output `prediction_set`, bool `[N, size]`, from the model's scores `[N, columns]`."""
        return conformal.sets(scores, readout, self.rule, self.threshold)

    def least_sure(self, share: float, by: str = "confidence") -> float:
        """The threshold of `top SHARE by QUANTITY`, see `thresholds.least_sure`."""
        return thresholds.least_sure(self.facts, share, by)

    def let_through(self, most: float) -> tuple[str, float]:
        """The quantity and threshold of `risk > MOST`, see `thresholds.let_through`."""
        return thresholds.let_through(self.facts, most)


_FIELDS = frozenset(
    {
        "temperature", "set_temperature", "score", "alpha", "quantile", "threshold", "lambda", "k", "empty", "n",
        "coverage_interval", "coverage_level", "outputs", "scores_sha256", "graph_bytes",
    }
)  # fmt: skip


def doubt(entry: Mapping[str, Any] | None, graph_bytes: int) -> str | None:
    """A sentence where a file's graph is not as long as it was when it was calibrated, else None.

    Arguments:
        entry: the manifest's `calibration`.
        graph_bytes: of the file.
    """
    recorded = (entry or {}).get("graph_bytes")
    if recorded is None or recorded == graph_bytes:
        return None
    return (
        "the file has been changed since it was calibrated, as quantising or simplifying changes it: its calibrated "
        "probabilities and sets may be wrong; `onnxcam check` tells, `onnxcam calibrate` calibrates it again"
    )


def of_manifest(manifest: Mapping[str, Any]) -> Calibration | None:
    """The calibration of a file, None where its manifest has none."""
    entry = manifest.get("calibration")
    return None if not entry else Calibration.from_manifest(entry)
