"""Conditions that a calibration answers: sets, calibrated confidence, shares of traffic, risk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcam.errors import SettingError
from onnxcam.network.calibration import thresholds
from onnxcam.network.calibration.conformal import Rule
from onnxcam.network.calibration.record import Calibration
from onnxcam.targets import conditions
from onnxcam.targets.conditions import Comparison, Risk, Top
from onnxcam.targets.readout import Readout

READOUT = Readout("logits", "logits", 3)
P = np.array([[0.9, 0.06, 0.04], [0.5, 0.45, 0.05], [0.34, 0.33, 0.33], [np.nan, 0.5, 0.5]])


def calibration(**facts: Any) -> Calibration:
    return Calibration(2.0, Rule("lac", 1.0), 0.1, 0.4, 99, (0.84, 0.95), facts=facts)


def fires(text: str, p: np.ndarray = P, result: Calibration | None = None) -> list[bool]:
    result = result or calibration()
    tree = conditions.bind(conditions.parse(text, classes=3), result)
    return conditions.evaluate(tree, conditions.quantities(p, READOUT, conditions.names(tree), result)).tolist()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        # sets at p >= 0.4: {0}, {0, 1}, {} and, of the row that is not finite, {}
        ("set > 1", [False, True, True, True]),
        ("set >= 2", [False, True, True, True]),
        ("set <= 1", [True, False, False, False]),
        ("set < 3", [True, True, False, False]),
        ("set == 0", [False, False, True, True]),
        ("set != 1", [False, True, True, True]),
        ("set == 2", [False, True, False, False]),
        ("not set > 1", [True, False, False, False]),
        ("1 < set", [False, True, True, True]),
        ("set > 3", [False, False, True, True]),
    ],
)
def test_an_empty_set_is_beyond_all_others(text: str, want: list[bool]) -> None:
    assert fires(text) == want


def test_calibrated_is_the_largest_probability_at_the_temperature() -> None:
    root = np.sqrt(P)
    best = (root / root.sum(axis=1, keepdims=True)).max(axis=1)
    actual = conditions.quantities(P, READOUT, {"calibrated"}, calibration())["calibrated"]
    np.testing.assert_allclose(actual[:3], best[:3], atol=1e-7)
    assert actual[3] == 0
    assert fires("calibrated < 62%") == [False, True, True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("set > 0", "`set == 0` finds the empty sets"),
        ("set >= 1", "`set == 0` finds the empty sets"),
        ("set < 1", "an empty one says that no class fits"),
        ("set > 1.5", "a whole number from 0 to 3"),
        ("set > 4", "a whole number from 0 to 3"),
        ("set > 5%", "a whole number from 0 to 3"),
        ("top 5", "a share of traffic above 0 % and below 100 %"),
        ("top 100%", "a share of traffic above 0 % and below 100 %"),
        ("top 5% by label", "`top` ranks by one of confidence, margin, entropy, calibrated"),
        ("top < 5%", "a share of traffic"),
        ("risk >= 1%", "a risk is bounded from above"),
        ("risk > 0", "a share of wrong predictions"),
        ("risk > 'x'", "a share of wrong predictions"),
        ("calibrated < 2", "calibrated is a number from 0 to 1"),
        ("confidence < 160%", "confidence is a number from 0 to 1"),
        ("set", "expected one of < <= > >= == !="),
        ("by", "expected one of confidence, margin, entropy, label, calibrated, set, risk, `top`, `not` or `(`"),
    ],
)
def test_errors_say_what_is_meant(text: str, message: str) -> None:
    with pytest.raises(SettingError) as raised:
        conditions.parse(text, classes=3)
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["set > 1", "calibrated < 0.5", "top 5%", "risk > 1%", "not (risk <= 1% or set > 1)"])
def test_a_file_without_a_calibration_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"this file has no calibration; make one .*onnxcam calibrate"):
        conditions.bind(conditions.parse(text), None)


def test_a_share_of_traffic_becomes_a_threshold() -> None:
    values = {"confidence": np.linspace(0.01, 1, 199), "entropy": np.linspace(0, 0.99, 199)}
    result = calibration(quantiles=thresholds.quantiles(values))
    assert conditions.parse("top 5%") == Top(0.05)
    bound = conditions.bind(conditions.parse("top 5%"), result)
    assert bound == Comparison("confidence", "<", values["confidence"][9])  # the tenth of 199: 10 / 200
    assert conditions.bind(conditions.parse("top 5% by entropy"), result) == Comparison(
        "entropy", ">", values["entropy"][-10]
    )
    with pytest.raises(SettingError, match="tell of shares from 0\\.5 % to 95 %"):
        conditions.bind(conditions.parse("top 0.1%"), result)
    with pytest.raises(SettingError, match="needs quantiles of margin"):
        conditions.bind(conditions.parse("top 5% by margin"), result)
    assert conditions.bind(conditions.parse("top 0.1%"), None, online=True) == Top(0.001)


@pytest.mark.parametrize("n", [100, 2000])
def test_a_share_of_traffic_opens_within_its_interval(n: int) -> None:
    inside = 0
    low, high = thresholds.opened_interval(n, 0.05)
    for seed in range(300):
        generator = np.random.default_rng(seed)
        entry = thresholds.quantiles({"confidence": generator.beta(6, 1, n)})
        threshold = thresholds.least_sure({"quantiles": entry}, 0.05, "confidence")
        opened = threshold**6  # the distribution function of Beta(6, 1)
        inside += low <= opened <= high
    assert 270 <= inside <= 297  # 95 % of 300, four standard errors


def test_risk_is_bound_to_what_the_calibration_shows() -> None:
    result = calibration(risk={"max": 0.01, "confidence": 0.95, "by": "confidence", "threshold": 0.8})
    assert conditions.parse("risk > 1%") == Risk(0.01, True)
    assert fires("risk > 1%", result=result) == [False, True, True, True]
    assert fires("risk <= 0.01", result=result) == [True, False, False, False]
    with pytest.raises(
        SettingError, match="shows at most 1% wrong; write `risk > 1%`, or calibrate it with --max-risk 2%"
    ):
        conditions.bind(conditions.parse("risk > 2%"), result)
    with pytest.raises(SettingError, match="shows no bound on the share of wrong predictions"):
        conditions.bind(conditions.parse("risk > 1%"), calibration())


@pytest.mark.parametrize("kind", ["logits", "binary_logit", "multilabel", "probabilities"])
def test_scores_of_inverts_probabilities(kind: str) -> None:
    readout = Readout("logits", kind, 2 if kind == "binary_logit" else 4)
    scores = np.random.default_rng(0).normal(0, 3, (50, readout.columns)).astype(np.float32)
    p = readout.probabilities(scores if kind != "probabilities" else np.log(np.full((50, 4), 0.25)))
    np.testing.assert_allclose(readout.probabilities(readout.scores_of(p)), p, rtol=2e-5, atol=1e-7)
