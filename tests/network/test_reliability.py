"""Reliability in numbers, against scikit-learn and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from onnxcam.network.calibration import reliability
from onnxcam.targets.readout import Readout


def softmax(readout: Readout, scores: np.ndarray) -> np.ndarray:
    return special.softmax(np.concatenate([0 * scores, scores], axis=1) if readout.signed else scores, axis=1)


def draw(kind: str, n: int = 700, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Readout]:
    generator = np.random.default_rng(seed)
    readout = Readout("logits", kind, 2 if kind == "binary_logit" else 5)
    scores = generator.normal(0, 2, (n, readout.columns))
    p = readout.probabilities(scores).astype(np.float64)
    if kind == "multilabel":
        return scores, generator.random(p.shape) < p, readout
    p = p**0.5 / (p**0.5).sum(axis=1, keepdims=True)  # less sure than the scores say
    return scores, (p.cumsum(axis=1) > generator.random((n, 1))).argmax(axis=1), readout


@pytest.mark.parametrize("kind", ["logits", "binary_logit"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_numbers_are_scikit_learns(kind: str, temperature: float) -> None:
    scores, truth, readout = draw(kind)
    actual = reliability.measure(scores, truth, readout, temperature)
    p = softmax(readout, scores / temperature)
    right = p.argmax(axis=1) == truth
    share, mean = calibration_curve(right, p.max(axis=1), n_bins=15, strategy="quantile")
    np.testing.assert_allclose(actual.bins.observed, share, atol=1e-9)
    np.testing.assert_allclose(actual.bins.predicted, mean, atol=1e-6)
    assert actual.nll == pytest.approx(log_loss(truth, p, labels=range(readout.size)), rel=1e-5)
    hot = np.eye(readout.size)[truth]
    assert actual.brier == pytest.approx(((p - hot) ** 2).sum(axis=1).mean(), rel=1e-5)
    if readout.size == 2:  # scikit-learn's is of one class
        assert actual.brier == pytest.approx(2 * brier_score_loss(truth, p[:, 1]), rel=1e-5)
    assert actual.ece == pytest.approx(
        sum(np.abs(share - mean) * np.diff(np.linspace(0, 1, 16))), abs=2e-3
    )  # bins of 46 or 47
    assert actual.accuracy == right.mean()
    order = np.argsort(-p.max(axis=1))
    assert actual.aurc == pytest.approx((np.cumsum(~right[order]) / np.arange(1, 701)).mean(), abs=1e-9)
    assert actual.risk[-1] == pytest.approx(1 - right.mean())
    assert (actual.bins.low <= actual.bins.observed).all()
    assert (actual.bins.observed <= actual.bins.high).all()


def test_independent_classes_are_compared_one_by_one() -> None:
    scores, truth, readout = draw("multilabel")
    actual = reliability.measure(scores, truth, readout)
    p = readout.probabilities(scores).astype(np.float64)
    share, _ = calibration_curve(truth.ravel(), p.ravel(), n_bins=15, strategy="quantile")
    np.testing.assert_allclose(actual.bins.observed, share, atol=1e-9)
    assert actual.brier == pytest.approx(np.mean([brier_score_loss(truth[:, k], p[:, k]) for k in range(5)]), rel=1e-5)
    assert actual.nll == pytest.approx(sum(log_loss(truth[:, k], p[:, k], labels=[0, 1]) for k in range(5)), rel=1e-5)


@pytest.mark.slow
def test_the_bias_of_ece_is_stated() -> None:
    # of probabilities that are right, ECE is not 0: it is what chance makes of it
    generator = np.random.default_rng(3)
    readout = Readout("logits", "logits", 4)
    inside = 0
    for _ in range(16):
        scores = generator.normal(0, 2, (300, 4))
        p = readout.probabilities(scores).astype(np.float64)
        truth = (p.cumsum(axis=1) > generator.random((300, 1)) * p.sum(axis=1, keepdims=True)).argmax(axis=1)
        actual = reliability.measure(scores, truth, readout)
        assert actual.ece_by_chance[0] > 0.03
        inside += actual.ece <= actual.ece_by_chance[1]
    assert inside >= 12  # 95 % of 16, with three standard errors and a half


def test_ties_do_not_depend_on_the_order_of_pictures() -> None:
    values, wrong = np.array([0.9, 0.5, 0.5, 0.5]), np.array([False, True, False, False])
    want = [0, 1 / 6, 2 / 9, 1 / 4]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]):
        coverage, risk, area = reliability.risk_coverage(values[order], wrong[order])
        np.testing.assert_allclose(risk, want)
        np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
        assert area == pytest.approx(np.mean(want))
