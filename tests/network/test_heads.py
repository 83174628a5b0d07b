"""Heads that people attach: kind, class and probabilities against the file's own outputs in plain onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcam
from onnxcam.diagnose.facts import of_file
from onnxcam.errors import InputError, ModelError, SettingError
from onnxcam.network import subgraphs
from onnxcam.network.names import SCORES
from onnxcam.network.network import Network
from tests.monitor.monitoring import UNLIMITED, Collector
from tests.support import heads
from tests.support.batches import distance
from tests.support.explainable import augment, manifest_of, outputs
from tests.support.runtime import run, session

CASES = Path(__file__).parent.parent / "cases"
# of small contrast no probability is all but 1, and its gradient not all but lost in float32
FAINT = 0.2
PICTURES = np.random.default_rng(5).normal(size=(6, 3, 12, 12)).astype(np.float32)


def pictures(head: heads.Head) -> np.ndarray:
    return PICTURES if head.batch == "N" else PICTURES[: int(head.batch)]


def case(name: str) -> tuple[str, np.ndarray, dict[str, Any]]:
    """A file, a batch, and its own outputs."""
    path = str(CASES / f"{name}.onnx")
    shape = [dim.dim_value or 3 for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return path, x, run(path, x)


def predictions(source: Any, x: np.ndarray, **options: Any) -> tuple[Network, np.ndarray, np.ndarray]:
    """The network, its scores and its probabilities."""
    network = Network(source, **options)
    scores = run(subgraphs.head(network, ()), x)[SCORES]
    return network, scores, network.readout.probabilities(scores)


EVERY = list(heads.heads())


def test_there_are_enough_heads() -> None:
    assert len(EVERY) >= 200 and len({head.name for head in EVERY}) == len(EVERY)


@pytest.mark.sample(34)
@pytest.mark.parametrize("head", EVERY, ids=[head.name for head in EVERY])
def test_a_head_is_read_as_what_it_is_or_refused(head: heads.Head) -> None:
    recipe, x = head.recipe, pictures(head)
    original = run(head.model, x)
    if not recipe.kinds:
        with pytest.raises(ModelError, match=r"scores=.*--scores"):
            Network(head.model)
        return
    network, scores, p = predictions(head.model, x)
    readout = network.readout
    assert readout.kind in recipe.kinds
    assert bool(readout.warnings) is recipe.warned
    assert scores.shape == (len(x), readout.columns) and p.shape == (len(x), readout.size)
    if recipe.probabilities is None:
        return
    expected = np.asarray(recipe.probabilities(original), np.float64)
    if readout.signed:
        expected = np.concatenate([1 - expected, expected], axis=1)
    expected = expected[:, : readout.size]  # a table of ranks may be wider
    finite = np.isfinite(expected)
    assert finite.any() and np.abs(p - expected)[finite].max() <= recipe.loose
    if finite.all():  # of two classes that are both 100 % either is the best
        best = np.take_along_axis(expected, readout.top1(scores)[:, None], axis=1)[:, 0]
        assert (expected.max(axis=1) - best <= recipe.loose).all()


def test_the_index_of_the_best_is_the_class() -> None:
    for name in ("index of the best", "best and its index"):
        model = heads.build(heads.RECIPES[name], 7)
        network, scores, _ = predictions(model, PICTURES)
        assert (network.readout.top1(scores) == run(model, PICTURES)["y"]).all()


def test_what_was_stepped_over_is_said() -> None:
    explainable = augment(heads.build(heads.RECIPES["softmax, temperature, clip"]))
    assert manifest_of(explainable)["scores"]["stepped_over"] == ["Clip", "Softmax"]
    assert "stepped_over" not in manifest_of(augment(heads.build(heads.RECIPES["softmax"])))["scores"]
    (warning,) = manifest_of(augment(heads.build(heads.RECIPES["softmax, wide clip"])))["scores"]["warnings"]
    assert "'Clip'" in warning and "shown and explained are those before" in warning


@pytest.mark.parametrize(("factor", "classes"), [(1.0, 5), (100.0, 5), (255.0, 12)])
def test_what_rows_sum_to_is_measured_where_the_graph_does_not_tell(factor: float, classes: int) -> None:
    steps = " ".join(f"t{2 * k + 1} = Mul(t{2 * k}, two) t{2 * k + 2} = Mul(t{2 * k + 1}, half)" for k in range(205))
    body = f"s = Softmax(z) u = Softmax(z2) a = Mean(s, u) t0 = Mul(a, bytes) {steps} y = Identity(t410)"
    model = heads.build(heads.Recipe(body, heads.TABLE, ("probabilities",), None), classes)
    for tensor in model.graph.initializer:
        if tensor.name == "bytes":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(factor), "bytes"))
    assert Network(model).readout.kind == "logits"  # too many nodes for the end to be run
    explainable = onnxcam.augment(model)
    for source in (model, explainable, onnxcam.augment(explainable, methods=("hirescam",))):
        explainer = onnxcam.Explainer(source)
        readout, x = explainer.terms.readout, PICTURES * np.float32(FAINT)
        assert (readout.kind, readout.scale, readout.probabilities_output) == ("probabilities", factor, "y")
        assert not any("could not be found out" in warning for warning in readout.warnings)
        np.testing.assert_allclose(explainer.predict(x), run(model, x)["y"] / factor, atol=1e-6)


@pytest.mark.parametrize(("name", "scale"), [("vote in percent", 100), ("sigmoids averaged, times 255", 255)])
def test_an_explanation_and_a_check_say_the_scale(name: str, scale: int) -> None:
    model = heads.build(heads.RECIPES[name], 5)
    explainer = onnxcam.Explainer(model, preprocess="0..1")
    explained = explainer.explain(np.full((12, 12, 3), 90, np.uint8))
    assert explained.scores["scale"] == explainer.manifest["scores"]["scale"] == scale
    assert 0 < explained.predictions[0][2] <= 1
    (finding,) = [f for f in of_file(explainer.manifest) if f.name == "scores"]
    assert f"of the model's own probabilities in 0..{scale}" in finding.detail
    assert "scale" not in onnxcam.Explainer(heads.build(heads.RECIPES["softmax"], 5)).terms.readout.meaning()


def test_columns_of_one_number_are_no_classes_that_compete() -> None:
    """The head of an ordinal model: sigmoids of one number and a threshold each."""
    for body in ("a = Sub(b, row) y = Sigmoid(a)", "y = Sub(b, row)"):
        recipe = heads.Recipe(body, "float[N,K] y", ("multilabel",), None)
        (warning,) = onnxcam.Explainer(heads.build(recipe, 4)).terms.readout.warnings
        assert "ordinal" in warning and "the order of columns is the same on every picture" in warning
    assert not onnxcam.Explainer(heads.build(heads.RECIPES["sigmoid"], 4)).terms.readout.warnings


# ---- where no logit can be reached


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}


@pytest.mark.parametrize("name", ["vote of two", "vote in percent", "vote, clip"])
def test_the_logarithm_of_a_vote_is_differentiated(name: str) -> None:
    model = heads.build(heads.RECIPES[name], 5)
    explainable = augment(model)
    entry, layer = manifest_of(explainable)["scores"], manifest_of(explainable)["layers"][0]
    assert entry["name"] == "log_probabilities" and entry["kind"] == "probabilities"
    assert entry["probabilities"] == "y" and entry.get("scale", 1) == (100 if "percent" in name else 1)
    assert outputs(explainable)[:2] == ["y", "log_probabilities"]
    target = np.array([0, 1, 2, 3, 4, -1])
    x = PICTURES * np.float32(FAINT)
    values, original = run(explainable, x=x, target=target), run(model, x)["y"].astype(np.float64)
    np.testing.assert_allclose(values["y"], original, rtol=1e-6)
    p = original / original.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(values["log_probabilities"]), p, atol=1e-6)
    classes = np.where(target < 0, p.argmax(axis=1), target)
    w, a = weights(model), values[layer["activations"]].astype(np.float64)
    pooled, cells = a.mean(axis=(2, 3)), a.shape[2] * a.shape[3]
    slope = np.zeros_like(pooled)
    for kernel, bias in ((w["wz"], w["bz"]), (w["wz2"], 0)):
        s = heads.softmax(pooled @ kernel + bias)
        for row, c in enumerate(classes):
            slope[row] += 0.5 * s[row, c] * (kernel[:, c] - kernel @ s[row]) / p[row, c]
    expected = np.broadcast_to(slope[:, :, None, None] / cells, a.shape)
    for row, gradient in enumerate(values[layer["gradients"]]):
        assert distance(gradient, expected[row]) <= 1e-4


@pytest.mark.parametrize("name", ["vote of two", "softmax, clip", "sigmoid with thresholds", "topk of a softmax"])
def test_an_explainable_file_is_augmented_again_to_the_same(name: str) -> None:
    explainable = augment(heads.build(heads.RECIPES[name], 5))
    again = augment(explainable, methods=("gradcam", "hirescam"))
    assert manifest_of(again)["scores"] == manifest_of(explainable)["scores"]
    target = np.array([0, 1, 2, 3, 4, -1])
    a, b = (run(each, x=PICTURES, target=target) for each in (explainable, again))
    assert np.abs(a["gradients"] - b["gradients"]).max() <= 1e-6 * np.abs(a["gradients"]).max()


@pytest.mark.parametrize("name", ["vote of two", "softmax, clip", "softmax in 8 bits", "sigmoid, clip", "softmax"])
def test_a_gate_compares_the_files_own_probabilities(name: str) -> None:
    model = heads.build(heads.RECIPES[name], 5)
    x = PICTURES * np.float32(FAINT)
    threshold = float(np.median(run(model, x)["y"].max(axis=1)))  # between two pictures' confidence
    explainable = onnxcam.augment(model, gate=f"confidence < {threshold}")
    values = run(explainable, x=x)
    assert (values["fired"] == (values["y"].max(axis=1) < threshold)).all() and values["fired"].any()


# ---- declared kinds


def test_a_sigmoid_outside_the_file_is_declared() -> None:
    path, x, original = case("logits_and_embedding")
    network, scores, p = predictions(path, x, scores="logits", kind="multilabel")
    np.testing.assert_allclose(p, heads.sigmoid(original["logits"]), atol=1e-6)
    assert network.readout.describe() == {
        "name": "logits", "kind": "multilabel", "classes": scores.shape[1], "probabilities": None
    }  # fmt: skip
    explainable = augment(path, scores="logits", kind="multilabel")
    assert manifest_of(explainable)["scores"]["kind"] == "multilabel"
    assert manifest_of(augment(explainable, methods=("hirescam",)))["scores"]["kind"] == "multilabel"


def test_a_single_number_is_a_binary_logit_with_a_warning_or_a_quantity() -> None:
    path, x, original = case("regression")
    network, _, _ = predictions(path, x)
    assert network.readout.signed and "--kind regression" in network.readout.warnings[0]
    assert not predictions(path, x, kind="binary_logit")[0].readout.warnings
    network, _, values = predictions(path, x, kind="regression")
    assert network.readout.describe() == {"name": "age", "kind": "regression", "classes": 1, "probabilities": None}
    np.testing.assert_array_equal(values, original["age"])
    explainable = augment(path, kind="regression")
    assert outputs(explainable)[:2] == ["age", "activations"]
    assert manifest_of(augment(explainable, methods=("hirescam",)))["scores"]["kind"] == "regression"
    with pytest.raises(SettingError, match="this model's score is a quantity"):
        augment(path, kind="regression", gate="confidence < 0.6")


def test_a_quantity_without_a_class_axis() -> None:
    model = heads.build(heads.RECIPES["binary logit [N]"])
    explainable = augment(model, kind="regression")
    assert manifest_of(explainable)["scores"]["name"] == "value"
    values = run(explainable, x=PICTURES)
    np.testing.assert_array_equal(values["value"][:, 0], values["y"])


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        ("vote of two", "logits", "probabilities that sum to 1"),
        ("vote of two", "multilabel", "probabilities that sum to 1"),
        ("softmax", "multilabel", "is a softmax"),
        ("softmax, clip", "multilabel", "is a softmax"),
        ("sigmoid", "logits", "independent of each other"),
        ("logits", "probabilities", "scores without an upper bound"),
        ("logits", "binary_logit", "scores without an upper bound"),
        ("logits", "regression", "expected one float per picture"),
        ("binary sigmoid", "probabilities", "a single number per picture"),
        ("logits", "detection", "expected one of logits, probabilities"),
    ],
)
def test_a_kind_that_the_file_contradicts(name: str, kind: str, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        Network(heads.build(heads.RECIPES[name]), kind=kind)


@pytest.mark.parametrize("name", ["softmax", "softmax, clip"])
def test_probabilities_can_be_declared_where_there_are_logits(name: str) -> None:
    model = heads.build(heads.RECIPES[name])
    network, scores, p = predictions(model, PICTURES, kind="probabilities")
    original = run(model, PICTURES)["y"]
    assert network.readout.logarithmic
    np.testing.assert_allclose(p, original, atol=1e-6)
    np.testing.assert_allclose(scores, np.log(original), atol=1e-4)


# ---- files


@pytest.mark.parametrize(
    ("name", "kind", "tolerance"),
    [
        ("softmax_clip", "logits", 1e-6),
        ("softmax_temperature_clip", "logits", 2e-6),
        ("softmax_int8", "logits", 1 / 255),
        ("vote", "probabilities", 1e-6),
        ("sigmoid_squeezed", "binary_logit", 1e-6),
    ],
)
def test_predictions_are_the_files_own(name: str, kind: str, tolerance: float) -> None:
    path, x, original = case(name)
    (values,) = original.values()
    network, _, p = predictions(path, x)
    assert network.readout.kind == kind
    assert np.abs((p[:, 1] if kind == "binary_logit" else p) - values).max() <= tolerance


def test_ranks_are_followed_back_to_classes() -> None:
    path, x, original = case("topk")
    network, _, p = predictions(path, x)
    assert network.readout.size == 9 and network.readout.stepped_over == ("TopK", "Softmax")
    np.testing.assert_allclose(np.take_along_axis(p, original["i"], axis=1), original["v"], atol=1e-6)


@pytest.mark.parametrize("name", ["label_strings", "zipmap_beside", "zipmap_only"])
def test_labels_that_the_graph_holds(name: str) -> None:
    path, x, original = case(name)
    network, scores, p = predictions(path, x)
    assert network.labels == list("abcde")
    explainable = onnxcam.augment(path)  # a ZipMap stays, as every output does: an operator of ai.onnx.ml
    assert manifest_of(explainable)["labels"] == list("abcde")
    assert outputs(explainable)[: len(original)] == list(original)
    if name == "zipmap_only":
        expected = np.array([[row[label] for label in "abcde"] for row in original["loss"]])
    else:
        expected = original["probs"]
    np.testing.assert_allclose(p, expected, atol=1e-6)
    if name == "label_strings":
        assert [network.labels[index] for index in network.readout.top1(scores)] == list(original["label"])
    assert manifest_of(onnxcam.augment(path, labels=list("vwxyz")))["labels"] == list("vwxyz")


@pytest.mark.parametrize("lookup", ["ArrayFeatureExtractor", "LabelEncoder", "ints"])
def test_other_tables_of_labels(lookup: str) -> None:
    model = heads.build(heads.RECIPES["index of the best"], 5)
    del model.graph.output[:]
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    string, names = onnx.TensorProto.STRING, ["elk", "owl", "cat", "hen", "ant"]
    if lookup == "ArrayFeatureExtractor":
        model.graph.initializer.append(onnx.helper.make_tensor("names", string, [5], [name.encode() for name in names]))
        node = onnx.helper.make_node("ArrayFeatureExtractor", ["names", "y"], ["label"], domain="ai.onnx.ml")
    elif lookup == "LabelEncoder":
        pairs = {"keys_int64s": [4, 3, 2, 1, 0], "values_strings": names[::-1]}
        node = onnx.helper.make_node("LabelEncoder", ["y"], ["label"], domain="ai.onnx.ml", **pairs)
    else:
        model.graph.node.remove(model.graph.node[-1])
        labels, names = [70, 10, 30, 40, 50], ["70", "10", "30", "40", "50"]
        node = onnx.helper.make_node("ZipMap", ["s"], ["label"], domain="ai.onnx.ml", classlabels_int64s=labels)
    model.graph.node.append(node)
    if lookup == "ints":
        value = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
        kind = onnx.helper.make_sequence_type_proto(onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, value))
        model.graph.output.append(onnx.helper.make_value_info("label", kind))
    else:
        model.graph.output.append(onnx.helper.make_tensor_value_info("label", string, None))
    network, scores, p = predictions(model, PICTURES)
    assert network.labels == names
    texts = run(model, PICTURES)["label"]
    if lookup == "ints":
        np.testing.assert_allclose(p, [[row[label] for label in labels] for row in texts], atol=1e-6)
    else:
        assert [names[index] for index in network.readout.top1(scores)] == list(np.ravel(texts))


def test_the_classes_of_the_only_picture() -> None:
    recipe = heads.Recipe("s = Softmax(z) y = Squeeze(s, a0)", "float[K] y", ("logits",), None)
    model = heads.build(recipe, 5, batch=1)
    network, _, p = predictions(model, PICTURES[:1])
    assert network.readout.kind == "logits"
    np.testing.assert_allclose(p[0], run(model, PICTURES[:1])["y"], atol=1e-6)


@pytest.mark.parametrize(("name", "one"), [("logits_and_embedding", "embedding"), ("age_and_gender", "gender")])
def test_several_candidates_are_refused_with_the_option(name: str, one: str) -> None:
    path, x, original = case(name)
    with pytest.raises(ModelError, match=r"several outputs.*scores=.*--scores NAME"):
        Network(path)
    network, scores, _ = predictions(path, x, scores=one)
    assert network.readout.value and scores.shape == original[one].shape


# ---- what is made of them


@pytest.mark.parametrize("name", ["vote of two", "vote in percent", "softmax in percent", "sigmoid with thresholds"])
def test_a_probability_target_is_the_files_own(name: str) -> None:
    recipe = heads.RECIPES[name]
    model, x = heads.build(recipe, 5), PICTURES * np.float32(FAINT)
    explainer = onnxcam.Explainer(model)
    assert recipe.probabilities is not None
    original = np.asarray(recipe.probabilities(run(model, x)))
    np.testing.assert_allclose(explainer.predict(x), original, atol=2e-6)
    classes = np.array([0, 1, 2, 3, 4, 0])
    examination = explainer.examine(x)
    objective = explainer.question(
        target=[onnxcam.targets.Probability(int(c)) for c in classes], rows=len(x)
    ).objective(examination.scores)
    rows = np.arange(len(x))
    np.testing.assert_allclose(objective.value(examination.scores, rows), original[rows, classes], atol=2e-6)
    step = 1e-3 * np.eye(5)[2][None]
    slope = objective.value(examination.scores + step, rows) - objective.value(examination.scores - step, rows)
    np.testing.assert_allclose(objective.cotangent(examination.scores, rows)[:, 2], slope / 2e-3, atol=1e-3)


def test_a_contrast_of_a_vote_is_the_difference_of_log_p() -> None:
    model, x = heads.build(heads.RECIPES["vote of two"], 5), PICTURES * np.float32(FAINT)
    explainer, original = onnxcam.Explainer(model), run(model, x)["y"].astype(np.float64)
    examination = explainer.examine(x)
    objective = explainer.question(target=onnxcam.targets.Contrast(3, 1)).objective(examination.scores)
    expected = np.log(original[:, 3]) - np.log(original[:, 1])
    np.testing.assert_allclose(objective.value(examination.scores, np.arange(len(x))), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vote of two", "vote in percent", "softmax, clip", "softmax"])
def test_a_monitor_reads_a_plain_sessions_probabilities(name: str) -> None:
    model, x = heads.build(heads.RECIPES[name], 5), PICTURES * np.float32(FAINT)
    recipe = heads.RECIPES[name]
    assert recipe.probabilities is not None
    original = np.asarray(recipe.probabilities(run(model, x))).max(axis=1)
    threshold = float(np.median(original))
    sink = Collector()
    settings = {"redact": "none", "baseline_sample": 0.0, **UNLIMITED}
    with onnxcam.Monitor(model, sink=sink, when=f"confidence < {threshold}", **settings) as monitor:
        monitor.wrap(session(model)).run(None, {"x": x})
        assert monitor.flush(20)
    confidences = sorted(record["prediction"]["confidence"] for record in sink.records)
    np.testing.assert_allclose(confidences, sorted(original[original < threshold]), atol=1e-5)


def test_a_monitor_refuses_outputs_that_are_something_else() -> None:
    model = heads.build(heads.RECIPES["softmax in percent"], 5)
    with (
        onnxcam.Monitor(model, sink=print, when="confidence < 0.6") as monitor,
        pytest.raises(InputError, match=r"neither the scores.*'Mul', 'Softmax'.*'logits'"),
    ):
        monitor.wrap(session(model))


def test_a_monitor_names_its_own_option() -> None:
    path, _, _ = case("logits_and_embedding")
    with pytest.raises(ModelError, match="`scores_output=`"):
        onnxcam.Monitor(path, sink=print, when="confidence < 0.6")
    onnxcam.Monitor(path, sink=print, when="confidence < 0.6", scores_output="logits").close()
    with pytest.raises(SettingError, match="this model's score is a quantity"):
        onnxcam.Monitor(case("regression")[0], sink=print, when="confidence < 0.6", kind="regression")


def test_the_gradient_of_a_vote_in_float16_is_finite() -> None:
    explainable = augment(heads.build(heads.RECIPES["vote in float16"], 5))
    values = run(explainable, x=PICTURES, target=np.array([0, 1, 2, 3, 4, -1]))
    assert np.isfinite(values["gradients"]).all() and np.isfinite(values["log_probabilities"]).all()
