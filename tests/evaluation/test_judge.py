"""Whole evaluations on small models."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcam
from onnxcam.errors import InputError, MethodError, ModelError, TargetError
from onnxcam.evaluation import report
from onnxcam.evaluation.judge import evaluate, usual
from onnxcam.evaluation.metrics import find, metrics
from onnxcam.evaluation.metrics.randomization import cascade, weights
from onnxcam.explain.explainer import Explainer
from onnxcam.graph.view import Graph
from tests.cli.conftest import LABELS, RAW, noise
from tests.support import models

METHODS = ["gradcam", "hirescam"]
QUICK = {"steps": 4, "repeats": 2, "patches": 4}


def pictures(count: int = 3) -> list[np.ndarray]:
    return [noise(np.random.default_rng(seed)) for seed in range(count)]


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(models.tiny_cnn(), preprocess=RAW, labels=LABELS)


@pytest.fixture(scope="module")
def judged(explainer: Explainer) -> Any:
    boxes = {"picture": [[10, 10, 30, 30]]}
    return evaluate(explainer, pictures(), methods=METHODS, metrics=["all"], boxes=boxes, examples=2, **QUICK)


def test_every_metric_has_a_number(judged: Any) -> None:
    assert [one.name for one in judged.metrics] == [name for name in metrics() if not find(name).objects]
    for method in METHODS:
        for metric in judged.metrics:
            assert np.isfinite(judged.values[method][metric.name]).all(), metric.name
    # after global pooling and a linear layer the two are the same
    for metric in judged.metrics:
        np.testing.assert_allclose(
            judged.values["gradcam"][metric.name], judged.values["hirescam"][metric.name], atol=2e-3
        )
    assert judged.best("insertion") and set(judged.ranking("deletion")) == set(METHODS)
    assert judged.curves["gradcam"]["insertion"].shape == (5,)
    assert [len(one.maps) for one in judged.examples] == [2, 2]
    assert judged.parts[-1] == 1.0 and judged.stages["gradcam"]["randomization"].shape == (4, 3)


def test_by_definition_of_the_first_numbers(explainer: Explainer, judged: Any) -> None:
    batch = np.concatenate([explainer.prepare(one)[1] for one in pictures()])
    p = explainer.predict(batch)
    maps = explainer.attribute(batch, [int(k) for k in p.argmax(axis=1)])
    masked = explainer.predict(batch * maps[:, None])
    rows = np.arange(3)
    drop = np.maximum(0, p.max(axis=1) - masked[rows, p.argmax(axis=1)]) / p.max(axis=1)
    np.testing.assert_allclose(judged.values["gradcam"]["average_drop"], drop, atol=1e-5)
    np.testing.assert_allclose(judged.probabilities, p.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(judged.curves["gradcam"]["deletion"][0], p.max(axis=1).mean(), atol=1e-5)
    empty = explainer.predict(np.zeros_like(batch))[rows, p.argmax(axis=1)].mean()
    np.testing.assert_allclose(judged.curves["gradcam"]["deletion"][-1], empty, atol=1e-5)
    assert judged.classes == p.argmax(axis=1).tolist()


@pytest.mark.slow
def test_the_same_again_and_whatever_is_judged_along_with_it(explainer: Explainer, judged: Any) -> None:
    names = ["road", "insertion", "infidelity", "randomization"]
    again = evaluate(
        explainer, pictures(2), methods=["hirescam"], metrics=names, **{k: QUICK[k] for k in ("steps", "patches")}
    )
    for name in names:
        np.testing.assert_allclose(again.values["hirescam"][name], judged.values["hirescam"][name][:2], atol=1e-4)
    other = evaluate(explainer, pictures(2), methods=["hirescam"], metrics=["infidelity"], seed=7, patches=4)
    assert np.abs(other.values["hirescam"]["infidelity"] - again.values["hirescam"]["infidelity"]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nhwc", "fixed batch", "explainable", "binary", "float64 of one size"])
def test_every_form_of_model(kind: str, explainer: Explainer) -> None:
    form: dict[str, Any] = {
        "nhwc": {"nhwc": True},
        "fixed batch": {"batch": 2},
        "binary": {"classes": 1, "ending": "Sigmoid"},
    }
    model = models.tiny_cnn(**form.get(kind, {}))
    if kind == "explainable":
        model = onnxcam.augment(model, labels=LABELS, preprocess=RAW)
    other = Explainer(model, preprocess=RAW)
    evaluation = evaluate(
        other, pictures(), methods=["gradcam"], metrics=["insertion", "road", "adcc", "randomization"], steps=4
    )
    for values in evaluation.values["gradcam"].values():
        assert np.isfinite(values).all()
    if kind in ("nhwc", "fixed batch", "explainable"):
        plain = evaluate(
            explainer, pictures(), methods=["gradcam"], metrics=["insertion", "road", "adcc", "randomization"], steps=4
        )
        for name, values in evaluation.values["gradcam"].items():
            np.testing.assert_allclose(values, plain.values["gradcam"][name], atol=2e-3)


def test_labels_and_failures(explainer: Explainer) -> None:
    sources = [*pictures(2), b"no picture"]
    evaluation = evaluate(explainer, sources, methods=["gradcam"], metrics=["deletion"], targets=["cat", 3, 0], steps=4)
    assert evaluation.labelled and evaluation.classes == [0, 3] and evaluation.places == [0, 1]
    assert [place for place, _ in evaluation.failures] == [2]
    assert np.isnan(evaluation.values["gradcam"]["deletion"][2]) and np.isfinite(evaluation.mean("gradcam", "deletion"))
    assert evaluation.accuracy is not None and 0 <= evaluation.accuracy <= 1
    record = json.loads(json.dumps(evaluation.to_dict()))
    assert record["pictures"] == 2 and record["methods"]["gradcam"]["deletion"]["pictures"] == 2
    rows = evaluation.to_csv().splitlines()
    assert rows[0] == "picture,class,label,probability,method,deletion" and len(rows) == 4
    assert rows[1].split(",")[:3] == ["picture", "0", "cat"] and rows[-1].startswith("mean,")


def test_a_box_counts_for_its_own_class(explainer: Explainer) -> None:
    from onnxcam.evaluation.boxes import Box

    sources = pictures(2)
    boxes = {"picture": [Box(0, 0, 60, 40, "cat")]}
    evaluation = evaluate(
        explainer, sources, methods=["gradcam"], metrics=["energy_in_box"], boxes=boxes, targets=[0, 3]
    )
    assert evaluation.values["gradcam"]["energy_in_box"][0] == pytest.approx(1)
    assert np.isnan(evaluation.values["gradcam"]["energy_in_box"][1])


def test_what_cannot_be_judged(explainer: Explainer) -> None:
    with pytest.raises(InputError, match="none of the 1 pictures can be read"):
        evaluate(explainer, [b"no picture"], methods=["gradcam"], metrics=["deletion"])
    with pytest.raises(InputError, match="got 1 targets for 2 pictures"):
        evaluate(explainer, pictures(2), targets=[0])
    with pytest.raises(InputError, match="has an option 'step'"):
        evaluate(explainer, pictures(2), step=3)
    with pytest.raises(MethodError, match="no method 'gardcam'; there are 'gradcam'"):
        evaluate(explainer, pictures(1), methods=["gardcam"])
    with pytest.raises(MethodError, match="at least one"):
        evaluate(explainer, pictures(1), methods=[])
    with pytest.raises(TargetError):
        evaluate(explainer, pictures(1), targets=[99])


def test_progress_ends_at_the_end_and_can_end_it(explainer: Explainer) -> None:
    steps_reported: list[tuple[int, int]] = []
    evaluate(
        explainer,
        pictures(2),
        methods=["gradcam"],
        metrics=["road", "randomization"],
        progress=lambda *at: steps_reported.append(at),
    )
    assert steps_reported[-1] == (10, 10) and all(a <= b for (a, _), (b, _) in itertools.pairwise(steps_reported))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(explainer, pictures(2), methods=["gradcam"], metrics=["road"], progress=stop)


def test_the_usual_methods_are_registered() -> None:
    assert usual()[0] == "gradcam" and len(usual()) == len(set(usual()))


def test_the_cascade_redraws_from_the_scores_down(explainer: Explainer) -> None:
    def tensors(source: Any) -> dict[str, np.ndarray]:
        model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    first = tensors(explainer.source)
    assert weights(Graph(models.tiny_cnn()))[-2:] == ["w2", "w1"]
    parts, changed = [], []
    for part, other in cascade(explainer, 3):
        now = tensors(other.source)
        parts.append(part)
        changed.append({name for name in ("w1", "w2") if not np.array_equal(first[name], now[name])})
        for name in ("w1", "w2", "b1", "b2"):
            np.testing.assert_array_equal(np.sort(first[name], axis=None), np.sort(now[name], axis=None))
        assert other.layers == explainer.layers and other.labels == explainer.labels
    assert changed == [set(), {"w2"}, {"w1", "w2"}] and parts == [1 / 3, 2 / 3, 1.0]
    np.testing.assert_array_equal(first["w1"], tensors(explainer.source)["w1"])


def test_a_model_without_weights_has_nothing_to_redraw() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[N,3,8,8] x) => (float[N,3] y) { p = Relu(x) q = GlobalAveragePool(p) y = Flatten(q) }"""
    weightless = Explainer(onnx.parser.parse_model(text), layers=["p"], preprocess={"color": "RGB", "scale": 1 / 255})
    with pytest.raises(ModelError, match="no weights that could be redrawn"):
        evaluate(weightless, [np.zeros((8, 8, 3), np.uint8)], methods=["gradcam"], metrics=["randomization"])


def test_table_and_page(judged: Any) -> None:
    text = report.lines(judged)
    assert len(text) == 2 + len(METHODS) and "insertion ↑" in text[1] and "deletion ↓" in text[1]
    assert text[2].startswith("gradcam") and "*" in text[2] + text[3]
    page = report.render(judged, title="a <b>")
    assert "a &lt;b&gt;" in page and "<script" not in page and page.count("data:image/jpeg") == 2 * 3
    assert page.count("<figure>") == 2 * 3 + 3 and "http://" not in page
    assert all(f"{one.title}<br>" in page for one in judged.metrics) and "★" in page
    assert [report.number(v) for v in (0.12345, 0.00012345, 0.0, float("nan"), -0.5)] == [
        "0.123", "0.00012", "0.000", "-", "-0.500",
    ]  # fmt: skip
