"""The report on a calibration: reliability before and after, and risk over coverage; numbers, a picture, a page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.html import page as html
from onnxcam.image import sheet
from onnxcam.image.plot import BLUE, ORANGE, Pixels, Plot
from onnxcam.network.calibration.record import Calibration
from onnxcam.network.calibration.reliability import Reliability, measure
from onnxcam.targets.readout import Readout

_GAP = 20
_SIDE = (sheet.WIDTH - 3 * _GAP) // 2
_NUMBERS = (
    ("ece", "expected calibration error (ECE)"),
    ("brier", "Brier score"),
    ("nll", "negative log-likelihood, nats"),
    ("aurc", "area under risk over coverage (AURC)"),
)


@dataclass(frozen=True)
class Report:
    """What a calibration makes of labelled pictures.

    Attributes:
        before, after: the file's own probabilities, and the calibrated ones.
        calibration: which.
        independent: whether classes are independent: their probabilities are compared one by one.
    """

    before: Reliability
    after: Reliability
    calibration: Calibration
    independent: bool = False

    @classmethod
    def of(cls, scores: np.ndarray, truth: np.ndarray, readout: Readout, calibration: Calibration) -> Report:
        """Measure labelled pictures.

        Arguments:
            scores: `[N, columns]`. truth: as of `onnxcam.network.calibration.temperature.check_truth`.

        Raises:
            LabelsError, SettingError, InputError: as of `reliability.measure`.
        """
        before = measure(scores, truth, readout)
        after = measure(scores, truth, readout, calibration.temperature)
        return cls(before, after, calibration, readout.independent)

    @property
    def notes(self) -> list[str]:
        """Sentences about what the numbers mean."""
        mean, high = self.after.ece_by_chance
        sentences = [
            f"ECE is biased upwards: of perfectly calibrated probabilities, {self.after.n:,} pictures would show "
            f"{mean:.3f} by chance, in one of 20 draws more than {high:.3f}.",
            "The temperature was fitted to these pictures, so what it improves is a little too good; one number fitted "
            f"to {self.after.n:,} pictures changes the likelihood by about {0.5 / self.after.n:.1g} nats.",
        ]
        risk = (self.calibration.facts or {}).get("risk")
        if risk:
            sentences.append(
                f"At {risk['by']} {risk['threshold']:.6g} or more, {100 * risk['coverage']:.1f} % of predictions are "
                f"let through, at most {100 * risk['max']:.6g} % of them wrong with {100 * risk['confidence']:.6g} % "
                f"confidence ({risk['errors']:,} of {risk['accepted']:,} here)."
            )
        return sentences

    def describe(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "pictures": self.before.n,
            "temperature": self.calibration.temperature,
            "before": self.before.describe(),
            "after": self.after.describe(),
            "risk": (self.calibration.facts or {}).get("risk"),
            "notes": self.notes,
        }

    def picture(self) -> Pixels:
        """Draw both diagrams, uint8 `[H, 780, 3]` RGB."""
        rows = np.full((_SIDE, sheet.WIDTH, 3), sheet.PAPER, np.uint8)
        for number, plot in enumerate((self._reliability(), self._risk())):
            left = _GAP + number * (_SIDE + _GAP)
            rows[:, left : left + _SIDE] = plot
        title = f"Calibration on {self.before.n:,} pictures"
        ece = f"Expected calibration error (ECE) {self.before.ece:.3f} before, {self.after.ece:.3f} after."
        return sheet.page([sheet.heading(title, [ece]), rows, sheet.heading(self._lines[0], self._lines[1:])])

    @property
    def _lines(self) -> list[str]:
        numbers = (
            f"Brier score {self.before.brier:.4f} before, {self.after.brier:.4f} after; negative log-likelihood "
            f"{self.before.nll:.4f} and {self.after.nll:.4f} nats; AURC {self.before.aurc:.4f} and "
            f"{self.after.aurc:.4f}."
        )
        return ["In numbers", numbers, *self.notes]

    def _reliability(self) -> Pixels:
        across = "probability" if self.independent else "confidence"
        plot = Plot((_SIDE, _SIDE), "Share that came true" if self.independent else "Share that is right", across, "")
        plot.line([0, 1], [0, 1], sheet.FAINT, thick=1)
        for one, color, square in ((self.before, ORANGE, True), (self.after, BLUE, False)):
            bins = one.bins
            plot.intervals(bins.predicted, bins.low, bins.high, color)
            plot.line(bins.predicted, bins.observed, color, dashed=square)
            plot.points(bins.predicted, bins.observed, color, square=square)
        plot.key(0, "before", ORANGE, dashed=True, square=True)
        plot.key(1, "after", BLUE)
        return plot.pixels

    def _risk(self) -> Pixels:
        most = max(float(self.before.risk.max()), float(self.after.risk.max()), 1e-6)
        risk = (self.calibration.facts or {}).get("risk")
        top = _round_up(max(most, 1.2 * float(risk["max"]) if risk else 0.0))
        plot = Plot((_SIDE, _SIDE), "Wrong among the surest", "share let through", "", top=top)
        for one, color, dashed in ((self.before, ORANGE, True), (self.after, BLUE, False)):
            plot.line(one.coverage, one.risk, color, dashed=dashed)
        plot.key(0, "before", ORANGE, dashed=True, square=True)
        plot.key(1, "after", BLUE)
        if risk:
            plot.line([0, 1], [risk["max"]] * 2, sheet.INK, thick=1)
            plot.points(np.array([risk["coverage"]]), np.array([risk["max"]]), sheet.INK, radius=6)
            plot.key(-1, f"at most {100 * risk['max']:.3g} %", sheet.INK)
        return plot.pixels

    def page(self) -> str:
        """The report as one HTML page, which works from `file://`."""
        rows = [
            f"<tr><td>{escape(text)}</td><td>{getattr(self.before, name):.5f}</td>"
            f"<td>{getattr(self.after, name):.5f}</td></tr>"
            for name, text in _NUMBERS
        ]
        bins = [
            f"<tr><td>{count}</td><td>{p:.4f}</td><td>{share:.4f}</td><td>{low:.4f} to {high:.4f}</td></tr>"
            for count, p, share, low, high in zip(
                *(getattr(self.after.bins, name) for name in ("counts", "predicted", "observed", "low", "high")),
                strict=True,
            )
        ]
        alt = "Reliability diagram before and after, and risk over coverage"
        body = [
            f"<h1>Calibration on {self.before.n:,} pictures</h1>",
            html.picture(image.encode_png(self.picture()), alt),
            f"<p>Temperature {self.calibration.temperature:.6g}; accuracy {100 * self.before.accuracy:.2f} %.</p>",
            "<h2>Numbers</h2><table><thead><tr><th></th><th>before</th><th>after</th></tr></thead>",
            f"<tbody>{''.join(rows)}</tbody></table>",
            "<h2>Reliability after, in bins of equally many</h2><table><thead><tr><th>predictions</th>"
            f"<th>{'probability' if self.independent else 'confidence'}</th><th>came true</th>"
            f"<th>95 % interval</th></tr></thead><tbody>{''.join(bins)}</tbody></table>",
            *(f"<p>{escape(note)}</p>" for note in self.notes),
            html.foot(),
        ]
        return html.page("Calibration", body)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((power * step for step in (1, 2, 4, 8) if value <= power * step * (1 + 1e-9)), 10 * power)
