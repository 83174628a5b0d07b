"""The condition that a gated file computes, against `conditions.evaluate`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import onnxcam
from onnxcam.errors import SettingError, TargetError
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph
from onnxcam.network import gate
from onnxcam.network import manifest as manifests
from onnxcam.network.calibration import nodes
from onnxcam.network.calibration.conformal import Rule, sets
from onnxcam.network.calibration.record import MARGIN, Calibration, of_manifest
from onnxcam.targets import conditions
from onnxcam.targets.conditions import AllOf, AnyOf, Comparison, Condition, Not
from tests.network.gated import ALWAYS, augment, readout
from tests.support import models
from tests.support.batches import batch
from tests.support.examples import examples
from tests.support.explainable import manifest_of
from tests.support.runtime import run

LABELS = ["cat, tabby", "bird", "fish", "dog, hound", "frog"]
KINDS = {"logits": 4, "binary_logit": 2, "multilabel": 4}
numbers = st.floats(0, 1).map(lambda value: round(value, 6))
measures, operators = st.sampled_from(["confidence", "margin", "entropy"]), st.sampled_from(list(conditions.OPERATORS))
comparisons = st.one_of(
    st.builds(Comparison, measures, operators, numbers),
    st.builds(Comparison, st.just("label"), st.sampled_from(["==", "!="]), st.integers(0, 3).map(float)),
)
trees = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: AllOf(tuple(parts))),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: AnyOf(tuple(parts))),
    ),
    max_leaves=6,
)


def quantities(scores: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    meaning = readout(scores, kind)
    return conditions.quantities(conditions.probabilities(scores, meaning, "logits"), meaning)


def emitted(
    condition: Condition, scores: np.ndarray, kind: str, calibration: Calibration | None = None
) -> tuple[np.ndarray, bool]:
    info = edit.info("scores", TensorProto.FLOAT, ["N", scores.shape[1]])
    model = helper.make_model(
        helper.make_graph([], "condition", [info], []), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    op = Builder(Graph(model))
    unsure = gate.emit(op, condition, "scores", readout(scores, kind), calibration=calibration)
    edit.add(model, op)
    model.graph.output.append(edit.info("fired", TensorProto.BOOL, ["N"]))
    model.graph.output.append(edit.info(unsure, TensorProto.BOOL, []))
    onnx.checker.check_model(model, full_check=True)
    actual = run(model, {"scores": scores})
    return actual["fired"], bool(actual[unsure])


def leaves(condition: Condition) -> list[Comparison]:
    if isinstance(condition, Comparison):
        return [condition]
    parts = (condition.condition,) if isinstance(condition, Not) else condition.conditions
    return [leaf for part in parts for leaf in leaves(part)]


@pytest.mark.slow
@examples(150)
@given(trees, st.sampled_from(list(KINDS)), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 10.0, 1000.0]))
def test_emitted_condition_is_the_hooks(condition: Condition, kind: str, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    scores = (scale * rng.normal(size=(9, 1 if kind == "binary_logit" else 4))).astype(np.float32)
    scores[0, 0], scores[1, -1], scores[2, 0] = np.nan, np.inf, -np.inf
    scores[3] = scores[3, 0]  # ties
    values = quantities(scores, kind)
    # a rounding of the last bit may decide only where a quantity equals its bound
    for leaf in leaves(condition):
        near = np.abs(values[leaf.quantity] - float(leaf.value))
        assume(leaf.quantity == "label" or not ((near > 0) & (near < 1e-9)).any())
    want = conditions.evaluate(condition, values)
    fired, unsure = emitted(condition, scores, kind)
    np.testing.assert_array_equal(fired, want)
    assert unsure == want.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantity", ["confidence", "margin", "entropy"])
def test_thresholds_at_the_quantities_themselves(kind: str, quantity: str) -> None:
    """Both sides of each row's own value, so that an error of 2e-7 shows."""
    scores = np.random.default_rng(3).normal(scale=2, size=(6, 1 if kind == "binary_logit" else 5)).astype(np.float32)
    values = quantities(scores, kind)[quantity]
    for row, value in enumerate(values):
        for bound in (value - 1e-7, value + 1e-7):
            fired, _ = emitted(Comparison(quantity, "<", bound), scores, kind)
            assert fired.tolist() == (values < bound).tolist() and fired[row] == (bound > value)


