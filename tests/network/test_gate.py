"""Gated files: fired, the maps of the file without a gate; else zeros; and what reads such a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxcam
from onnxcam.diagnose.gradients import check
from onnxcam.errors import ModelError
from onnxcam.network import manifest
from onnxcam.network.network import Network, prepare
from onnxcam.network.split import split
from onnxcam.targets import conditions
from onnxcam.targets.readout import LOGITS
from tests.network.gated import ALWAYS, NETS, NEVER, augment, distance, every_net, explained, readout, residual
from tests.support import models
from tests.support.batches import batch
from tests.support.explainable import manifest_of
from tests.support.runtime import run, session

LABELS = ["cat, tabby", "bird", "fish", "dog, hound", "frog"]

# ---- maps


@pytest.mark.sample(3)
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
        want, fired, blank = (run(model, feeds, optimise=optimise) for model in (ungated, always, never))
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


def test_one_unsure_row_computes_the_batch_and_only_it_is_marked() -> None:
    source, x = models.tiny_cnn(), batch(8)
    want = run(augment(source), {"input": x})
    sure = np.sort(
        conditions.probabilities(want["logits"], readout(want["logits"], LOGITS), "logits").max(axis=1).astype(float)
    )
    gated = augment(source, gate=f"confidence < {(sure[0] + sure[1]) / 2:.9f}")
    actual = run(gated, {"input": x})
    assert actual["fired"].sum() == 1
    unsure = int(actual["fired"].argmax())
    for output, value in want.items():
        assert distance(actual[output], value) <= 1e-6
    others = np.delete(x, unsure, axis=0)
    blank = run(gated, {"input": others})
    assert not blank["fired"].any() and not blank["heatmap"].any() and blank["heatmap"].shape == (7, 16, 16)
    alone = run(gated, {"input": x[unsure : unsure + 1]})
    assert alone["fired"].all() and alone["heatmap"].any()


@pytest.mark.parametrize("target", ["required", "optional", 3])
def test_every_target_mode(target: Any) -> None:
    x = batch(4)
    plain, gated = augment(models.tiny_cnn(), target=target), augment(models.tiny_cnn(), target=target, gate=ALWAYS)
    assert gated.graph.input == plain.graph.input
    feeds = {"input": x} | ({} if target == 3 else {"target": np.array([4, -1, 0, 2])})
    want, actual = run(plain, feeds), run(gated, feeds)
    assert all(distance(actual[name], value) <= 1e-6 for name, value in want.items())
    assert manifest_of(gated)["target"] == manifest_of(plain)["target"]


def test_an_empty_batch_fires_nothing() -> None:
    actual = run(augment(models.tiny_cnn(), gate=ALWAYS), {"input": batch()[:0]})
    assert actual["fired"].shape == (0,) and actual["heatmap"].shape == (0, 16, 16)


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


# ---- manifest, and what reads a gated file


def test_manifest_says_what_the_gate_is() -> None:
    gated, plain = augment(models.tiny_cnn(), gate="confidence < 0.6"), augment(models.tiny_cnn())
    assert manifest_of(gated)["gate"] == {"condition": "confidence < 0.6", "output": "fired"}
    assert "gate" not in manifest_of(plain)
    # whoever knows nothing of gates reads the rest
    assert manifest_of(gated)["format"] == 1
    without = {key: value for key, value in manifest_of(gated).items() if key not in ("gate", "source")}
    assert without == {key: value for key, value in manifest_of(plain).items() if key != "source"}
    for half in ({"condition": "confidence < 0.6"}, {"condition": 1, "output": "fired"}, "confidence < 0.6"):
        with pytest.raises(ModelError, match="gate"):
            manifest.parse(json.dumps(manifest_of(plain) | {"gate": half}))


@pytest.mark.sample(3)
@every_net
def test_without_its_gate_a_file_is_what_it_was(name: str) -> None:
    make, options, _ = NETS[name]
    plain, gated = prepare(augment(make(), **options)), prepare(augment(make(), gate=ALWAYS, **options))
    explained = [Network(augment(make(), **options, gate=text)) for text in (None, ALWAYS)]
    assert [network.condition for network in explained] == [None, ALWAYS]
    assert [o.name for o in gated.outputs] == [o.name for o in plain.outputs]
    assert sorted(n.op_type for n in gated.nodes) == sorted(n.op_type for n in plain.nodes)
    assert "gate" not in manifest_of(gated.model)
    onnx.checker.check_model(gated.model, full_check=True)


def test_augmenting_again_keeps_changes_or_removes_the_gate() -> None:
    first = augment(models.tiny_cnn(ending="Softmax"), gate="confidence < 0.6", labels=LABELS)
    again = augment(first, methods=("gradcam", "hirescam"))
    assert manifest_of(again)["gate"]["condition"] == "confidence < 0.6"
    assert [o.name for o in again.graph.output][-3:] == ["heatmap/gradcam", "heatmap/hirescam", "fired"]
    changed = augment(again, ["relu1"], gate="label == 'cat'")
    assert manifest_of(changed)["gate"]["condition"] == "label == 'cat'"
    removed = augment(changed, gate="")
    x = {"input": batch(4)}
    want = run(augment(models.tiny_cnn(ending="Softmax"), ["relu1"]), x)
    actual = run(removed, x)
    assert "gate" not in manifest_of(removed) and list(actual) == list(want)
    assert all(distance(actual[output], value) <= 1e-6 for output, value in want.items())


def test_a_manifest_whose_gate_is_gone_is_refused() -> None:
    plain = augment(models.tiny_cnn())
    manifest.write(plain, manifest_of(plain) | {"gate": {"condition": "margin < 1", "output": "fired"}})
    with pytest.raises(ModelError, match="no If node computes its maps"):
        onnxcam.Explainer(plain)


def test_an_explanation_asked_for_is_given() -> None:
    gated, plain = augment(models.tiny_cnn(), gate=NEVER), augment(models.tiny_cnn())
    x = batch(4)
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
    manifest.write(gated, manifest_of(gated) | {"gate": {"condition": NEVER, "output": "fired"}})
    report = check(gated, directions=2)
    assert [f.name for f in report.findings if f.status == "failed"] == ["gate"]


def test_the_monitor_explains_and_serves_with_it() -> None:
    records: list[dict[str, Any]] = []
    gated = augment(models.tiny_cnn(), gate=NEVER).SerializeToString()
    with onnxcam.Monitor(
        gated, sink=lambda record, *_: records.append(record), when=ALWAYS, worker="inline", rate=None,
        daily_budget=None, duplicates=0,
    ) as monitor:  # fmt: skip
        served = monitor.wrap(session(gated))
        outputs = dict(zip([o.name for o in served.get_outputs()], served.run(None, {"input": batch(4)}), strict=True))
        assert not outputs["heatmap"].any() and outputs["activations"].any()
        assert monitor.stats()["explained"] == 4
    assert len(records) == 4
    assert all(max(record["map"]["values"]) == 255 and not record["attention"]["zero"] for record in records)
