"""Several classes of each row in one session give the maps that each class gives by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcam import Explainer
from onnxcam.cam.methods import GRAPH, find, methods
from onnxcam.targets.objectives import Weights
from tests.support.models import tiny_cnn

NAMES = [name for name in methods(GRAPH) if find(name).gradient]
MODELS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "wide tail": {"pool": "Flatten"},
    "softmax": {"ending": "Softmax"},
    "multilabel": {"ending": "Sigmoid"},
    "binary": {"classes": 1, "ending": "Sigmoid"},
    "nhwc": {"nhwc": True},
    "open size": {"size": None},
    "fixed batch": {"batch": 2},
}


def explainer(model: onnx.ModelProto) -> Explainer:
    return Explainer(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", MODELS)
def test_classes_together_are_classes_apart(kind: str) -> None:
    subject = explainer(tiny_cnn(**MODELS[kind]))
    shape = (3, 32, 32, 3) if kind == "nhwc" else (3, 3, 32, 32)
    batch = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    classes = np.array([[1, 0], [0, 1], [1, 0]]) if kind == "binary" else np.array([[4, 0], [2, 2], [1, 3]])
    examined = subject.examine(batch)
    together = examined.class_maps(examined.question(method=NAMES, layer=[subject.layers[-1]]), classes)
    for place in range(2):
        apart = subject.examine(batch).attribute(classes[:, place], NAMES, normalize="none", size="layer")
        for name, maps, other in zip(NAMES, together, apart, strict=True):
            np.testing.assert_allclose(maps[0][:, place], other, rtol=1e-5, atol=1e-7, err_msg=name)
    assert all(maps[0].any() for maps in together)


def test_values_of_the_model_may_be_called_like_methods() -> None:
    model = tiny_cnn()
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = {"conv1": "gradcam", "pooled": "layercam"}.get(name, name)
    batch = np.random.default_rng(4).normal(size=(1, 3, 32, 32)).astype(np.float32)
    maps, expected = (explainer(source).attribute(batch, [2], NAMES) for source in (model, tiny_cnn()))
    np.testing.assert_array_equal(maps, expected)


def test_maps_from_a_class_are_those_from_its_cotangent() -> None:
    subject = explainer(tiny_cnn(pool="Flatten"))
    batch = np.random.default_rng(4).normal(size=(3, 3, 32, 32)).astype(np.float32)
    for name in NAMES:
        mine = subject.attribute(batch, 2, name, normalize="none", size="layer")
        weighed = subject.attribute(batch, Weights({2: 1.0}), name, normalize="none", size="layer")
        np.testing.assert_allclose(mine, weighed, rtol=1e-5, atol=1e-7, err_msg=name)