def test_scores_that_are_not_finite_are_as_unsure_as_can_be() -> None:
    scores = np.array([[np.nan, 9, 0], [np.inf, 0, 0], [-np.inf] * 3, [9, -np.inf, 0], [9, 0, 0]], np.float32)
    for text in ("confidence < 0.1", "margin < 0.1", "entropy >= 1", "confidence == 0 and label == 0"):
        condition = conditions.parse(text)
        for model, kind in ((scores, "logits"), (scores, "multilabel"), (scores[:, :1], "binary_logit")):
            fired, _ = emitted(condition, model, kind)
            values = quantities(model, kind)
            assert fired.tolist() == conditions.evaluate(condition, values).tolist(), (text, kind)
            assert fired[0]
        assert emitted(condition, scores, "logits")[0].tolist() == [True, True, True, False, False]


def test_labels_are_resolved_at_export() -> None:
    x = batch(8)
    gated = augment(models.tiny_cnn(), labels=LABELS, gate="label == 'TABBY' or label == 1")
    actual = run(gated, {"input": x})
    best = actual["logits"].argmax(axis=1)
    assert {0, 4} <= set(best)
    assert actual["fired"].tolist() == np.isin(best, [0, 1]).tolist()
    with pytest.raises(TargetError, match="no class is called 'wolf'"):
        onnxcam.augment(models.tiny_cnn(), labels=LABELS, gate="label == 'wolf'")
    with pytest.raises(TargetError, match="carries no labels"):
        onnxcam.augment(models.tiny_cnn(), gate="label == 'cat'")


@pytest.mark.parametrize("bad", ["confidence", "confidence < 60", "label == 5", "certainty < 0.5", 0.6, b"margin < 1"])
def test_a_condition_that_cannot_be_read_is_told(bad: Any) -> None:
    with pytest.raises(SettingError):
        onnxcam.augment(models.tiny_cnn(), gate=bad)


def test_the_name_of_the_output_is_made_free() -> None:
    source = models.tiny_cnn()
    edit.rename(source, {"relu1": "fired"})
    x = batch(4)
    gated = run(augment(source, gate=ALWAYS), {"input": x})
    assert gated["fired"].dtype == np.bool_
    source.graph.output.append(edit.info("fired", TensorProto.FLOAT, ["N", 8, 32, 32]))
    other = augment(source, gate=ALWAYS)
    assert manifest_of(other)["gate"]["output"] == "onnxcam.fired"
    outputs = run(other, {"input": x})
    assert (outputs["onnxcam.fired"] == gated["fired"]).all() and outputs["fired"].dtype == np.float32
    assert "gate" not in manifest_of(augment(source))


RULES = st.builds(
    Rule,
    st.sampled_from(["lac", "aps", "raps"]),
    st.sampled_from([1.0, 0.5, 3.0]),
    st.sampled_from([0.0, 0.05]),
    st.integers(0, 2),
    st.booleans(),
)
CALIBRATED = st.recursive(
    st.one_of(
        st.builds(Comparison, st.sampled_from(["confidence", "calibrated"]), operators, numbers),
        st.builds(Comparison, st.just("set"), st.sampled_from([">", "<="]), st.integers(1, 4)),
        st.builds(Comparison, st.just("set"), st.sampled_from(["==", "!="]), st.integers(0, 4)),
    ),
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: AllOf(tuple(parts))),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: AnyOf(tuple(parts))),
    ),
    max_leaves=4,
)


