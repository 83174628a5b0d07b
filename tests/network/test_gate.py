"""Gated files: the condition against `conditions.evaluate`; fired, the maps of the file without a gate; else zeros."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.diagnose.gradients import check
from onnxcam.errors import ModelError, SettingError, TargetError
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph
from onnxcam.network import gate, manifest
from onnxcam.network.network import Network, prepare
from onnxcam.network.split import split
from onnxcam.targets import conditions
from onnxcam.targets.conditions import AllOf, AnyOf, Comparison, Condition, Not
from onnxcam.targets.readout import LOGITS, Readout
from tests.support import models
from tests.support.explainable import held

ALWAYS, NEVER = "confidence <= 1", "confidence < 0"
LABELS = ["cat, tabby", "bird", "fish", "dog, hound", "frog"]
Feeds = dict[str, np.ndarray]


def batch(rows: int = 4, shape: Sequence[int] = (3, 32, 32), seed: int = 0) -> np.ndarray:
    """Noise, each row with colours of its own so that the rows' best classes differ."""
    rng = np.random.default_rng(seed)
    colours = 3 * rng.normal(size=(rows, *(1 if d > 4 else d for d in shape)))
    return np.asarray(rng.normal(size=(rows, *shape)) + colours, np.float32)


def run(model: onnx.ModelProto, feeds: Feeds, optimise: bool = True) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def augment(source: Any, *args: Any, **kwargs: Any) -> onnx.ModelProto:
    """`onnxcam.augment`, whose gated result has to be valid ONNX of the standard domain, whole outside the branch."""
    made = onnxcam.augment(source, *args, **kwargs)
    onnx.checker.check_model(made, full_check=True)
    assert [o.domain for o in made.opset_import] == [""]
    branches = [node for node in made.graph.node if node.op_type == "If"]
    assert len(branches) == (1 if held(made).get("gate") else 0)
    bodies = [made.graph, *(a.g for node in branches for a in node.attribute)]
    assert {node.domain for body in bodies for node in body.node} <= {"", "ai.onnx"}
    every = [name for body in bodies for node in body.node for name in node.output if name]
    every += [t.name for body in bodies for t in body.initializer]
    assert len(set(every)) == len(every)
    return made


def explained(model: onnx.ModelProto) -> list[str]:
    """Names of the outputs that the gate is about."""
    entries = held(model)["layers"]
    names = [entry["gradients"] for entry in entries if entry["gradients"]]
    return names + [name for entry in entries for name in entry["heatmaps"].values()]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float(np.linalg.norm((a - b).astype(np.float64)) / max(np.linalg.norm(b.astype(np.float64)), 1e-12))


# ---- nets


