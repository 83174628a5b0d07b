"""Facts of scores against NumPy, and what they decide about a readout."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from onnxcam.errors import ModelError
from onnxcam.network.readout import settle
from onnxcam.network.score_facts import measure
from onnxcam.targets.readout import BINARY, LOGITS, MULTILABEL, PROBABILITIES, REGRESSION, Readout

LOGIT = np.random.default_rng(7).normal(scale=3, size=(6, 9))
P = special.softmax(LOGIT, axis=1)


def test_facts_of_probabilities() -> None:
    facts = measure(P.astype(np.float32))
    assert (facts.rows, facts.columns, facts.finite) == (6, 9, True)
    assert facts.total == 1 and facts.distribution and facts.within_unit and not facts.ranked and not facts.constant
    assert facts.lowest == pytest.approx(P.min()) and facts.highest == pytest.approx(P.max())
    assert measure(100 * P).total == 100 and measure(100 * P).distribution
    assert measure(P[:, :, None, None]) == measure(P)


def test_facts_of_logits() -> None:
    facts = measure(LOGIT)
    assert facts.total is None and not facts.distribution and not facts.within_unit
    assert not measure(np.abs(LOGIT)).distribution
    negative = P - 0.01 + 0.01 * np.eye(9)[0] * 9  # sums to 1, with negative values
    assert (negative < 0).any() and not measure(negative).distribution


def test_eight_bits_are_still_probabilities() -> None:
    assert measure(np.round(P * 255) / 255).distribution


@pytest.mark.parametrize(("direction", "ranked"), [(-1, True), (1, False)])
def test_sorted_rows(direction: int, ranked: bool) -> None:
    facts = measure(direction * np.sort(direction * P, axis=1))
    assert facts.ranked is ranked and facts.descending is ranked and facts.ascending is not ranked
    assert measure(np.zeros((3, 9))).ranked is False
    assert measure(np.tile(np.arange(9.0)[::-1], (4, 1))).constant


def test_rows_that_are_not_finite_are_left_out() -> None:
    values = P.copy()
    values[2, 3] = np.nan
    facts = measure(values)
    assert not facts.finite and facts.rows == 5 and facts.distribution
    assert measure(np.full((2, 3), np.inf)).rows == 0
    assert facts.describe()["finite"] is False


def test_probabilities_taken_for_logits_are_settled_by_their_numbers() -> None:
    settled = settle(Readout("p", LOGITS, 9, "p"), measure(P))
    assert (settled.kind, settled.output, settled.scale) == (PROBABILITIES, None, 1.0)
    assert "every row sums to 1" in settled.warnings[0]
    percentages = settle(Readout("p", LOGITS, 9, "p"), measure(100 * P))
    assert percentages.kind == PROBABILITIES and percentages.scale == 100 and percentages.output is None
    assert "every row sums to 100; the logarithm of each is explained" in percentages.warnings[0]
    with pytest.raises(ModelError, match="kind='logits' was declared; use kind='probabilities'"):
        settle(Readout("p", LOGITS, 9), measure(P), declared=True)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (LOGITS, LOGIT),
        (LOGITS, np.abs(LOGIT)),
        (PROBABILITIES, np.log(P)),
        (MULTILABEL, LOGIT),
        (BINARY, LOGIT[:, :1]),
        (REGRESSION, P[:, :1]),
    ],
)
def test_numbers_that_agree_change_nothing(kind: str, values: np.ndarray) -> None:
    readout = Readout("z", kind, 9)
    assert settle(readout, measure(values)) is readout


def test_what_is_not_the_logarithm_of_a_probability() -> None:
    for values, message in ((LOGIT, "above 0"), (np.log(P) - 9, "cannot sum to 1")):
        with pytest.raises(ModelError, match=message):
            settle(Readout("z", PROBABILITIES, 9), measure(values))


def test_ranks_are_not_classes() -> None:
    ranks = -np.sort(-LOGIT, axis=1)
    with pytest.raises(ModelError, match=r"ranks and not classes.*--scores"):
        settle(Readout("z", LOGITS, 9), measure(ranks))
    (warning,) = settle(Readout("z", LOGITS, 6), measure(ranks[:, :6])).warnings
    assert "ranks" in warning
    assert settle(Readout("z", LOGITS, 4), measure(ranks[:, :4])).warnings == ()


def test_scores_that_are_not_finite_are_said() -> None:
    values = LOGIT.copy()
    values[0, 0] = np.inf
    assert "some scores are not finite" in settle(Readout("z", LOGITS, 9), measure(values)).warnings[0]
    assert (
        "scores that are not finite occur on every picture"
        in settle(Readout("z", LOGITS, 9), measure(values * np.nan)).warnings[0]
    )
