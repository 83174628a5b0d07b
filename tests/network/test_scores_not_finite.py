"""Scores of -inf (masked classes), heads without a slope, and constants that are NaN."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

import onnxcam
from onnxcam import Contrast, Explainer, Probability, Weights
from onnxcam.cli import main
from onnxcam.diagnose.gradients import check
from onnxcam.errors import ModelError, TargetError
from onnxcam.network import manifest
from tests.support import misplaced
from tests.support.models import tiny_cnn
from tests.support.runtime import run

CPU = ["CPUExecutionProvider"]
MASKED, SCORED = [1, 3], [0, 2, 4]


def with_head(*nodes: onnx.NodeProto, last: str = "y", **constants: np.ndarray) -> onnx.ModelProto:
    """A small classifier of five classes, `logits`, and nodes behind it."""
    model = tiny_cnn()
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    model.graph.output[0].name = last
    onnx.checker.check_model(model)
    return model


def masked(how: str) -> onnx.ModelProto:
    mask = np.isin(np.arange(5), MASKED)[None]
    node = helper.make_node
    if how == "bias":
        model = tiny_cnn()
        (bias,) = (one for one in model.graph.initializer if one.name == "b3")
        values = np.where(mask[0], -np.inf, numpy_helper.to_array(bias)).astype(np.float32)
        bias.CopyFrom(numpy_helper.from_array(values, "b3"))
        return model
    if how == "added":
        return with_head(node("Add", ["logits", "m"], ["y"]), m=np.where(mask, -np.inf, 0).astype(np.float32))
    where, constants = node("Where", ["m", "low", "logits"], ["z"]), {"m": mask, "low": np.float32(-np.inf)}
    if how == "where":
        return with_head(where, last="z", **constants)
    return with_head(where, node("Softmax", ["z"], ["y"], axis=1), **constants)


def pictures(rows: int = 2) -> np.ndarray:
    return np.random.default_rng(5).random((rows, 3, 32, 32), np.float32)


@pytest.mark.parametrize("how", ["where", "added", "bias", "softmax"])
def test_masked_classes_are_predicted_and_explained_around(how: str) -> None:
    model, batch = masked(how), pictures()
    explainer, plain = Explainer(model, providers=CPU), Explainer(tiny_cnn(), providers=CPU)
    (output,) = run(model, batch).values()
    if how != "softmax":
        output = np.exp(output - output.max(axis=1, keepdims=True))
        output /= output.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(explainer.predict(batch), output, atol=1e-6)
    assert explainer.manifest["measured"]["scores"]["masked"] == len(MASKED)
    assert explainer.manifest["measured"]["scores"]["finite"] and not explainer.warnings
    for method in ("gradcam", "scorecam", "ablationcam", "saliency", "finercam"):
        mine = explainer.attribute(batch, 2, method, normalize="none")
        assert np.isfinite(mine).all()
        if method != "finercam":  # whose rivals the masked ones are not
            expected = plain.attribute(batch, 2, method, normalize="none")
            np.testing.assert_allclose(mine, expected, atol=1e-5 * max(1.0, float(expected.max())))
    explanation = explainer.examine(batch).attribute(Contrast(2), normalize="none")
    assert np.isfinite(explanation).all()


@pytest.mark.parametrize("how", ["added", "softmax"])
def test_a_masked_class_as_target_is_refused(how: str, tmp_path: Path) -> None:
    labels = ["ant", "bee", "cow", "dog", "eel"]
    explainer, batch = Explainer(masked(how), labels=labels, preprocess="0..1", providers=CPU), pictures()
    for method in ("gradcam", "ablationcam", "saliency"):
        with pytest.raises(TargetError, match=r"class 'dog' \(3\) is masked: its score is -inf for picture 2"):
            explainer.attribute(batch, [0, 3], method)
    for target in (Probability("bee"), Contrast("ant", "bee"), Weights({"ant": 1, "bee": 1})):
        with pytest.raises(TargetError, match=r"class 'bee' \(1\) is masked"):
            explainer.attribute(batch, target)
    with pytest.raises(TargetError, match="is masked"):
        explainer.run(batch, 1)
    picture = np.zeros((40, 40, 3), np.uint8)
    assert sorted(one.target for one in explainer.explain(picture, top=3).maps) == SCORED
    with pytest.raises(TargetError, match="top=4; 3 of the 5 classes have a score"):
        explainer.explain(picture, top=4)


@pytest.mark.parametrize("how", ["where", "bias", "softmax"])
def test_masked_classes_pass_check_and_export(how: str, tmp_path: Path) -> None:
    report = check(masked(how), providers=CPU)
    assert report.passed, report
    states = {finding.name: (finding.status, finding.detail) for finding in report.findings}
    assert states["predictions"][0] == states["gradients at relu2"][0] == "ok"
    assert "2 of 5 classes masked" in states["scores"][1]
    source, destination = tmp_path / "m.onnx", tmp_path / "x.onnx"
    onnx.save(masked(how), source)
    result = CliRunner().invoke(main, ["export", str(source), "-o", str(destination)])
    assert result.exit_code == 0, result.output
    record = manifest.read(onnx.load(destination))
    assert record is not None and record["measured"]["scores"]["masked"] == len(MASKED)


def test_what_is_not_finite_never_agrees() -> None:
    """NaN compares with nothing: a maximum that starts at 0 would leave it out."""
    broken = masked("where")
    (low,) = (one for one in broken.graph.initializer if one.name == "low")
    low.CopyFrom(numpy_helper.from_array(np.float32(np.nan), "low"))
    with pytest.raises(ModelError, match=r"'z' is NaN for 2 of 5 classes.*constant 'low'.*--scores logits"):
        check(broken, providers=CPU)
    from onnxcam.diagnose.differences import Errors
    from onnxcam.diagnose.subject import distance

    a = np.array([[1.0, -np.inf]], np.float32)
    assert distance(a, a.copy()) == 0
    for wrong in (np.nan, np.inf, 0.0):
        assert distance(a, np.array([[1.0, wrong]], np.float32)) == np.inf
    errors = Errors({"along": [np.nan] * 3}, {"along": [0.0] * 3})
    assert errors.finding("gradients", []).status == "unsure"


@pytest.mark.parametrize("operator", ["Hardmax", "Ceil", "Floor", "Sign", "Round"])
def test_heads_without_a_slope_are_refused_by_names_of_the_file(operator: str) -> None:
    model = with_head(helper.make_node(operator, ["logits"], ["y"]))
    with pytest.raises(ModelError, match=f"'relu2' does not reach 'y'.*{operator}, which reads 'logits'.*--scores log"):
        Explainer(model, providers=CPU)
    assert Explainer(model, scores="logits", providers=CPU).attribute(pictures()).any()


@pytest.mark.parametrize("head", ["OneHot", "Gather", "Equal", "Greater"])
def test_heads_that_count_are_refused_by_names_of_the_file(head: str) -> None:
    node, constants = helper.make_node, {}
    if head in ("OneHot", "Gather"):
        constants = {"depth": np.int64(5), "ends": np.float32([0, 1]), "table": np.eye(5, dtype=np.float32)}
        inputs = ["best", "depth", "ends"] if head == "OneHot" else ["table", "best"]
        nodes = [node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0), node(head, inputs, ["y"])]
        read = {"OneHot": ("depth", "ends"), "Gather": ("table",)}[head]
        constants = {name: constants[name] for name in read}
    else:
        first = node("ReduceMax", ["logits"], ["top"], keepdims=1)
        nodes = [first] if head == "Equal" else []
        constants = {} if head == "Equal" else {"top": np.float32(0)}
        nodes += [node(head, ["logits", "top"], ["is"]), node("Cast", ["is"], ["y"], to=1)]
    with pytest.raises(
        ModelError, match=r"'relu2' does not reach 'y'.*which reads 'logits'.*--scores logits"
    ) as caught:
        Explainer(with_head(*nodes, **constants), providers=CPU)
    assert "onnxcam/" not in str(caught.value)


def thresholds(table: list[float]) -> onnx.ModelProto:
    """A chest X-ray model's: each label's own threshold is drawn to 0.5."""
    node = helper.make_node
    return with_head(
        node("Sigmoid", ["logits"], ["s"]), node("Mul", ["t", "two"], ["t2"]), node("Div", ["s", "t2"], ["low"]),
        node("Sub", ["one", "s"], ["rest"]), node("Sub", ["two", "t2"], ["r2"]), node("Div", ["rest", "r2"], ["q"]),
        node("Sub", ["one", "q"], ["high"]), node("Less", ["s", "t"], ["lt"]),
        node("Where", ["lt", "low", "high"], ["y"]),
        t=np.float32([table]), one=np.float32(1), two=np.float32(2),
    )  # fmt: skip


def test_a_table_of_thresholds_with_nan_is_named() -> None:
    batch = pictures()
    whole = thresholds([0.3, 0.2, 0.05, 0.4, 0.3])
    np.testing.assert_allclose(Explainer(whole, providers=CPU).predict(batch), run(whole, batch)["y"], atol=1e-6)
    broken = thresholds([0.3, np.nan, 0.05, 0.4, np.nan])
    for kind in (None, "multilabel"):
        with pytest.raises(ModelError, match=r"'y' is NaN for 2 of 5 classes.*'1'.*'4'.*constant 't'.*--scores s\b"):
            Explainer(broken, kind=kind, providers=CPU)
    named = Explainer(broken, scores="s", providers=CPU)
    np.testing.assert_allclose(named.predict(batch), run(_also(broken, "s"), batch)["s"], atol=1e-6)


def _also(model: onnx.ModelProto, value: str) -> onnx.ModelProto:
    copied = copy.deepcopy(model)
    copied.graph.output.append(helper.make_tensor_value_info(value, 1, ["N", 5]))
    return copied


def test_what_cannot_be_measured_is_warned_of_in_our_words() -> None:
    net = misplaced.Net(3)
    y = net.conv("x", 3, 12, 4)
    flat = net.add("Reshape", y, net.ints(7, -1))  # no batch fits
    model = net.model(net.add("Reshape", flat, net.ints(-1, misplaced.CHANNELS, 6, 6)))
    facts = onnxcam.probe(model)
    assert set(facts.unmeasured.values()) == {"the model fails on the pictures to be measured, 48 x 48 pixels"}
    (sentence,) = [text for text in facts.warnings if "nothing could be measured" in text]
    assert "read off the graph alone" in sentence and "48 x 48" in sentence
    assert sentence in Explainer(model, providers=CPU).warnings
