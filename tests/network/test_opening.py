"""What a file lacks is added in memory as it is opened, and what it has stays."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.errors import LayerError
from onnxcam.network import manifest
from onnxcam.network.opening import GRADIENTS, LAYERS, MANIFEST, METHODS, TARGET, lacking, open_model
from tests.support import models

CPU = ["CPUExecutionProvider"]


def stored(model: onnx.ModelProto) -> dict[str, Any]:
    content = manifest.read(model)
    assert content is not None
    return content


@pytest.mark.parametrize(
    ("options", "question", "missing"),
    [
        ({}, {}, set()),
        ({}, {"layers": ["relu2"], "methods": ["gradcam"], "raw": True, "classes": None}, set()),
        ({}, {"layers": [None], "methods": ["gradcam"]}, set()),
        ({}, {"layers": ["relu1"]}, {LAYERS}),
        ({}, {"methods": ["hirescam"]}, {METHODS}),
        ({"outputs": "heatmap"}, {"raw": True}, {GRADIENTS}),
        ({"outputs": "heatmap"}, {}, set()),
        ({"target": 1}, {"classes": [1, 1]}, set()),
        ({"target": 1}, {"classes": [1, -1]}, {TARGET}),
        ({"target": 1}, {"classes": [1, 2]}, {TARGET}),
        ({"target": 1}, {"classes": None, "layers": ["relu1"]}, {TARGET, LAYERS}),
    ],
)
def test_what_a_file_lacks(options: dict[str, Any], question: dict[str, Any], missing: set[str]) -> None:
    file = onnxcam.augment(models.tiny_cnn(), **options)
    assert lacking(stored(file), **question) == missing
    opened = open_model(file, require_methods=True, **question)
    assert opened.added == missing
    assert lacking(opened.manifest, **question) == set()
    assert (opened.source == file.SerializeToString()) == (not missing)


def test_a_plain_classifier_lacks_a_manifest() -> None:
    opened = open_model(models.tiny_cnn(), methods=["hirescam"])
    assert opened.added == {MANIFEST}
    assert opened.layers == ["relu2"] and list(opened.manifest["layers"][0]["heatmaps"]) == ["hirescam"]


def test_a_method_alone_is_no_reason_to_augment_unless_it_is_required() -> None:
    file = onnxcam.augment(models.tiny_cnn())
    assert open_model(file, methods=["hirescam"]).added == set()


def test_an_added_layer_leaves_the_methods_of_the_file_and_the_class_it_is_bound_to() -> None:
    file = onnxcam.augment(models.tiny_cnn(), methods=("gradcam", "hirescam"), target=3)
    opened = open_model(file, layers=["relu1"], methods=["layercam"])
    assert opened.layers == ["relu2", "relu1"]
    assert list(opened.manifest["layers"][-1]["heatmaps"]) == ["gradcam", "hirescam", "layercam"]
    assert opened.bound_class == 3 and "class" not in opened.manifest["target"]
    # later ones come before the layer that is explained where none is named
    assert open_model(file).extended(["relu1"]).layers == ["relu1", "relu2"]


def test_an_explainer_of_another_layer_still_explains_the_bound_class() -> None:
    explainer = onnxcam.Explainer(onnxcam.augment(models.tiny_cnn(), target=3), layers=["relu1"], providers=CPU)
    batch = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    for method in ("gradcam", "layercam", "saliency"):
        maps = explainer.attribute(batch, method=method)
        np.testing.assert_array_equal(maps, explainer.attribute(batch, 3, method))


def test_a_layer_that_cannot_be_added_is_named_with_those_of_the_file() -> None:
    with pytest.raises(LayerError, match=r"no layer 'relu9'.*the file itself exposes \['relu2'\]"):
        open_model(onnxcam.augment(models.tiny_cnn())).extended(["relu9"])


def test_a_gate_is_taken_out_unless_it_is_asked_to_stay() -> None:
    file = onnxcam.augment(models.tiny_cnn(), gate="confidence < 0.6")
    assert "gate" not in open_model(file).manifest
    assert open_model(file, gated=True).source == file.SerializeToString()


def test_a_file_that_lacks_nothing_is_opened_without_onnx(tmp_path: Path) -> None:
    onnx.save(onnxcam.augment(models.tiny_cnn()), tmp_path / "model.onnx")
    code = (
        "import sys; from onnxcam.network.opening import open_model as o; o(sys.argv[1]); print('onnx' in sys.modules)"
    )
    done = run([sys.executable, "-c", code, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
