"""Conditions under which a comparison fails a gate.

`attention`, `preprocessing`, `predictions > 1%`, `accuracy`, `region > 10%`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxcam.diagnose.shift.junit import Condition as Outcome
from onnxcam.diagnose.shift.result import Shift
from onnxcam.diagnose.shift.text import titles
from onnxcam.errors import SettingError

ATTENTION, PREDICTIONS, ACCURACY, REGION = "attention", "predictions", "accuracy", "region"
PREPROCESSING = "preprocessing"
# the share above which each holds, where none is stated
DEFAULTS = {PREDICTIONS: 0.0, ACCURACY: 0.0, REGION: 0.1}
_FORM = re.compile(r"\s*([a-z]+)\s*(?:>\s*([0-9]{1,3}(?:\.[0-9]{1,6})?)\s*%\s*)?")


@dataclass(frozen=True)
class Condition:
    """A condition on a comparison.

    Attributes:
        kind: `attention` (the verdict says that it moved), `preprocessing` (the two files prepare a picture
            differently, as measured), `predictions` (the share that flipped), `accuracy` (how much of it is lost),
            `region` (how much of the energy the region that loses most loses).
        threshold: the share above which it holds, 0 to 1; None for the first two.
    """

    kind: str
    threshold: float | None

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Raises:
            SettingError: something else.
        """
        match = _FORM.fullmatch(text)
        kind = match[1] if match else ""
        if match and kind in DEFAULTS and (match[2] is None or float(match[2]) <= 100):
            return cls(kind, DEFAULTS[kind] if match[2] is None else float(match[2]) / 100)
        if match and kind in (ATTENTION, PREPROCESSING) and match[2] is None:
            return cls(kind, None)
        raise SettingError(
            f"the condition {text!r} is none; expected attention, preprocessing, predictions, accuracy or region, the "
            "last three with a share if wanted: 'predictions > 1%'"
        )

    def require(self, *, null: bool, truth: bool, regions: bool) -> None:
        """Refuse a condition that can never be decided.

        Raises:
            SettingError: `attention` without a null, `accuracy` without the truth, `region` without regions.
        """
        for kind, present, remedy in (
            (ATTENTION, null, "name a null, seeds:FILE,... or augment:M (--null)"),
            (ACCURACY, truth, "give the true classes (--truth)"),
            (REGION, regions, "give boxes or masks (--regions)"),
        ):
            if self.kind == kind and not present:
                raise SettingError(f"the condition {kind!r} cannot be decided: {remedy}")

    def decide(self, shift: Shift) -> Outcome:
        """Return the outcome; where it cannot be decided, `failed` is None and the sentence says why."""
        try:
            return self.outcome(shift)
        except SettingError as error:
            return Outcome(self.kind, None, str(error))

    def outcome(self, shift: Shift) -> Outcome:
        """Return whether the condition holds, with a sentence.

        Raises:
            SettingError: it cannot be decided.
        """
        if self.kind == ATTENTION and shift.undecided:
            raise SettingError(shift.undecided)
        self.require(null=shift.verdict is not None, truth=shift.accuracy is not None, regions=bool(shift.regions))
        if self.kind == ATTENTION and shift.verdict is not None:
            return Outcome(self.kind, shift.verdict.moved, shift.verdict.sentence)
        if self.kind == PREPROCESSING:
            return _preprocessing(shift)
        threshold, total = self.threshold or 0.0, len(shift.pictures)
        if self.kind == PREDICTIONS:
            if not shift.predicts_classes:
                raise SettingError(
                    "the condition 'predictions' cannot be decided: these models predict numbers, which do not flip"
                )
            share, what = shift.flipped_share, f"of the {titles(shift)[2]} flipped"
        elif self.kind == ACCURACY and shift.accuracy is not None:
            share = shift.accuracy[0] - shift.accuracy[1]
            what = f"of the accuracy is lost, on {shift.truths} of {total} pictures, whose class is known"
        else:
            worst = min(shift.regions, key=lambda one: one.new - one.old)
            share = worst.old - worst.new
            what = (
                f"of the energy left {worst.name or 'the regions'} ({worst.old:.0%} -> {worst.new:.0%}) on "
                f"{worst.pictures} of {total} pictures"
            )
        # the margin: a share of exactly 1 % is not above 1 %, whatever the rounding
        failed = share > threshold + 1e-12
        than = "more than" if failed else "not more than"
        return Outcome(self.kind, failed, f"{share:.2%} {what}, {than} {100 * threshold:g} %")


def _preprocessing(shift: Shift) -> Outcome:
    differing, total = shift.preparation.differing, len(shift.pictures)
    if not differing:
        return Outcome(PREPROCESSING, False, f"the two files prepare all {total} pictures alike")
    sentence = f"the two files prepare {differing} of {total} pictures differently: {shift.preparation.sentence}"
    return Outcome(PREPROCESSING, True, sentence)
