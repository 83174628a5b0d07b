"""The guarantee on predictions that are let through: its error rate over many draws, and what it takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from onnxcam.errors import SettingError
from onnxcam.network.calibration import selective_risk
from onnxcam.network.calibration.selective_risk import guarantee

GRID = np.linspace(0, 1, 100_001)
# the probability of a wrong prediction, by confidence, which is uniform
RISKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "falls with confidence": lambda c: 0.3 * (1 - c) ** 2,
    "the most confident are wrong": lambda c: np.where(c > 0.97, 0.2, 0.06 * (1 - c) + 0.035),
    "is the bound everywhere": lambda c: np.full_like(c, 0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RISKS)
def test_the_risk_is_higher_than_stated_in_few_draws(name: str) -> None:
    risk = RISKS[name]
    tail = np.cumsum(risk(GRID)[::-1])[::-1] / np.arange(len(GRID), 0, -1)  # of those at or above each confidence
    draws, broken, coverage = 120, 0, []
    for seed in range(draws):
        generator = np.random.default_rng(seed)
        confidence = generator.random(1000)
        wrong = generator.random(1000) < risk(confidence)
        try:
            result = guarantee(confidence, wrong, 0.05)
        except SettingError:
            continue
        assert result.accepted == (confidence >= result.threshold).sum()
        assert result.errors == wrong[confidence >= result.threshold].sum()
        broken += tail[int(result.threshold * (len(GRID) - 1))] > 0.05
        coverage.append(result.coverage)
    assert broken <= stats.binom.ppf(0.999, draws, 0.05)
    if name == "falls with confidence":  # 0.71 could be let through if the risk was known
        assert len(coverage) >= 112
        assert np.mean(coverage) > 0.45


def test_too_few_pictures_are_told_how_many_it_takes() -> None:
    needed = selective_risk.fewest(0.01, 0.95)
    assert needed == 528  # 0.99^528 is below 0.05 / 10 starts, 0.99^527 is not
    assert 0.99**needed <= 0.005 < 0.99 ** (needed - 1)
    with pytest.raises(SettingError, match=r"takes 528 predictions that are let through without an error.*got 527"):
        guarantee(np.ones(527), np.zeros(527, bool), 0.01)
    assert guarantee(np.ones(528), np.zeros(528, bool), 0.01).coverage == 1
    with pytest.raises(SettingError, match=r"cannot be shown at any threshold: .* 60 of the 600"):
        guarantee(np.full(600, 0.9), np.arange(600) < 60, 0.01)


@pytest.mark.parametrize(
    ("count", "n", "share"), [(0, 10, 0.1), (5, 300, 0.01), (100, 5000, 0.03), (9, 10, 0.5), (4, 4, 0.2)]
)
def test_the_tail_is_scipys(count: int, n: int, share: float) -> None:
    assert selective_risk._at_most(count, n, share) == pytest.approx(stats.binom.cdf(count, n, share), rel=1e-9)


@pytest.mark.parametrize(("risk", "confidence"), [(0, 0.95), (1, 0.95), (True, 0.95), (0.1, 1.0), ("1%", 0.95)])
def test_shares_outside_are_refused(risk: float, confidence: float) -> None:
    with pytest.raises(SettingError, match="expected a share above 0 and below 1"):
        guarantee(np.ones(1000), np.zeros(1000, bool), risk, confidence)
