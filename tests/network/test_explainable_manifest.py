"""The manifest of an explainable model, and what becomes of it when the model is augmented again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.errors import ModelError, PreprocessError
from onnxcam.graph.float16 import store_float16
from onnxcam.network import manifest
from tests.support import models
from tests.support.batches import batch, distance
from tests.support.explainable import EPS, augment, manifest_of, outputs, with_output
from tests.support.runtime import run

# ---- the manifest


def test_manifest_is_complete() -> None:
    labels = [f"class {k}" for k in range(5)]
    preprocess = {"color": "RGB", "scale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3}
    preprocess |= {"resize": {"mode": "stretch", "size": [24, 32]}}
    source = models.tiny_cnn(ending="Softmax", size=(24, 32))
    explainable = augment(source, labels=labels, preprocess=preprocess)
    import hashlib

    result = json.loads(next(p.value for p in explainable.metadata_props if p.key == "onnxcam"))
    correlation = result["layers"][0]["place"]["correlation"]
    assert result == {
        "format": 1,
        "requires": {"onnxruntime": result["requires"]["onnxruntime"], "opset": 18, "ir": 8},
        "input": {
            "name": "input", "layout": "NCHW", "dtype": "float32", "shape": ["N", 3, 24, 32], "preprocess": preprocess
        },
        "scores": {"name": "logits", "kind": "logits", "classes": 5, "probabilities": "probabilities"},
        "target": {"name": "target", "mode": "optional"},
        "layers": [
            {
                "name": "relu2", "activations": "activations", "gradients": "gradients", "layout": "NCHW",
                "shape": ["N", 16, 12, 16], "grid": [12, 16], "prefix_tokens": 0, "covers": "all",
                "heatmaps": {"gradcam": "heatmap"}, "value": "relu2",
                "place": {"verdict": "direct", "correlation": correlation},
            }
        ],
        "measured": {
            "scores": result["measured"]["scores"], "rows": "independent", "deterministic": True,
            "range": result["measured"]["range"],
        },
        "labels": labels,
        "source": {
            "framework": "onnx", "name": "tiny", "opset": 18, "outputs": ["probabilities"],
            "sha256": hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest(),
        },
        "parity": None,
    }  # fmt: skip
    assert result["requires"]["onnxruntime"].count(".") == 2
    assert correlation > 0.7
    assert result["measured"]["scores"]["rows"] == 12
    assert result["measured"]["range"] == pytest.approx([-1, 1], abs=0.03)  # of the preprocessing
    assert (explainable.opset_import[0].version, explainable.ir_version) == (18, 8)


def test_source_is_named_after_the_file(tmp_path: Any) -> None:
    import hashlib

    path = tmp_path / "squirrel.onnx"
    onnx.save(models.tiny_cnn(), path)
    for source, name in ((path, "squirrel"), (str(path), "squirrel"), (path.read_bytes(), "model")):
        result = manifest_of(augment(source))["source"]
        assert (result["name"], result["sha256"]) == (name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_source_is_left_alone_and_foreign_metadata_kept() -> None:
    source = models.tiny_cnn()
    source.metadata_props.add(key="author", value="somebody")
    source.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    before = source.SerializeToString(deterministic=True)
    explainable = augment(source)
    assert source.SerializeToString(deterministic=True) == before
    assert (explainable.metadata_props[0].key, explainable.metadata_props[0].value) == ("author", "somebody")
    assert {p.key for p in augment(explainable).metadata_props} == {"author", "onnxcam"}


# ---- augmenting again


@pytest.mark.sample(3)
@pytest.mark.parametrize("ending", [None, "Softmax", "Sigmoid"])
@pytest.mark.parametrize("target", ["optional", "required", 2])
def test_augmenting_again_equals_augmenting_the_original(ending: str | None, target: Any) -> None:
    source = models.tiny_cnn(ending=ending)
    labels = list("abcde")
    first = augment(source, ["relu1"], ("hirescam",), target, labels=labels, preprocess={"color": "RGB"})
    again = augment(first, ["relu2"], ("gradcam", "hirescam"))
    straight = augment(
        source, ["relu2"], ("gradcam", "hirescam"), labels=labels, preprocess={"color": "RGB"},
    )  # fmt: skip
    assert manifest_of(again) == manifest_of(straight)
    assert [i.name for i in again.graph.input] == [i.name for i in straight.graph.input]
    assert len(again.graph.node) == len(straight.graph.node)
    a, b = run(again, input=batch(), target=np.array([1])), run(straight, input=batch(), target=np.array([1]))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in b)
    same_layers = augment(first, methods=("hirescam",))
    assert [e["name"] for e in manifest_of(same_layers)["layers"]] == ["relu1"]


@pytest.mark.parametrize("ending", ["Sigmoid", "Softmax"])
def test_augmenting_again_keeps_what_both_outputs_say(ending: str) -> None:
    source = with_output(models.tiny_cnn(ending=ending), "logits", ["N", 5])
    first = augment(source)
    assert manifest_of(augment(first))["scores"] == manifest_of(first)["scores"]
    explicit = augment(source, scores="logits")
    assert manifest_of(explicit)["scores"] == manifest_of(first)["scores"]


@pytest.mark.slow
def test_augmenting_again_explains_the_same_of_several_scores() -> None:
    source = two_heads()
    with pytest.raises(ModelError, match=r"several outputs .*scores="):
        onnxcam.augment(source)
    for name in ("second", "second_logits"):
        first = augment(source, scores=name)
        assert manifest_of(first)["scores"]["probabilities"] == "second"
        again = augment(first, methods=("hirescam", "gradcam"))
        assert manifest_of(again)["scores"] == manifest_of(first)["scores"]
        a, b = run(first, input=batch()), run(again, input=batch())
        assert np.array_equal(a["logits"], b["logits"])
        assert np.array_equal(a["gradients"], b["gradients"])
    assert [layer.name for layer in onnxcam.layers(first)] == ["relu1", "relu2"]


def two_heads() -> onnx.ModelProto:
    model = models.tiny_cnn(ending="Softmax")
    w = np.random.default_rng(5).normal(size=(16, 7)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w_second"))
    model.graph.node.append(helper.make_node("MatMul", ["flat", "w_second"], ["second_logits"]))
    model.graph.node.append(helper.make_node("Softmax", ["second_logits"], ["second"]))
    return with_output(model, "second", ["N", 7])


def test_weights_stored_as_float16() -> None:
    source = models.tiny_cnn(width=16)
    small = store_float16(source)
    assert any(t.data_type == TensorProto.FLOAT16 for t in small.graph.initializer)
    explainable = augment(small)
    assert any(t.data_type == TensorProto.FLOAT16 for t in explainable.graph.initializer)
    a, b = (
        run(explainable, input=batch(), target=np.array([1])),
        run(augment(source), input=batch(), target=np.array([1])),
    )
    assert distance(a["gradients"], b["gradients"]) <= 2e-3
    plain = run(small, input=batch())
    assert distance(a["logits"], plain["logits"]) <= EPS


def test_an_old_softmax_with_its_logits_as_an_output() -> None:
    source = with_output(models.tiny_cnn(ending="Softmax", opset=11), "logits", ["N", 5])
    explainable = augment(source)
    assert manifest_of(explainable)["scores"] == {
        "name": "logits", "kind": "logits", "classes": 5, "probabilities": "probabilities"
    }  # fmt: skip
    assert outputs(explainable)[:3] == ["probabilities", "logits", "activations"]


@pytest.mark.parametrize("spec", ["0..1", {"scale": 1 / 255}])
def test_preprocessing_is_spelled_out(spec: object) -> None:
    """A preset, or an entry that leaves the resize to the model's input, means the same to any client."""
    explainable = augment(models.tiny_cnn(size=(24, 32)), preprocess=spec)
    header = manifest.read(explainable)
    assert header is not None
    entry = header["input"]["preprocess"]
    assert entry["scale"] == pytest.approx(1 / 255)
    assert (entry["resize"]["mode"], entry["resize"]["size"]) == ("stretch", [24, 32])


def test_preprocessing_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PreprocessError, match="channels"):
        augment(models.tiny_cnn(), preprocess={"color": "L"})
