"""LAC, APS and RAPS against MAPIE 1.6, and coverage over many splits: `make fleets`.

MAPIE always draws numbers for the calibration scores of APS and RAPS; with the same ones, those here are equal.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special

from onnxcam.network.calibration import conformal, intervals
from onnxcam.network.calibration.conformal import Rule
from onnxcam.targets.readout import LOGITS, Readout
from tests.support import environments

SEED, N, SIZE = 7, 400, 8
READOUT = Readout("scores", LOGITS, SIZE)
ALPHAS = (0.05, 0.1, 0.3)
PROGRAM = """
import json, sys
import numpy as np
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

class Probabilities(ClassifierMixin, BaseEstimator):
    def __init__(self, classes=2):
        self.classes = classes
        self.classes_ = np.arange(classes)
    def fit(self, X, y=None): return self
    def predict_proba(self, X): return X
    def predict(self, X): return X.argmax(axis=1)
    def __sklearn_is_fitted__(self): return True

data, results = np.load(sys.argv[1]), {}
n = len(data["truth"])
for alpha in (0.05, 0.1, 0.3):
    for score in ("lac", "aps", "raps"):
        mapie = SplitConformalClassifier(
            Probabilities(data["p"].shape[1]), confidence_level=1 - alpha, prefit=True, conformity_score=score,
            random_state=7,
        )
        mapie.conformalize(data["p"][:n], data["truth"])
        inner = mapie._mapie_classifier.conformity_score_function_
        modes = ["plain"] if score == "lac" else [False, "randomized"]
        entry = {"sets": {}}
        for mode in modes:
            options = {} if mode == "plain" else {"include_last_label": mode}
            _, sets = mapie.predict_set(data["p"][n:], conformity_score_params=options)
            entry["sets"][str(mode)] = sets[:, :, 0].astype(int).tolist()
        entry["quantile"] = float(np.ravel(inner.quantiles_)[0])
        if score == "raps":
            entry["k"], entry["lambda"] = float(np.ravel(inner.k_star)[0]), float(np.ravel(inner.lambda_star)[0])
        results[f"{score} {alpha}"] = entry
print(json.dumps(results))
"""
# what MAPIE 1.6.0 answered on 30 November 2026: quantile, SHA-256 of the sets without drawn labels
RECORDED = {
    "lac 0.05": {"quantile": 0.9864947579415504, "sets": "5b1f0d0acafcf9d7"},
    "aps 0.05": {"quantile": 0.9809326515572552, "sets": "c635f8c3596d579d"},
    "raps 0.05": {"quantile": 0.9831328103682102, "sets": "124b1bd10908491d", "k": 6, "lambda": 0.5},
    "lac 0.1": {"quantile": 0.9687285627761267, "sets": "7f837b5641c9a77c"},
    "aps 0.1": {"quantile": 0.9629755815169372, "sets": "a1d762a6f3b11564"},
    "raps 0.1": {"quantile": 0.9620839045758409, "sets": "1731a3826764fed1", "k": 6, "lambda": 0.5},
    "lac 0.3": {"quantile": 0.8651519208713262, "sets": "c7fc63c63c766249"},
    "aps 0.3": {"quantile": 0.8016862421202986, "sets": "868968f304cb1cf8"},
    "raps 0.3": {"quantile": 0.7916727571054543, "sets": "cb7f1ba570356f74", "k": 3, "lambda": 0.5},
}


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores = rng.normal(scale=2, size=(900, SIZE))
    return scores, (scores / 1.5 + rng.gumbel(size=scores.shape)).argmax(axis=1)


def tuning(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MAPIE's split of the calibration pictures for RAPS: those of the quantile, and those that choose."""
    from sklearn.model_selection import StratifiedShuffleSplit

    split = StratifiedShuffleSplit(n_splits=1, random_state=SEED)
    rest, some = next(split.split(np.zeros((N, 1)), truth))
    return rest, some