@pytest.mark.slow
@examples(60)
@given(
    CALIBRATED, st.sampled_from(list(KINDS)), RULES, st.sampled_from([0.4, 1.0, 2.5]), st.floats(0.02, 0.9),
    st.integers(0, 2**32 - 1), st.sampled_from([0.3, 1.0, 10.0]),
)  # fmt: skip
def test_a_calibrations_quantities_are_the_same_in_the_file(
    condition: Condition, kind: str, rule: Rule, temperature: float, threshold: float, seed: int, scale: float
) -> None:
    assume(kind != "multilabel" or rule.score == "lac")
    rng = np.random.default_rng(seed)
    scores = (scale * rng.normal(size=(9, 1 if kind == "binary_logit" else 4))).astype(np.float32)
    scores[0, 0] = np.nan
    if kind == "logits":
        scores[1, -1], scores[2, 0] = np.inf, -np.inf
    meaning = readout(scores, kind)
    calibration = Calibration(temperature, rule, 0.1, threshold, 99, (0.84, 0.95))
    finite = scores[np.isfinite(scores).all(axis=1)]
    narrow, wide = (sets(finite, meaning, rule, threshold, margin=margin) for margin in (-4 * MARGIN, 4 * MARGIN))
    assume((narrow == wide).all())  # the file counts as inside what lies within a margin of the threshold
    p = conditions.probabilities(scores, meaning, "logits")
    values = conditions.quantities(p, meaning, conditions.names(condition), calibration, scores)
    for leaf in leaves(condition):
        near = np.abs(values[leaf.quantity] - float(leaf.value))
        assume(leaf.quantity == "set" or not (near < 1e-5).any() or (near[near < 1e-5] == 0).all())
    fired, unsure = emitted(condition, scores, kind, calibration)
    np.testing.assert_array_equal(fired, conditions.evaluate(condition, values))
    assert unsure == fired.any()


@pytest.fixture(scope="module")
def calibrated() -> onnx.ModelProto:
    """A calibrated file, with thresholds for shares of traffic and for a risk."""
    result = onnxcam.augment(models.tiny_cnn(), labels=LABELS, probe=False)
    manifest = manifest_of(result)
    facts = {
        "quantiles": {"n": 99, "levels": [0.1, 0.5], "confidence": [0.46, 0.49]},
        "risk": {"max": 0.01, "confidence": 0.95, "by": "confidence", "threshold": 0.5},
    }
    nodes.attach(result, manifest, Calibration(0.5, Rule("lac", 0.5), 0.1, 0.23, 99, (0.84, 0.95), facts=facts))
    manifests.write(result, manifest)
    return result


@pytest.mark.parametrize(
    "condition", ["set > 1", "set == 1 and calibrated < 0.72", "top 50%", "risk > 1%", "risk <= 1%"]
)
def test_a_calibrated_file_is_gated_by_meaning(calibrated: onnx.ModelProto, condition: str) -> None:
    gated = augment(calibrated, gate=condition)
    x = np.random.default_rng(3).normal(size=(64, 3, 32, 32)).astype(np.float32)
    actual = run(gated, {"input": x})
    manifest = manifest_of(gated)
    assert manifest["gate"]["condition"] == condition
    calibration = of_manifest(manifest)
    assert calibration is not None
    meaning = readout(actual["logits"], "logits")
    tree = conditions.bind(conditions.parse(condition, LABELS, 5), calibration)
    p = meaning.probabilities(actual["logits"])
    want = conditions.evaluate(
        tree, conditions.quantities(p, meaning, conditions.names(tree), calibration, actual["logits"])
    )
    assert 0 < want.sum() < 64
    np.testing.assert_array_equal(actual["fired"], want)
    size = actual["prediction_set"].sum(axis=1)
    if condition == "set > 1":
        np.testing.assert_array_equal(actual["fired"], size != 1)
    alone = run(gated, {"input": x[~want][:1]})
    assert not alone["fired"].any()
    assert not alone["heatmap"].any()
    again = augment(gated, methods=("hirescam",))  # keeps gate and calibration
    np.testing.assert_array_equal(run(again, {"input": x})["fired"], want)


def test_a_gate_by_meaning_needs_a_calibration() -> None:
    for condition in ("set > 1", "top 5%", "risk > 1%"):
        with pytest.raises(SettingError, match="this file has no calibration"):
            augment(models.tiny_cnn(), gate=condition)
