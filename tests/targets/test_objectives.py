"""What is explained: its value, its derivative, and what a target may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcam.errors import TargetError
from onnxcam.targets import objectives
from onnxcam.targets.objectives import Contrast, Probability, Weights, resolve
from onnxcam.targets.readout import BINARY, KINDS, LOGITS, REGRESSION, Readout

LABELS = ["tabby, tabby cat", "tiger cat", "lynx", "cup", "espresso"]
SCORES = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32) * 2
FIVE, ONE_LOGIT = Readout("scores", LOGITS, 5), Readout("scores", BINARY, 2)


def slope(objective: objectives.Objective, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Central differences in float64."""
    expected = np.zeros(scores.shape)
    for column in range(scores.shape[1]):
        step = np.zeros(scores.shape[1])
        step[column] = 1e-6
        high, low = objective.value(scores + step, rows), objective.value(scores - step, rows)
        expected[:, column] = (high - low) / 2e-6
    return expected


@pytest.mark.parametrize(
    "target",
    [None, 2, "lynx", [0, 1, 2, -1], Contrast(), Contrast("lynx"), Contrast("lynx", "cup"), Weights([1, 0, -2, 0, 0.5]),
     Weights({"lynx": 1, 4: -1}), [Contrast(), 3, Weights({0: 1}), None]],
)  # fmt: skip
def test_a_linear_objective_has_its_weights_as_derivative(target: Any) -> None:
    objective = resolve(target, SCORES, FIVE, LABELS)
    rows = np.array([3, 0, 2, 2, 1])
    scores = SCORES[rows].astype(np.float64) + 0.3
    assert objective.linear
    assert np.allclose(objective.cotangent(scores, rows), slope(objective, scores, rows), atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != REGRESSION])
@pytest.mark.parametrize("target", [None, [1, 0, 1, 0]])
def test_a_probability_is_differentiated_through_its_softmax_or_sigmoid(kind: str, target: Any) -> None:
    scores = SCORES[:, :1] if kind == "binary_logit" else SCORES
    if kind == "probabilities":
        scores = np.log(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))
    want = Probability() if target is None else [Probability(index) for index in target]
    objective = resolve(want, scores, Readout("scores", kind, 2 if kind == "binary_logit" else 5))
    rows = np.arange(4)
    # `value` is of float32 probabilities, so the oracle is written out in float64
    y = scores.astype(np.float64)

    def probability(y: np.ndarray) -> np.ndarray:
        if kind == "logits":
            p = np.exp(y - y.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
        elif kind == "probabilities":
            p = np.exp(y)
        else:
            p = 1 / (1 + np.exp(-y))
            p = np.concatenate([1 - p, p], axis=1) if kind == "binary_logit" else p
        return p[rows, objective.classes]

    assert np.allclose(objective.value(y, rows), probability(y), atol=1e-6)
    for column in range(y.shape[1]):
        step = np.zeros(y.shape[1])
        step[column] = 1e-6
        expected = (probability(y + step) - probability(y - step)) / 2e-6
        assert np.allclose(objective.cotangent(y, rows)[:, column], expected, atol=1e-6)
    assert not objective.linear


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_finercams_objective_against_differences(alpha: float) -> None:
    objective = objectives.finer(np.array([0, 1, 2, 3]), SCORES, FIVE, alpha, 3)
    rows = np.array([0, 1, 2, 3, 1])
    scores = SCORES[rows].astype(np.float64) + np.random.default_rng(0).normal(size=(5, 5)) * 0.1
    assert np.allclose(objective.cotangent(scores, rows), slope(objective, scores, rows), atol=1e-6)


def test_a_contrast_without_names_is_the_best_class_against_its_runner_up() -> None:
    objective = resolve(Contrast(), SCORES, FIVE)
    ranked = np.sort(SCORES, axis=1)
    assert np.allclose(objective.value(SCORES, np.arange(4)), ranked[:, -1] - ranked[:, -2], atol=1e-6)
    assert (objective.classes == SCORES.argmax(axis=1)).all()


def test_one_logit_stands_for_two_classes() -> None:
    scores = np.array([[2.0], [-1.0]], np.float32)
    rows = np.arange(2)
    assert resolve(None, scores, ONE_LOGIT).value(scores, rows).tolist() == [2, 1]
    assert resolve(Contrast(1, 0), scores, ONE_LOGIT).value(scores, rows).tolist() == [4, -2]
    assert resolve(Weights([0, 1]), scores, ONE_LOGIT).value(scores, rows).tolist() == [2, -1]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (Contrast("lynx", "lynx"), "'lynx' with itself"),
        (Contrast("linx"), "no class is called 'linx'"),
        (Probability(7), "expected 0 to 4"),
        (Weights([1, 2]), r"shape \[2\]; expected 5 finite numbers"),
        (Weights([0, 0, 0, 0, 0]), "not all zero"),
        (Weights([1, 0, 0, 0, float("nan")]), "finite"),
        (Weights({-1: 1}), "top-1"),
        ([Contrast(), None], "got 2 targets for 4 pictures"),
    ],
)
def test_a_target_that_means_nothing_is_one_sentence(target: Any, sentence: str) -> None:
    with pytest.raises(TargetError, match=sentence):
        resolve(target, SCORES, FIVE, LABELS)


def test_finercam_needs_rivals() -> None:
    with pytest.raises(TargetError, match="use gradcam"):
        objectives.finer(np.array([1]), np.array([[0.3]]), ONE_LOGIT, 1.0, 3)
