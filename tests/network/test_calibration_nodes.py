"""A calibration as nodes: what ONNX Runtime computes of them against NumPy in float64, and what keeps or loses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxcam
from onnxcam.diagnose.gradients import check
from onnxcam.errors import ModelError
from onnxcam.graph import edit
from onnxcam.graph.file import graph_bytes
from onnxcam.graph.load import save
from onnxcam.network import manifest as manifests
from onnxcam.network.calibration import conformal
from onnxcam.network.calibration.conformal import Rule
from onnxcam.network.calibration.fit import fit
from onnxcam.network.calibration.nodes import attach, changed, detach, digest
from onnxcam.network.calibration.record import MARGIN, Calibration
from onnxcam.targets.readout import BINARY, LOGITS, MULTILABEL, PROBABILITIES, Readout
from tests.support import models
from tests.support.batches import batch
from tests.support.runtime import run
from tests.support.runtimes import Case, node, openvino, tract

ROOT = Path(__file__).parent.parent.parent
RULES = [
    Rule("lac"), Rule("lac", 1.7, never_empty=True), Rule("aps"), Rule("aps", 0.6, never_empty=True),
    Rule("raps", 2.5, 0.1, 2), Rule("raps", 1.0, 0.003, 1, never_empty=True),
]  # fmt: skip


def scores_file(columns: int, kind: str, size: int, dtype: int = TensorProto.FLOAT) -> tuple[onnx.ModelProto, dict]:
    """A file that returns its input as scores: what the calibration's nodes are given."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["logits"])], "scores",
        [helper.make_tensor_value_info("input", dtype, ["N", columns])],
        [helper.make_tensor_value_info("logits", dtype, ["N", columns])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model, {"scores": {"name": "logits", "kind": kind, "classes": size}, "input": {"name": "input"}}


def calibration(scores: np.ndarray, truth: np.ndarray, readout: Readout, rule: Rule, alpha: float) -> Calibration:
    values = conformal.true_conformity(conformal.conformity(scores, readout, rule), truth)
    return Calibration(1.3, rule, alpha, conformal.threshold(values, alpha), len(values), (0.0, 1.0))


def drawn(kind: str, n: int, size: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = 1 if kind == BINARY else size
    scores = rng.normal(scale=spread, size=(n, columns)).astype(np.float32)
    if kind == PROBABILITIES:
        exact = scores.astype(np.float64)
        scores = (exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))).astype(np.float32)
    if kind == MULTILABEL:
        return scores, rng.uniform(size=scores.shape) < 1 / (1 + np.exp(-scores))
    if kind == BINARY:
        return scores, (rng.uniform(size=n) < 1 / (1 + np.exp(-scores[:, 0]))).astype(np.int64)
    return scores, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("kind, size", [(LOGITS, 10), (LOGITS, 200), (PROBABILITIES, 10), (BINARY, 2), (MULTILABEL, 8)])
