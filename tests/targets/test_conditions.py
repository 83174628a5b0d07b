"""The grammar of `when` against Python's own reading of the same text, and its quantities against SciPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from onnxcam.errors import SettingError, TargetError
from onnxcam.targets import conditions
from onnxcam.targets.conditions import AllOf, AnyOf, Comparison, Not
from onnxcam.targets.readout import BINARY, LOGITS, MULTILABEL, Readout
from tests.support.examples import examples

LABELS = ["tabby, tabby cat", "tiger cat", "lynx"]
NUMBERS = st.sampled_from(["0", "1", "0.25", ".5", "0.75", "1e-1", "5e-1"])
SIGNS = ["<", "<=", ">", ">=", "==", "!="]
COMPARISONS = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["confidence", "margin", "entropy"]), st.sampled_from(SIGNS), NUMBERS),
    st.builds(
        "{}{}{}".format, NUMBERS, st.sampled_from(["<", ">=", " != "]), st.sampled_from(["confidence", "margin"])
    ),
    st.builds("label {} {}".format, st.sampled_from(["==", "!="]), st.integers(0, 2)),
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds("{} and {}".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
        st.builds("not ({})".format, inner),
        st.builds("not {}".format, inner),
        st.builds("(({}))".format, inner),
    ),
    max_leaves=12,
)
ROWS = np.array([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.slow
@examples(300)
@given(CONDITIONS, st.integers(0, 2**32 - 1))
def test_means_what_python_means(text: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = {name: rng.choice(ROWS, 20) for name in ("confidence", "margin", "entropy")} | {
        "label": rng.integers(0, 3, 20)
    }
    result = conditions.evaluate(conditions.parse(text, LABELS, 3), rows)
    expected = [eval(text, {}, {name: values[k] for name, values in rows.items()}) for k in range(20)]
    assert result.dtype == bool
    assert result.tolist() == expected
    assert conditions.names(conditions.parse(text)) == {name for name in conditions.QUANTITIES if name in text}


def test_tree_is_what_other_readers_see() -> None:
    tree = conditions.parse("confidence < 0.6 AND not (label == 'TABBY' or 0.1 > margin)", LABELS, 3)
    assert tree == AllOf(
        (
            Comparison("confidence", "<", 0.6),
            Not(AnyOf((Comparison("label", "==", 0), Comparison("margin", "<", 0.1)))),
        )
    )


def test_and_binds_tighter_than_or() -> None:
    tree = conditions.parse("margin < 0.1 or entropy > 0.5 and confidence < 0.6")
    assert isinstance(tree, AnyOf) and isinstance(tree.conditions[1], AllOf)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "got the end at position 1"),
        ("confidence", "expected one of < <= > >= == !="),
        ("confidence <", "got the end"),
        ("confidence < 60", "number from 0 to 1"),
        ("confidence < -0.1", "number from 0 to 1"),
        ("0.2 < confidence < 0.6", "one comparison at a time"),
        ("confidence < 0.6 margin < 0.1", "expected `and`, `or` or the end"),
        ("confidence < 0.6 and", "got the end"),
        ("(confidence < 0.6", "expected `)`"),
        ("confidence < margin", "compared with a number"),
        ("0.5 < 0.6", "compared with a number"),
        ("certainty < 0.6", "'confidence', 'margin', 'entropy', 'label'"),
        ("confidence = 0.6", "not part of a condition"),
        ("label < 3", "== or !="),
        ("label == 3", "index from 0 to 2"),
        ("label == 1.5", "index from 0 to 2"),
        ("label == 'tabby", "not part of a condition"),
        ("confidence == 'high'", "number from 0 to 1"),
        ("__import__('os').system('true')", "expected one of"),
        ("confidence < 0.6; label == 1", "not part of a condition"),
        ("confidence < 0.6.1", "not part of a condition"),
        ("confidence < 1x", "not part of a condition"),
        ("not " * 500 + "margin < 1", "nested more than"),
        ("(" * 500 + "margin < 1" + ")" * 500, "nested more than"),
        ("margin < 1 or " * 2000 + "margin < 1", "characters"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, says: str) -> None:
    with pytest.raises(SettingError, match="condition") as error:
        conditions.parse(text, LABELS, 3)
    assert says in str(error.value)


@pytest.mark.parametrize("value", [None, 0.6, b"confidence < 0.6", ["confidence"]])
def test_condition_is_text(value: Any) -> None:
    with pytest.raises(SettingError, match="expected text"):
        conditions.parse(value)


def test_unknown_label_names_the_nearest() -> None:
    with pytest.raises(TargetError, match="tiger cat"):
        conditions.parse("label == 'tigercat'", LABELS, 3)
    with pytest.raises(TargetError, match="carries no labels"):
        conditions.parse("label == 'tabby'", None, 3)


def quantities(scores: np.ndarray, kind: str, form: str = "auto") -> dict[str, np.ndarray]:
    readout = Readout("scores", kind, 2 if kind == BINARY else scores.shape[1])
    return conditions.quantities(conditions.probabilities(scores, readout, form), readout)


@pytest.mark.parametrize("form", ["auto", "logits"])
def test_quantities_of_logits(form: str) -> None:
    scores = np.random.default_rng(0).normal(scale=3, size=(50, 7)).astype(np.float32)
    p = special.softmax(scores.astype(np.float64), axis=1)
    values = quantities(scores, LOGITS, form)
    best = np.sort(p, axis=1)[:, ::-1]
    np.testing.assert_allclose(values["confidence"], best[:, 0], rtol=1e-6)
    np.testing.assert_allclose(values["margin"], best[:, 0] - best[:, 1], atol=1e-6)
    np.testing.assert_allclose(values["entropy"], stats.entropy(p, axis=1) / np.log(7), rtol=1e-5)
    np.testing.assert_array_equal(values["label"], scores.argmax(axis=1))


@pytest.mark.parametrize("form", ["auto", "probabilities"])
def test_quantities_of_probabilities(form: str) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), 20)
    values = quantities(p.astype(np.float32), LOGITS, form)
    np.testing.assert_allclose(values["confidence"], p.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(values["entropy"], stats.entropy(p, axis=1) / np.log(4), rtol=1e-5)


@pytest.mark.parametrize("scores", [[[0.3], [-4.0]], [[1 / (1 + np.exp(-0.3))], [1 / (1 + np.exp(4.0))]]])
def test_quantities_of_one_logit(scores: list[list[float]]) -> None:
    p = special.expit(np.array([0.3, -4.0]))
    values = quantities(np.array(scores), BINARY)
    np.testing.assert_allclose(values["confidence"], np.maximum(p, 1 - p), rtol=1e-6)
    np.testing.assert_allclose(values["margin"], np.abs(2 * p - 1), rtol=1e-6)
    np.testing.assert_allclose(values["entropy"], stats.entropy([1 - p, p], base=2), rtol=1e-5)
    assert values["label"].tolist() == [1, 0]


def test_quantities_of_many_labels() -> None:
    scores = np.random.default_rng(0).normal(scale=2, size=(10, 6))
    p = special.expit(scores)
    values = quantities(scores, MULTILABEL)
    np.testing.assert_allclose(values["confidence"], p.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(values["entropy"], stats.entropy([p, 1 - p], base=2).mean(axis=1), rtol=1e-5)


def test_scores_that_are_not_finite_are_as_unsure_as_can_be() -> None:
    scores = np.array([[np.nan, 1.0, 2.0], [np.inf, 0.0, 0.0], [9.0, 0.0, 0.0]], np.float32)
    values = quantities(scores, LOGITS)
    assert values["confidence"][:2].tolist() == [0, 0] and values["confidence"][2] > 0.99
    assert values["margin"][:2].tolist() == [0, 0]
    assert values["entropy"][:2].tolist() == [1, 1] and values["entropy"][2] < 0.01