def answer(
    scores: np.ndarray, truth: np.ndarray, score: str, alpha: float, k: int = 0, penalty: float = 0.0
) -> tuple[float, np.ndarray, np.ndarray]:
    """The quantile with MAPIE's draws, the sets without drawn labels and those with its draws."""
    rule = Rule(score, 1.0, penalty, k, never_empty=score != "lac")
    rows = tuning(truth[:N])[0] if score == "raps" else np.arange(N)
    draws = None if score == "lac" else np.random.RandomState(SEED).uniform(size=len(rows))
    values = conformal.conformity(scores[rows], READOUT, rule, draws)
    limit = conformal.threshold(conformal.true_conformity(values, truth[rows]), alpha)
    plain = conformal.sets(scores[N:], READOUT, rule, limit)
    again = np.random.RandomState(SEED).uniform(size=len(scores) - N)
    drawn = conformal.sets(scores[N:], READOUT, Rule(score, 1.0, penalty, k), limit, again)
    return 1 - limit, plain, drawn


def fingerprint(sets: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(np.asarray(sets, bool)).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_answers(name: str, data: tuple[np.ndarray, np.ndarray]) -> None:
    score, alpha = name.split()
    recorded: Any = RECORDED[name]
    quantile, sets, _ = answer(*data, score, float(alpha), int(recorded.get("k", 0)), recorded.get("lambda", 0.0))
    assert quantile == pytest.approx(recorded["quantile"], abs=1e-12)
    assert fingerprint(sets) == recorded["sets"]


@pytest.mark.fleets
def test_mapie(data: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    scores, truth = data
    np.savez(tmp_path / "data.npz", p=scipy.special.softmax(scores, axis=1), truth=truth[:N])
    results = environments.run("mapie", PROGRAM, tmp_path / "data.npz")
    for alpha in ALPHAS:
        for score in conformal.SCORES:
            entry = results[f"{score} {alpha}"]
            k, penalty = int(entry.get("k", 0)), entry.get("lambda", 0.0)
            quantile, plain, drawn = answer(scores, truth, score, alpha, k, penalty)
            assert quantile == pytest.approx(entry["quantile"], abs=1e-12), (score, alpha)
            if score == "lac":
                assert quantile == entry["quantile"]
            expected = np.array(entry["sets"]["plain" if score == "lac" else "False"], bool)
            assert (plain == expected).all(), (score, alpha)
            if score != "lac":
                assert (drawn == np.array(entry["sets"]["randomized"], bool)).all(), (score, alpha)
            if score == "raps":
                some = tuning(truth[:N])[1]
                best = conformal.choose(scores[some], truth[some], READOUT, alpha, Rule("raps"), penalties=[0.1])
                assert best.k == k
            recorded: Any = RECORDED[f"{score} {alpha}"]
            assert recorded["quantile"] == entry["quantile"] and recorded["sets"] == fingerprint(expected)


@pytest.mark.fleets
@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("n", [50, 1000])
@pytest.mark.parametrize("score, penalty, k", [("lac", 0, 0), ("aps", 0, 0), ("raps", 0.02, 3)])
def test_coverage(score: str, penalty: float, k: int, n: int, alpha: float) -> None:
    """1,000 splits of fresh pictures: the mean is exact, and the shares are beta-binomial (as the promise says)."""
    rng, rule, m = np.random.default_rng(n), Rule(score, 1.0, penalty, k), 500
    low, high = intervals.observed_coverage_interval(n, alpha, m)
    shares = []
    for _ in range(1000):
        scores = rng.normal(scale=2, size=(n + m, SIZE))
        truth = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
        values = conformal.true_conformity(conformal.conformity(scores, READOUT, rule), truth)
        shares.append(float((values[n:] >= conformal.threshold(values[:n], alpha)).mean()))
    expected = 1 - intervals.miscovered(n, alpha) / (n + 1)
    assert abs(np.mean(shares) - expected) < 3 * np.std(shares, ddof=1) / np.sqrt(1000)
    inside = np.mean([(low <= share <= high) for share in shares])
    assert 0.92 <= inside <= 0.98
