"""Facts about a file, measured: rows, determinism, what the measurement costs, and what it leaves as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.errors import InputError, ModelError, PreprocessError
from onnxcam.network import manifest
from onnxcam.network.probe import runner
from onnxcam.network.probe.facts import Probe
from onnxcam.network.score_facts import measure
from tests.support import misplaced, models


def changed(
    net: misplaced.Net | None = None, op: str = "", *, rows: int | str = "N", dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """A direct network, with an operator after the first convolution and another batch or input type."""
    net = net or misplaced.Net(3)
    x = "x" if dtype == TensorProto.FLOAT else net.add("Cast", "x", to=TensorProto.FLOAT)
    y = net.conv(x, 3, 12, 4)
    if op == "training":
        scale, bias, mean, var = (net.const(np.full(12, value, np.float32)) for value in (1, 0, 0, 1))
        net.nodes.append(
            helper.make_node("BatchNormalization", [y, scale, bias, mean, var], ["y", "mean", "var"], training_mode=1)
        )
        y = "y"
    elif op == "mask":
        y = net.add("Mul", y, net.add("Bernoulli", net.add("Sigmoid", y)))
    elif op == "noise":
        y = net.add("Add", y, net.add("RandomNormalLike", y, scale=0.5))
    elif op == "scaled":
        y = net.add("Div", y, net.add("ReduceMax", y, net.ints(0, 1, 2, 3)))
    model = net.model(net.conv(y, 12, misplaced.CHANNELS))
    tensor = model.graph.input[0].type.tensor_type
    tensor.elem_type = dtype
    if isinstance(rows, int):
        tensor.shape.dim[0].dim_value = rows
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = rows
    return model


def flattened() -> onnx.ModelProto:
    """A declared free batch, and Reshape(1, -1) before the last matrix."""
    net = misplaced.Net(5)
    net.add("Identity", net.features("x"), output="layer")
    flat = net.add("Reshape", "layer", net.ints(1, -1))
    count = misplaced.CHANNELS * misplaced.GRID**2
    w = net.rng.normal(size=(count, 5)).astype(np.float32) / np.sqrt(count)
    net.add("MatMul", flat, net.const(w.astype(np.float32)), output="scores")
    graph = helper.make_graph(
        net.nodes,
        "flattened",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, misplaced.SIZE, misplaced.SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 5])],
        net.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


# ---- rows and determinism


def test_rows_of_a_plain_network_are_independent_and_runs_agree() -> None:
    facts = onnxcam.probe(changed())
    assert (facts.rows, facts.deterministic, facts.unmeasured, facts.warnings) == ("independent", True, {}, [])
    assert facts.scores is not None and (facts.scores.rows, facts.scores.columns) == (12, 5)
    assert facts.layers[0].place.verdict == "direct"


@pytest.mark.parametrize("op", ["training", "scaled"])
def test_rows_that_affect_each_other_are_coupled(op: str) -> None:
    """BatchNormalization in training mode; a scale that is taken over the batch."""
    facts = onnxcam.probe(changed(op=op))
    assert (facts.rows, facts.deterministic) == ("coupled", True)
    assert "depend on the others in its batch" in facts.warnings[0]
    assert facts.layers[0].place.verdict in ("direct", "unsettled")
    assert facts.passes <= 14


@pytest.mark.parametrize("op", ["mask", "noise"])
def test_random_operators_are_not_deterministic(op: str) -> None:
    facts = onnxcam.probe(changed(op=op))
    assert (facts.rows, facts.deterministic) == (None, False)
    assert facts.unmeasured["rows"] == "the model is not deterministic"
    assert "not deterministic" in facts.warnings[0]


@pytest.mark.parametrize("rows", [2, 3, 16])
def test_a_fixed_batch_is_filled_and_measured(rows: int) -> None:
    facts = onnxcam.probe(changed(rows=rows))
    assert (facts.rows, facts.deterministic, facts.layers[0].place.verdict) == ("independent", True, "direct")
    assert onnxcam.probe(changed(op="training", rows=rows)).rows == "coupled"
    assert onnxcam.probe(changed(op="noise", rows=rows)).deterministic is False


def test_a_batch_of_one_has_no_rows_to_compare() -> None:
    facts = onnxcam.probe(changed(rows=1))
    assert (facts.rows, facts.deterministic, facts.layers[0].place.verdict) == (None, True, "direct")
    assert facts.unmeasured == {"rows": "the model takes one picture at a time"}


def test_coupled_rows_are_explained_one_by_one() -> None:
    """The results of a picture are its own, whatever it shares a batch with."""
    explainer = onnxcam.Explainer(changed(op="training"), layers=["layer"])
    pictures = np.random.default_rng(0).normal(size=(5, 3, 48, 48)).astype(np.float32) * np.float32([[[[1]]]] * 5)
    pictures *= np.arange(1, 6, dtype=np.float32)[:, None, None, None]
    together, alone = explainer.predict(pictures), [explainer.predict(row[None])[0] for row in pictures]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    maps = explainer.attribute(pictures, method=["gradcam", "scorecam"])
    for by_method, names in zip(maps, ("gradcam", "scorecam"), strict=True):
        np.testing.assert_allclose(by_method[3], explainer.attribute(pictures[3:4], method=names)[0], atol=1e-4)
    assert any("depend on the others" in sentence for sentence in explainer.warnings)


@pytest.mark.parametrize("rows", [2, 4])
def test_coupled_rows_of_a_fixed_batch_are_run_as_many_at_a_time(rows: int) -> None:
    explainer = onnxcam.Explainer(changed(op="training", rows=rows), layers=["layer"])
    assert explainer.batch_size == rows
    pictures = np.random.default_rng(0).normal(size=(rows, 3, 48, 48)).astype(np.float32)
    assert explainer.attribute(pictures, method=["gradcam", "scorecam"])[1].shape == (rows, 48, 48)
    (sentence,) = [text for text in explainer.warnings if "depend on the others" in text]
    assert f"takes {rows} pictures at a time" in sentence and "one by one" not in sentence


# ---- a batch that is declared free and is not


def test_a_batch_of_one_is_found_out_and_declared() -> None:
    facts = onnxcam.probe(flattened())
    assert (facts.batch, facts.rows, facts.layers[0].place.verdict) == (1, None, "direct")
    assert "one picture at a time only" in facts.unmeasured["rows"]
    explainable = onnxcam.augment(flattened(), ["layer"])
    record = manifest.read(explainable)
    assert record is not None and record["input"]["shape"] == [1, 3, 48, 48]
    assert explainable.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_pictures_of_such_a_model_are_explained_one_by_one() -> None:
    source = flattened()
    explainer = onnxcam.Explainer(source, layers=["layer"])
    pictures = np.random.default_rng(0).normal(size=(3, 3, 48, 48)).astype(np.float32)
    raw = explainer.run(pictures)
    assert raw.scores.shape == (3, 5)
    weights = numpy_helper.to_array(next(t for t in source.graph.initializer if t.dims == [24 * 144, 5]))
    np.testing.assert_allclose(raw.gradients[2].ravel(), weights[:, raw.target[2]], rtol=1e-4, atol=1e-6)
    for method in ("gradcam", "scorecam", "ablationcam"):
        assert explainer.attribute(pictures, method=method).shape == (3, 48, 48)


# ---- input


def test_whole_numbers_and_open_sizes_are_measured() -> None:
    facts = onnxcam.probe(changed(dtype=TensorProto.UINT8))
    assert facts.layers[0].place.verdict == "direct"
    assert facts.range is not None and facts.range[0] >= 0 and 200 < facts.range[1] <= 255
    model = changed()
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    assert onnxcam.probe(model).layers[0].place.verdict == "direct"


@pytest.mark.parametrize("offset", [0.0, -1.0])
def test_pixels_that_the_graph_scales_are_not_negative(offset: float) -> None:
    net = misplaced.Net(3)
    scaled = net.add("Mul", "x", net.const(np.float32((1 - offset) / 255)))
    facts = onnxcam.probe(net.model(net.features(net.add("Add", scaled, net.const(np.float32(offset))))))
    assert facts.range is not None and 0 <= facts.range[0] < 20 and 240 < facts.range[1] <= 310


def test_the_range_is_that_of_the_preprocessing() -> None:
    facts = onnxcam.probe(changed(), preprocess="0..1")
    assert facts.range is not None and -0.01 <= facts.range[0] < 0.1 and 0.9 < facts.range[1] <= 1.01


def test_pictures_take_the_place_of_noise() -> None:
    pictures = np.random.default_rng(1).uniform(3, 4, (2, 3, 48, 48)).astype(np.float32)
    facts = onnxcam.probe(changed(), pictures)
    assert facts.layers[0].place.verdict == "direct"
    assert facts.range is not None and facts.range[1] == pytest.approx(4, abs=0.01)
    rgb = np.random.default_rng(2).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert onnxcam.probe(changed(), [rgb], preprocess="0..1").layers[0].place.verdict == "direct"
    with pytest.raises(PreprocessError, match="preprocess="):
        onnxcam.probe(changed(), [rgb])
    with pytest.raises(InputError, match="rank 4"):
        onnxcam.probe(changed(), rgb)


# ---- what cannot be measured does not fail


def test_a_model_that_cannot_run_is_not_measured_and_says_why() -> None:
    net = misplaced.Net(3)
    y = net.conv("x", 3, 12, 4)
    flat = net.add("Reshape", y, net.ints(7, -1))  # no batch fits
    model = net.model(net.add("Reshape", flat, net.ints(-1, misplaced.CHANNELS, 6, 6)))
    facts = onnxcam.probe(model)
    assert (facts.rows, facts.deterministic, facts.scores) == (None, None, None)
    assert facts.unmeasured.keys() == {"rows", "deterministic", "scores", "places"}
    assert facts.layers[0].place.verdict == "unsettled"
    with pytest.warns(UserWarning, match="nothing could be measured of this model"):
        record = manifest.read(onnxcam.augment(model))
    assert record is not None and record["measured"]["unmeasured"]["scores"] == facts.unmeasured["scores"]


def test_without_a_runtime_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcam.errors import DependencyError

    def missing() -> Any:
        raise DependencyError("no ONNX Runtime can be imported")

    monkeypatch.setattr(runner.runtime, "import_onnxruntime", missing)
    with pytest.warns(UserWarning, match="no ONNX Runtime can be imported"):
        record = manifest.read(onnxcam.augment(changed()))
    assert record is not None and "no ONNX Runtime" in record["measured"]["unmeasured"]["scores"]
    assert record["layers"][0]["place"]["verdict"] == "unsettled"


# ---- cost


class Counted:
    """Sessions opened on plain models, and the rows that passed through them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        self.loads = self.rows = self.runs = 0
        session, counted = onnxruntime.InferenceSession, self

        class Session(session):  # type: ignore[misc, valid-type]
            def __init__(self, *arguments: Any, **keywords: Any) -> None:
                counted.loads += 1
                super().__init__(*arguments, **keywords)

            def run(self, outputs: Any, feeds: Any, *rest: Any) -> Any:
                counted.runs += 1
                counted.rows += len(next(iter(feeds.values())))
                return super().run(outputs, feeds, *rest)

        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)