def net(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: Sequence[int | str]) -> onnx.ModelProto:
    tensors = [
        numpy_helper.from_array(v if v.dtype == np.int64 else v.astype(np.float32), name) for name, v in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], 5])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def residual(pool: bool = True) -> onnx.ModelProto:
    """Conv, then a residual block with SiLU, an overlapping MaxPool and a dense head; every operator below a layer."""
    rng = np.random.default_rng(7)
    w = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 5,
        "w2": rng.normal(size=(8, 8, 3, 3)) / 8,
        "w3": rng.normal(size=(8, 8, 1, 1)) / 2,
        "w4": rng.normal(size=(8 * 25, 5)) / 3,
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["first"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Sigmoid", ["first"], ["gated"]),
        helper.make_node("Mul", ["first", "gated"], ["silu"]),
        helper.make_node("Conv", ["silu", "w2"], ["second"], pads=[1] * 4),
        helper.make_node("Add", ["second", "silu"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["block"]),
        helper.make_node("MaxPool", ["block"], ["pooled"], kernel_shape=[3, 3], strides=[3, 3]),
        helper.make_node("Conv", ["pooled", "w3"], ["third"]),
        helper.make_node("Relu", ["third"], ["last"]),
        helper.make_node("Flatten", ["last"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w4"], ["logits"]),
    ]
    return net(nodes, w, ["N", 3, 32, 32])


def tokens() -> onnx.ModelProto:
    """A patch embedding, one attention and a LayerNormalization over tokens, the mean of them classified."""
    rng = np.random.default_rng(8)
    w: dict[str, np.ndarray] = {
        "patch": rng.normal(size=(12, 3, 8, 8)) / 10,
        "shape": np.array([0, 12, 16], np.int64),
        "qkv": rng.normal(size=(12, 12)) / 2,
        "scale": rng.uniform(0.5, 1.5, 12),
        "bias": rng.normal(size=12) * 0.1,
        "axis": np.array([1], np.int64),
        "head": rng.normal(size=(12, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "patch"], ["patches"], strides=[8, 8]),
        helper.make_node("Reshape", ["patches", "shape"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "qkv"], ["q"]),
        helper.make_node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "k"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["attention"], axis=-1),
        helper.make_node("MatMul", ["attention", "tokens"], ["mixed"]),
        helper.make_node("Add", ["mixed", "tokens"], ["block"]),
        helper.make_node("LayerNormalization", ["block", "scale", "bias"], ["normal"], axis=-1),
        helper.make_node("ReduceMean", ["normal", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    return net(nodes, w, ["N", 3, 32, 32])


tiny = models.tiny_cnn
NETS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, Any], tuple[int, ...]]] = {
    "plain": (tiny, {}, (4, 3, 32, 32)),
    "deep": (tiny, {"layers": ["relu1"], "methods": ("hirescam",)}, (4, 3, 32, 32)),
    "several": (tiny, {"layers": ["relu1", "relu2"], "methods": ("gradcam", "hirescam")}, (4, 3, 32, 32)),
    "heatmap alone": (tiny, {"outputs": "heatmap"}, (4, 3, 32, 32)),
    "fixed batch": (lambda: tiny(batch=2), {}, (2, 3, 32, 32)),
    "free size": (lambda: tiny(size=None), {"layers": ["relu1", "relu2"]}, (3, 3, 20, 36)),
    "NHWC": (lambda: tiny(nhwc=True, ending="Softmax"), {}, (3, 32, 32, 3)),
    "binary": (lambda: tiny(classes=1, ending="Sigmoid", seed=4), {}, (6, 3, 32, 32)),
    "multilabel": (lambda: tiny(ending="Sigmoid"), {}, (4, 3, 32, 32)),
    "residual": (residual, {"layers": ["block", "last"]}, (4, 3, 32, 32)),
    "residual, first": (residual, {"layers": ["silu", "first"], "methods": ("hirescam",)}, (4, 3, 32, 32)),
    "tokens": (tokens, {"layers": ["tokens", "block"]}, (4, 3, 32, 32)),
    "opset 13": (lambda: tiny(opset=13), {}, (2, 3, 32, 32)),
    "opset 21": (lambda: tiny(opset=21), {}, (2, 3, 32, 32)),
}  # fmt: skip
every_net = pytest.mark.parametrize("name", NETS)


# ---- maps


@every_net
@pytest.mark.parametrize("optimise", [True, False])
def test_fired_is_ungated_and_not_fired_is_zero(name: str, optimise: bool) -> None:
    make, options, shape = NETS[name]
    source = make()
    x = batch(shape[0], shape[1:])
    ungated = augment(source, **options)
    always, never = (augment(source, gate=condition, **options) for condition in (ALWAYS, NEVER))
    for target in (None, np.zeros(len(x), np.int64), np.array([1], np.int64)):
        feeds = {"input": x} | ({} if target is None else {"target": target})
        want, fired, blank = (run(model, feeds, optimise) for model in (ungated, always, never))
        assert list(fired) == list(blank) == [*want, "fired"]
        assert fired["fired"].tolist() == [True] * len(x) and blank["fired"].tolist() == [False] * len(x)
        assert any(want[output].any() for output in explained(ungated))
        for output, value in want.items():
            assert distance(fired[output], value) <= 1e-6, output
            if output in explained(ungated):
                assert not blank[output].any()
                assert blank[output].shape == value.shape and blank[output].dtype == value.dtype
            else:  # predictions and activations are computed always
                assert distance(blank[output], value) <= 1e-6, output


@pytest.mark.parametrize("name", ["several", "fixed batch", "residual, first", "tokens", "opset 13"])
def test_shapes_are_declared_as_without_a_gate(name: str) -> None:
    make, options, _ = NETS[name]
    plain, gated = augment(make(), **options), augment(make(), gate=ALWAYS, **options)
    assert list(gated.graph.output)[:-1] == list(plain.graph.output)
    (rows,) = gated.graph.output[-1].type.tensor_type.shape.dim
    assert rows == plain.graph.input[0].type.tensor_type.shape.dim[0]
    assert gated.opset_import == plain.opset_import and gated.ir_version == plain.ir_version


def readout(scores: np.ndarray, kind: str) -> Readout:
    return Readout("scores", kind, 2 if kind == "binary_logit" else scores.shape[1])


def test_one_unsure_row_computes_the_batch_and_only_it_is_marked() -> None:
    source, x = models.tiny_cnn(), batch(8)
    want = run(augment(source), {"input": x})
    sure = np.sort(
        conditions.probabilities(want["logits"], readout(want["logits"], LOGITS), "logits").max(axis=1).astype(float)
    )
    gated = augment(source, gate=f"confidence < {(sure[0] + sure[1]) / 2:.9f}")
    got = run(gated, {"input": x})
    assert got["fired"].sum() == 1
    unsure = int(got["fired"].argmax())
    for output, value in want.items():
        assert distance(got[output], value) <= 1e-6
    others = np.delete(x, unsure, axis=0)
    blank = run(gated, {"input": others})
    assert not blank["fired"].any() and not blank["heatmap"].any() and blank["heatmap"].shape == (7, 16, 16)
    alone = run(gated, {"input": x[unsure : unsure + 1]})
    assert alone["fired"].all() and alone["heatmap"].any()


@pytest.mark.parametrize("target", ["required", "optional", 3])
def test_every_target_mode(target: Any) -> None:
    x = batch()
    plain, gated = augment(models.tiny_cnn(), target=target), augment(models.tiny_cnn(), target=target, gate=ALWAYS)
    assert gated.graph.input == plain.graph.input
    feeds = {"input": x} | ({} if target == 3 else {"target": np.array([4, -1, 0, 2])})
    want, got = run(plain, feeds), run(gated, feeds)
    assert all(distance(got[name], value) <= 1e-6 for name, value in want.items())
    assert held(gated)["target"] == held(plain)["target"]


def test_an_empty_batch_fires_nothing() -> None:
    got = run(augment(models.tiny_cnn(), gate=ALWAYS), {"input": batch()[:0]})
    assert got["fired"].shape == (0,) and got["heatmap"].shape == (0, 16, 16)


def test_the_branch_holds_whatever_is_not_needed_outside() -> None:
    plain = models.tiny_cnn()
    gated = augment(plain, ["relu1"], gate="confidence < 0.6")
    outside = [node.op_type for node in gated.graph.node]
    forward = [node.op_type for node in plain.graph.node]
    assert outside[: len(forward)] == forward
    then = next(a.g for a in gated.graph.node[-1].attribute if a.name == "then_branch")
    assert {"ArgMax", "ConvTranspose"} <= {node.op_type for node in then.node} and "ArgMax" not in outside
    read = {name for node in gated.graph.node for name in node.input}
    assert {t.name for t in then.initializer}.isdisjoint(read)


def test_what_the_runtime_fuses_is_made_again_in_the_branch(tmp_path: Path) -> None:
    gated = augment(residual(), ["silu"], methods=("hirescam",), gate=NEVER)
    deeper = augment(residual(), ["input"], methods=("hirescam",), gate=NEVER)
    for model, again in ((gated, 0), (deeper, 1)):
        then = next(a.g for a in model.graph.node[-1].attribute if a.name == "then_branch")
        assert sum(name.endswith("/again") for node in then.node for name in node.output) == again
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outside = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
        assert "QuickGelu" in outside and "Sigmoid" not in outside and "Relu" not in outside


# ---- the condition

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


def emitted(condition: Condition, scores: np.ndarray, kind: str) -> tuple[np.ndarray, bool]:
    info = edit.info("scores", TensorProto.FLOAT, ["N", scores.shape[1]])
    model = helper.make_model(
        helper.make_graph([], "condition", [info], []), opset_imports=[helper.make_opsetid("", 18)], ir_version=8
    )
    op = Builder(Graph(model))
    unsure = gate.emit(op, condition, "scores", readout(scores, kind))
    edit.add(model, op)
    model.graph.output.append(edit.info("fired", TensorProto.BOOL, ["N"]))
    model.graph.output.append(edit.info(unsure, TensorProto.BOOL, []))
    onnx.checker.check_model(model, full_check=True)
    got = run(model, {"scores": scores})
    return got["fired"], bool(got[unsure])


def leaves(condition: Condition) -> list[Comparison]:
    if isinstance(condition, Comparison):
        return [condition]
    parts = (condition.condition,) if isinstance(condition, Not) else condition.conditions
    return [leaf for part in parts for leaf in leaves(part)]


@settings(max_examples=150, deadline=None)
@given(trees, st.sampled_from(list(KINDS)), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 10.0, 1000.0]))
def test_emitted_condition_is_the_hooks(condition: Condition, kind: str, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    scores = (scale * rng.normal(size=(9, 1 if kind == "binary_logit" else 4))).astype(np.float32)
    scores[0, 0], scores[1, -1], scores[2, 0] = np.nan, np.inf, -np.inf
    scores[3] = scores[3, 0]  # ties
    found = quantities(scores, kind)
    # a rounding of the last bit may decide only where a quantity equals its bound
    for leaf in leaves(condition):
        near = np.abs(found[leaf.quantity] - float(leaf.value))
        assume(leaf.quantity == "label" or not ((near > 0) & (near < 1e-9)).any())
    want = conditions.evaluate(condition, found)
    fired, unsure = emitted(condition, scores, kind)
    np.testing.assert_array_equal(fired, want)
    assert unsure == want.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantity", ["confidence", "margin", "entropy"])
def test_thresholds_at_the_quantities_themselves(kind: str, quantity: str) -> None:
    """Both sides of each row's own value, so that an error of 2e-7 shows."""
    scores = np.random.default_rng(3).normal(scale=2, size=(6, 1 if kind == "binary_logit" else 5)).astype(np.float32)
    found = quantities(scores, kind)[quantity]
    for row, value in enumerate(found):
        for bound in (value - 1e-7, value + 1e-7):
            fired, _ = emitted(Comparison(quantity, "<", bound), scores, kind)
            assert fired.tolist() == (found < bound).tolist() and fired[row] == (bound > value)


def test_scores_that_are_not_finite_are_as_unsure_as_can_be() -> None:
    scores = np.array([[np.nan, 9, 0], [np.inf, 0, 0], [-np.inf] * 3, [9, -np.inf, 0], [9, 0, 0]], np.float32)
    for text in ("confidence < 0.1", "margin < 0.1", "entropy >= 1", "confidence == 0 and label == 0"):
        condition = conditions.parse(text)
        for model, kind in ((scores, "logits"), (scores, "multilabel"), (scores[:, :1], "binary_logit")):
            fired, _ = emitted(condition, model, kind)
            found = quantities(model, kind)
            assert fired.tolist() == conditions.evaluate(condition, found).tolist(), (text, kind)
            assert fired[0]
        assert emitted(condition, scores, "logits")[0].tolist() == [True, True, True, False, False]


def test_labels_are_resolved_at_export() -> None:
    x = batch(8)
    gated = augment(models.tiny_cnn(), labels=LABELS, gate="label == 'TABBY' or label == 1")
    got = run(gated, {"input": x})
    best = got["logits"].argmax(axis=1)
    assert {0, 4} <= set(best)
    assert got["fired"].tolist() == np.isin(best, [0, 1]).tolist()
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
    x = batch()
    gated = run(augment(source, gate=ALWAYS), {"input": x})
    assert gated["fired"].dtype == np.bool_
    source.graph.output.append(edit.info("fired", TensorProto.FLOAT, ["N", 8, 32, 32]))
    with pytest.raises(ModelError, match="already has an input or output called 'fired'"):
        onnxcam.augment(source, gate=ALWAYS)
    assert "gate" not in held(augment(source))


# ---- manifest, and what reads a gated file


def test_manifest_says_what_the_gate_is() -> None:
    gated, plain = augment(models.tiny_cnn(), gate="confidence < 0.6"), augment(models.tiny_cnn())
    assert held(gated)["gate"] == {"condition": "confidence < 0.6", "output": "fired"}
    assert "gate" not in held(plain)
    # whoever knows nothing of gates reads the rest
    assert held(gated)["format"] == 1
    without = {key: value for key, value in held(gated).items() if key not in ("gate", "source")}
    assert without == {key: value for key, value in held(plain).items() if key != "source"}
    for half in ({"condition": "confidence < 0.6"}, {"condition": 1, "output": "fired"}, "confidence < 0.6"):
        with pytest.raises(ModelError, match="gate"):
            manifest.parse(json.dumps(held(plain) | {"gate": half}))


@every_net
def test_without_its_gate_a_file_is_what_it_was(name: str) -> None:
    make, options, _ = NETS[name]
    plain, gated = prepare(augment(make(), **options)), prepare(augment(make(), gate=ALWAYS, **options))
    explained = [Network(augment(make(), **options, gate=text)) for text in (None, ALWAYS)]
    assert [network.condition for network in explained] == [None, ALWAYS]
    assert [o.name for o in gated.outputs] == [o.name for o in plain.outputs]
    assert sorted(n.op_type for n in gated.nodes) == sorted(n.op_type for n in plain.nodes)
    assert "gate" not in held(gated.model)
    onnx.checker.check_model(gated.model, full_check=True)


def test_augmenting_again_keeps_changes_or_removes_the_gate() -> None:
    first = augment(models.tiny_cnn(ending="Softmax"), gate="confidence < 0.6", labels=LABELS)
    kept = augment(first, methods=("gradcam", "hirescam"))
    assert held(kept)["gate"]["condition"] == "confidence < 0.6"
    assert [o.name for o in kept.graph.output][-3:] == ["heatmap/gradcam", "heatmap/hirescam", "fired"]
    changed = augment(kept, ["relu1"], gate="label == 'cat'")
    assert held(changed)["gate"]["condition"] == "label == 'cat'"
    removed = augment(changed, gate="")
    x = {"input": batch()}
    want = run(augment(models.tiny_cnn(ending="Softmax"), ["relu1"]), x)
    got = run(removed, x)
    assert "gate" not in held(removed) and list(got) == list(want)
    assert all(distance(got[output], value) <= 1e-6 for output, value in want.items())


def test_a_manifest_whose_gate_is_gone_is_refused() -> None:
    plain = augment(models.tiny_cnn())
    manifest.write(plain, held(plain) | {"gate": {"condition": "margin < 1", "output": "fired"}})
    with pytest.raises(ModelError, match="no If node computes its maps"):
        onnxcam.Explainer(plain)


def test_an_explanation_asked_for_is_given() -> None:
    gated, plain = augment(models.tiny_cnn(), gate=NEVER), augment(models.tiny_cnn())
    x = batch()
    for source in (gated, gated.SerializeToString()):
        mine, theirs = (onnxcam.Explainer(model, preprocess="0..1") for model in (source, plain))
        raw, want = mine.run(x), theirs.run(x)
        assert raw.gradients.any() and distance(raw.gradients, want.gradients) <= 1e-6
        assert distance(mine.attribute(x), theirs.attribute(x)) <= 1e-6
        assert mine.attribute(x, layer="relu1", method="hirescam").any()
        picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
        e, w = mine.explain(picture, top=3), theirs.explain(picture, top=3)
        assert [m.target for m in e.maps] == [m.target for m in w.maps]
        assert all(distance(a.heatmap, b.heatmap) <= 1e-6 for a, b in zip(e.maps, w.maps, strict=True))
        assert e.heatmap.any()


def test_it_is_cut_as_without_a_gate() -> None:
    head, tails = split(augment(residual(), ["block"], gate=NEVER))
    plain_head, plain_tails = split(augment(residual(), ["block"]))
    assert [o.name for o in head.graph.output] == [o.name for o in plain_head.graph.output]
    assert tails["block"].cut == plain_tails["block"].cut and tails["block"].rowwise
    assert "If" not in {node.op_type for node in (*head.graph.node, *tails["block"].model.graph.node)}


def test_layers_are_listed() -> None:
    gated = augment(models.tiny_cnn(), ["relu1"], gate=NEVER)
    assert [layer.name for layer in onnxcam.layers(gated)] == [
        layer.name for layer in onnxcam.layers(models.tiny_cnn())
    ]


@pytest.mark.parametrize("condition", [NEVER, ALWAYS, "confidence < 0.7"])
@pytest.mark.parametrize("outputs", ["all", "heatmap"])
def test_check_proves_it(condition: str, outputs: str) -> None:
    report = check(augment(models.tiny_cnn(), gate=condition, outputs=outputs), directions=2)
    assert report.passed, report.lines()
    (finding,) = [f for f in report.findings if f.name == "gate"]
    assert finding.status == "ok" and condition in finding.detail


def test_check_finds_a_gate_of_another_condition() -> None:
    gated = augment(models.tiny_cnn(), gate=ALWAYS)
    manifest.write(gated, held(gated) | {"gate": {"condition": NEVER, "output": "fired"}})
    report = check(gated, directions=2)
    assert [f.name for f in report.findings if f.status == "failed"] == ["gate"]


def test_the_monitor_explains_and_serves_with_it() -> None:
    records: list[dict[str, Any]] = []
    gated = augment(models.tiny_cnn(), gate=NEVER).SerializeToString()
    with onnxcam.Monitor(
        gated, sink=lambda record, *_: records.append(record), when=ALWAYS, worker="inline", rate=None,
        daily_budget=None, duplicates=0,
    ) as monitor:  # fmt: skip
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = monitor.wrap(ort.InferenceSession(gated, options, providers=["CPUExecutionProvider"]))
        got = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"input": batch()}), strict=True))
        assert not got["heatmap"].any() and got["activations"].any()
        assert monitor.stats()["explained"] == 4
    assert len(records) == 4
    assert all(max(record["map"]["values"]) == 255 and not record["attention"]["zero"] for record in records)
