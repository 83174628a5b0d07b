"""What columns of scores mean, for each kind of classifier."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from onnxcam.errors import TargetError
from onnxcam.targets.readout import APPENDED, BINARY, KINDS, LOGITS, MULTILABEL, PROBABILITIES, REGRESSION, Readout

SCORES = np.random.default_rng(2).normal(scale=3, size=(6, 4)).astype(np.float32)


def case(kind: str) -> tuple[Readout, np.ndarray]:
    if kind in (BINARY, REGRESSION):
        return Readout("s", kind, 2 if kind == BINARY else 1), SCORES[:, :1]
    return Readout("s", kind, 4), special.log_softmax(SCORES, axis=1) if kind == PROBABILITIES else SCORES


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifests_entry_gives_the_readout_back(kind: str) -> None:
    readout = Readout("z", kind, 2, None, "odds")
    entry = readout.describe()
    assert entry == {"name": APPENDED[kind], "kind": kind, "classes": 2, "probabilities": "odds"}
    assert Readout.from_manifest(entry) == Readout(APPENDED[kind], kind, 2, APPENDED[kind], "odds")
    assert Readout.from_manifest(entry).describe() == entry


def test_what_there_is_to_say_of_the_scores_is_in_the_manifest() -> None:
    readout = Readout("p", PROBABILITIES, 2, scale=100.0, stepped_over=("Clip",), warnings=("a", "b"))
    entry = readout.describe()
    assert entry == {
        "name": "log_probabilities",
        "kind": "probabilities",
        "classes": 2,
        "probabilities": None,
        "scale": 100,
        "stepped_over": ["Clip"],
        "warnings": ["a", "b"],
    }
    assert Readout.from_manifest(entry).describe() == entry


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_against_scipy(kind: str) -> None:
    readout, scores = case(kind)
    if kind in (LOGITS, PROBABILITIES):
        expected = special.softmax(scores, axis=1)
    elif kind == REGRESSION:
        expected = scores
    else:
        p = special.expit(scores.astype(np.float64))
        expected = np.concatenate([1 - p, p], axis=1) if kind == BINARY else p
    assert readout.probabilities(scores).dtype == np.float32
    np.testing.assert_allclose(readout.probabilities(scores), expected, rtol=1e-6)
    assert readout.columns == scores.shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_top1_is_the_best_and_the_class_of_the_highest_score(kind: str) -> None:
    readout, scores = case(kind)
    top = readout.top1(scores)
    assert top.dtype == np.int64
    assert (top == readout.best(scores, readout.size)[:, 0]).all()
    assert (top == readout.per_class(scores).argmax(axis=1)).all()
    ranked = np.take_along_axis(readout.per_class(scores), readout.best(scores, readout.size), axis=1)
    assert (np.diff(ranked, axis=1) <= 0).all()
    mixed = np.array([-1, 0, 1, -1, 1, -1])
    assert (readout.fill_top1(mixed, scores) == np.where(mixed < 0, top, mixed)).all()


@pytest.mark.parametrize(("kind", "scores"), [(LOGITS, [[1, 3, 3]]), (MULTILABEL, [[0, 2, 2]]), (BINARY, [[0.0]])])
def test_ties_go_to_the_lowest_index(kind: str, scores: list[list[float]]) -> None:
    readout = Readout("s", kind, 2 if kind == BINARY else 3)
    first = 0 if kind == BINARY else 1
    assert readout.top1(np.array(scores)).tolist() == [first]
    assert readout.best(np.array(scores), 2).tolist() == [[first, first + 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_cotangents_are_derivatives(kind: str) -> None:
    readout, scores = case(kind)
    y, rows = scores.astype(np.float64), np.arange(len(scores))
    classes = np.arange(len(scores)) % readout.size
    for column in range(readout.columns):
        step = np.zeros(readout.columns)
        step[column] = 1e-3
        slope = (readout.per_class(y + step) - readout.per_class(y - step))[rows, classes] / 2e-3
        np.testing.assert_allclose(readout.one_hot(classes)[:, column], slope, atol=1e-9)
        high, low = (readout.probabilities(y + sign * step).astype(np.float64) for sign in (1, -1))
        slope = (high - low)[rows, classes] / 2e-3
        np.testing.assert_allclose(readout.probability_cotangent(y, classes)[:, column], slope, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_per_class_fold_into_columns(kind: str) -> None:
    readout, scores = case(kind)
    weights = np.random.default_rng(0).normal(size=(len(scores), readout.size))
    by_class = (weights * readout.per_class(scores)).sum(axis=1)
    np.testing.assert_allclose((readout.fold(weights) * scores).sum(axis=1), by_class, rtol=1e-5)


def test_a_binary_classifier_is_served_with_one_column_or_two() -> None:
    binary, five = Readout("s", BINARY, 2), Readout("s", LOGITS, 5)
    assert binary.of_columns(1) is binary and binary.of_columns(3) is None
    both = binary.of_columns(2)
    assert both is not None and both.exclusive and both.columns == 2
    assert five.of_columns(5) is five and five.of_columns(2) is None


@pytest.mark.parametrize("count", [0, 5, True, 1.5, None])
def test_a_count_of_best_classes_is_checked(count: object) -> None:
    with pytest.raises(TargetError, match="expected 1 to 4, the number of classes"):
        Readout("s", LOGITS, 4).best(SCORES, count)  # type: ignore[arg-type]