def test_the_nodes_compute_what_numpy_does(kind: str, size: int, spread: float) -> None:
    """10,000 rows of 10 classes, among them those of which the quantile was taken."""
    rows = (10_000 if spread == 3 else 2_000) if size <= 10 else 1_000
    scores, truth = drawn(kind, rows, size, spread, seed=size)
    readout = Readout("logits", kind, size)
    for rule in RULES if kind != MULTILABEL else RULES[:2]:
        for alpha in (0.02, 0.2):
            half = slice(0, rows // 2)
            outcome = calibration(scores[half], truth[half], readout, rule, alpha)
            model, entry = scores_file(scores.shape[1], kind, size)
            attach(model, entry, outcome)
            onnx.checker.check_model(model, full_check=True)
            actual = run(model, {"input": scores})
            assert actual["calibrated"].dtype == np.float32 and actual["prediction_set"].dtype == np.bool_
            assert np.abs(actual["calibrated"] - outcome.probabilities(scores, readout)).max() <= 2e-6
            expected = outcome.sets(scores, readout)
            assert expected.any()
            different = actual["prediction_set"] != expected
            ties = conformal.sets(scores, readout, rule, outcome.threshold, margin=2 * MARGIN) != expected
            assert not (different & ~ties).any(), (rule, alpha)
            assert different.sum() <= 1e-4 * different.size
            # the pictures of the quantile are covered as counted: at least ceil((n + 1)(1 - alpha)) of them
            inside = conformal.covered(actual["prediction_set"][half], truth[half])
            assert inside.sum() >= conformal.covered(expected[half], truth[half]).sum()


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_scores_of_other_types(dtype: int) -> None:
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    scores, truth = drawn(LOGITS, 500, 6, 3.0, seed=1)
    scores = scores.astype(kind)
    outcome = calibration(scores, truth, Readout("logits", LOGITS, 6), Rule("aps"), 0.1)
    model, entry = scores_file(6, LOGITS, 6, dtype)
    attach(model, entry, outcome)
    actual = run(model, {"input": scores})
    assert actual["calibrated"] == pytest.approx(outcome.probabilities(scores, Readout("logits", LOGITS, 6)), abs=1e-6)
    assert (actual["prediction_set"] == outcome.sets(scores, Readout("logits", LOGITS, 6))).mean() > 0.999


def test_masked_and_undefined_scores() -> None:
    scores, truth = drawn(LOGITS, 300, 5, 3.0, seed=2)
    readout = Readout("logits", LOGITS, 7)
    wide = np.concatenate([scores, np.full((300, 2), -np.inf, np.float32)], axis=1)
    odd = np.concatenate([wide, np.full((1, 7), np.nan, np.float32), wide[:1] + np.nan * (np.arange(7) == 1)])
    for rule in RULES:
        outcome = calibration(wide, truth, readout, rule, 0.2)
        model, entry = scores_file(7, LOGITS, 7)
        attach(model, entry, outcome)
        actual = run(model, {"input": odd.astype(np.float32)})
        assert (actual["prediction_set"][:300] == outcome.sets(wide, readout)).all()
        assert not actual["prediction_set"][:300, 5:].any() and (actual["calibrated"][:300, 5:] == 0).all()
        assert np.isnan(actual["calibrated"][300]).all() and not actual["prediction_set"][300:].any()


def calibrated(source: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """An explainable file with a calibration that was fitted to noise."""
    model = onnxcam.augment(source, **options)
    manifest = manifests.read(model)
    assert manifest is not None
    readout = Readout.from_manifest(manifest["scores"])
    scores, truth = drawn(readout.kind, 200, readout.size, 1.0, seed=5)
    attach(model, manifest, fit(scores, truth, readout, alpha=0.2))
    manifests.write(model, manifest)
    return model


def entry_of(model: onnx.ModelProto) -> Any:
    manifest = manifests.read(model)
    assert manifest is not None
    return manifest.get("calibration")


@pytest.mark.parametrize(
    "options",
    [
        {"target": "required"}, {"target": 2}, {"target": "required", "portable": True}, {"gate": "confidence < 0.9"},
        {"pixels": True, "preprocess": "0..1"}, {"outputs": "heatmap"}, {"layers": ["relu1", "relu2"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_calibration_is_kept_when_a_file_is_made_explainable_anew(options: dict[str, Any]) -> None:
    model = calibrated(models.tiny_cnn())
    again = onnxcam.augment(model, **options)
    onnx.checker.check_model(again, full_check=True)
    before, after = entry_of(model), entry_of(again)
    assert {**after, "scores_sha256": 0} == {**before, "scores_sha256": 0, "graph_bytes": after["graph_bytes"]}
    assert graph_bytes(again.SerializeToString()) == after["graph_bytes"]
    manifest = manifests.read(again)
    assert manifest is not None and changed(again, manifest) is None
    x = batch(3)
    want = run(model, {"input": x})
    target = {"target": np.array([-1] * (1 if options.get("portable") else 3), np.int64)}
    if not options.get("pixels"):
        actual = run(again, {"input": x} | (target if options.get("target") == "required" else {}))
        assert actual["calibrated"] == pytest.approx(want["calibrated"], abs=1e-6)
        assert (actual["prediction_set"] == want["prediction_set"]).all()
    twice = onnxcam.augment(again, target="optional", gate="", pixels=False)
    assert entry_of(twice)["threshold"] == before["threshold"]
    assert [o.name for o in twice.graph.output].count("calibrated") == 1


@pytest.mark.parametrize("kind", [BINARY, MULTILABEL, PROBABILITIES])
def test_every_kind_of_file(kind: str) -> None:
    ending = {BINARY: "Sigmoid", MULTILABEL: "Sigmoid", PROBABILITIES: None}[kind]
    source = models.tiny_cnn(classes=1 if kind == BINARY else 4, ending=ending)
    if kind == PROBABILITIES:  # a distribution that no Softmax ends in
        source.graph.node.extend(
            [
                helper.make_node("Abs", ["logits"], ["positive"]),
                helper.make_node("ReduceSum", ["positive"], ["total"], keepdims=1, noop_with_empty_axes=0),
                helper.make_node("ReduceL1", ["logits", "last"], ["norm"], keepdims=1),
                helper.make_node("Div", ["positive", "norm"], ["p"]),
            ]
        )
        source.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "last"))
        source.graph.output[0].name = "p"
    model = calibrated(source)
    manifest = manifests.read(model)
    assert manifest is not None and manifest["scores"]["kind"] == kind
    x = batch(4)
    actual = run(model, {"input": x})
    outcome, readout = Calibration.from_manifest(manifest["calibration"]), Readout.from_manifest(manifest["scores"])
    scores = actual[readout.value]
    assert actual["calibrated"] == pytest.approx(outcome.probabilities(scores, readout), abs=1e-6)
    assert (actual["prediction_set"] == outcome.sets(scores, readout)).all()
    assert actual["calibrated"].shape == actual["prediction_set"].shape == (4, readout.size)


def test_other_scores_lose_the_calibration_with_a_word() -> None:
    model = calibrated(models.tiny_cnn())
    messages: list[str] = []
    other = onnxcam.augment(model, kind="multilabel", on_warning=messages.append)
    assert entry_of(other) is None and "calibrated" not in [o.name for o in other.graph.output]
    assert any("made for other scores" in sentence for sentence in messages)


def test_changed_weights_lose_the_calibration_with_a_word() -> None:
    model = calibrated(models.tiny_cnn())
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            values = onnx.numpy_helper.to_array(tensor) * np.float32(1.5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w3"))
    manifest = manifests.read(model)
    assert manifest is not None and "calibrate the file again" in str(changed(model, manifest))
    findings = {finding.name: finding for finding in check(model, samples=1).findings}
    assert findings["calibration"].status == "failed"
    with pytest.warns(UserWarning, match="calibration is left out"):
        assert entry_of(onnxcam.augment(model)) is None


def test_check_says_that_a_calibration_is_right_and_finds_one_that_is_not() -> None:
    model = calibrated(models.tiny_cnn())
    findings = {finding.name: finding for finding in check(model, samples=1).findings}
    assert findings["calibration"].status == "ok" and "alpha 0.2" in findings["calibration"].detail
    manifest = manifests.read(model)
    assert manifest is not None
    manifest["calibration"]["temperature"] *= 2
    manifests.write(model, manifest)
    findings = {finding.name: finding for finding in check(model, samples=1).findings}
    assert findings["calibration"].status == "failed"


def test_names_do_not_matter_to_the_digest_and_weights_do() -> None:
    one, other = models.tiny_cnn(), models.tiny_cnn()
    edit.rename(other, {"w1": "first", "relu1": "hidden"})
    assert digest(one, "logits", "input") == digest(other, "logits", "input")
    assert digest(models.tiny_cnn(seed=1), "logits", "input") != digest(one, "logits", "input")
    with pytest.raises(ModelError, match="does not compute"):
        digest(one, "nothing", "input")


def test_detaching_gives_the_file_back() -> None:
    plain = onnxcam.augment(models.tiny_cnn())
    model = calibrated(models.tiny_cnn())
    manifest = manifests.read(model)
    assert manifest is not None
    detach(model, manifest)
    manifests.write(model, manifest)
    assert model.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)


def test_an_output_of_that_name_keeps_it() -> None:
    source = models.tiny_cnn()
    source.graph.node.append(helper.make_node("Identity", ["logits"], ["calibrated"]))
    source.graph.output.append(helper.make_tensor_value_info("calibrated", TensorProto.FLOAT, ["N", 5]))
    model = calibrated(source, scores="logits")
    assert entry_of(model)["outputs"]["calibrated"] == "onnxcam.calibrated"
    assert entry_of(onnxcam.augment(model))["outputs"]["calibrated"] == "onnxcam.calibrated"


def cases(folder: Path) -> list[tuple[Case, np.ndarray, np.ndarray]]:
    """Files of all rules with scores to feed, and the sets that are right: those without and with the ties."""
    scores, truth = drawn(LOGITS, 2000, 10, 3.0, seed=4)
    readout, result = Readout("logits", LOGITS, 10), []
    for number, rule in enumerate(RULES):
        outcome = calibration(scores, truth, readout, rule, 0.1)
        model, entry = scores_file(10, LOGITS, 10)
        attach(model, entry, outcome)
        save(model, folder / f"{number}.onnx")
        expected = {
            "calibrated": outcome.probabilities(scores, readout),
            "prediction_set": outcome.sets(scores, readout),
        }
        outputs = ("logits", "calibrated", "prediction_set")
        case = Case("", "", "", folder / f"{number}.onnx", {"input": scores}, outputs, expected)
        narrow, wide = (
            conformal.sets(scores, readout, rule, outcome.threshold, margin=sign * 2 * MARGIN) for sign in (-1, 1)
        )
        result.append((case, narrow, wide))
    return result


def compare(case: Case, narrow: np.ndarray, wide: np.ndarray, actual: Mapping[str, np.ndarray] | str) -> None:
    assert not isinstance(actual, str), actual
    assert np.abs(actual["calibrated"] - case.expected["calibrated"]).max() <= 2e-6
    inside = actual["prediction_set"].astype(bool)
    assert not (inside < narrow).any() and not (inside > wide).any()


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [openvino, tract], ids=["openvino", "tract"])
def test_other_runtimes_compute_the_same(runtime: Callable[[Case], Any], tmp_path: Path) -> None:
    pytest.importorskip(runtime.__name__)
    for case, narrow, wide in cases(tmp_path):
        compare(case, narrow, wide, runtime(case))


@pytest.mark.slow
def test_onnxruntime_for_node_computes_the_same(tmp_path: Path) -> None:
    run_in_node = node(ROOT / "build" / "runtimes")
    if run_in_node is None:
        pytest.skip("Node is not installed")
    files = cases(tmp_path)
    for (case, narrow, wide), actual in zip(
        files, run_in_node("onnxruntime-node", [case for case, _, _ in files]), strict=True
    ):
        compare(case, narrow, wide, actual)