@pytest.mark.parametrize("model", [changed(), changed(op="training"), changed(rows=1), changed(rows=2), flattened()])
def test_it_costs_one_load_and_at_most_14_forward_passes(
    model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    facts = onnxcam.probe(model)
    assert (counted.loads, facts.loads) == (1, 1)
    assert counted.rows == facts.passes <= 14
    assert facts.scores is not None and facts.scores.rows <= 12


def test_all_layers_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    facts = onnxcam.probe(models.tiny_cnn(), all_layers=True)
    assert [layer.name for layer in facts.layers] == ["relu1", "relu2"]
    assert counted.loads == 1 and counted.rows <= 14


def test_an_explainable_file_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.tiny_cnn(ending="Softmax")
    file = onnxcam.augment(source, ["relu2"]).SerializeToString()
    counted = Counted(monkeypatch)
    onnxcam.Explainer(file)
    assert (counted.loads, counted.rows) == (1, 0)
    onnxcam.Explainer(source.SerializeToString())
    assert counted.loads == 3 and 0 < counted.rows <= 14
    rows = counted.rows
    onnxcam.Explainer(source.SerializeToString(), probe=False)
    assert (counted.loads, counted.rows) == (4, rows)


# ---- what it changes


def test_only_metadata_changes() -> None:
    """Nodes, weights and outputs are the same with and without a measurement."""
    source = models.tiny_cnn(ending="Softmax", size=(24, 32))
    models_ = [onnxcam.augment(source, probe=flag) for flag in (True, False)]
    for model in models_:
        del model.metadata_props[:]
    assert models_[0].SerializeToString(deterministic=True) == models_[1].SerializeToString(deterministic=True)


def test_without_the_probe_every_explanation_says_so() -> None:
    explainer = onnxcam.Explainer(models.tiny_cnn(), preprocess="0..1", probe=False)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert any("were not measured (probe=False)" in sentence for sentence in explainer.explain(picture).warnings)
    assert "measured" not in explainer.manifest
    assert onnxcam.Explainer(models.tiny_cnn(), preprocess="0..1").explain(picture).warnings == []


def test_numbers_that_contradict_the_graph_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph computes numbers without a bound, and the rows measured are distributions."""
    source = changed()
    facts = onnxcam.probe(source)
    rows = np.random.default_rng(0).dirichlet(np.ones(5), 12)
    measured = replace(facts, scores=measure(rows))
    monkeypatch.setattr("onnxcam.network.explainable.measure", lambda *_, **__: measured)
    explainable = onnxcam.augment(source)
    record = manifest.read(explainable)
    assert record is not None
    assert (record["scores"]["kind"], record["scores"]["name"]) == ("logits", "scores")
    assert "a softmax of them may be one too many" in record["scores"]["warnings"][0]
    assert record["measured"]["scores"]["sums"] == pytest.approx([1, 1])
    with pytest.raises(ModelError, match="kind='logits' was declared"):
        onnxcam.augment(source, kind="logits")


def test_facts_measured_before_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.tiny_cnn()
    facts = onnxcam.probe(source)
    counted = Counted(monkeypatch)
    record = manifest.read(onnxcam.augment(source, probe=facts))
    assert isinstance(facts, Probe) and counted.loads == 0
    assert record is not None and record["measured"] == facts.describe()
