"""Small classifiers made explainable, and what their files compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.network import manifest
from tests.support import models
from tests.support import torch_models as twin

EPS = 1e-5


def outputs(model: onnx.ModelProto) -> list[str]:
    return [o.name for o in model.graph.output]


def manifest_of(model: onnx.ModelProto) -> dict[str, Any]:
    result = manifest.read(model)
    assert result is not None
    return result


def augment(source: Any, *args: Any, **kwargs: Any) -> onnx.ModelProto:
    """`onnxcam.augment`, every result of which has to be valid ONNX of the standard domain."""
    explainable = onnxcam.augment(source, *args, **kwargs)
    onnx.checker.check_model(explainable, full_check=True)
    assert {node.domain for node in explainable.graph.node} <= {"", "ai.onnx"}
    assert [o.domain for o in explainable.opset_import] == [""]
    read = {name for node in explainable.graph.node for name in node.input} | set(outputs(explainable))
    assert {name for node in explainable.graph.node for name in node.output if name} <= read
    assert {t.name for t in explainable.graph.initializer} <= read
    return explainable


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def with_output(model: onnx.ModelProto, name: str, shape: Sequence[int | str], first: bool = False) -> onnx.ModelProto:
    entry = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    model.graph.output.insert(0 if first else len(model.graph.output), entry)
    return model


def conv_head(ending: str | None = None, output: str = "out") -> onnx.ModelProto:
    """Scores of shape [N, 4, 1, 1]: a 1×1 convolution after the pooling, as SqueezeNet's and DenseNet's."""
    model = models.tiny_cnn(classes=4)
    graph = model.graph
    del graph.node[-2:]
    kernel = twin.weights(model)["w3"].T[..., None, None].copy()
    graph.initializer.append(numpy_helper.from_array(kernel, "w4"))
    for name in ("w3",):
        graph.initializer.remove(next(t for t in graph.initializer if t.name == name))
    graph.node.append(helper.make_node("Conv", ["pooled", "w4", "b3"], [output if ending is None else "deep"]))
    if ending is not None:
        graph.node.append(helper.make_node(ending, ["deep"], [output], axis=1))
    del graph.output[:]
    return with_output(model, output, ["N", 4, 1, 1])


def gradcam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return np.maximum(np.einsum("nc,nchw->nhw", g.mean(axis=(2, 3)), a), 0)


def hirescam(a: np.ndarray, g: np.ndarray) -> np.ndarray:
    return np.maximum((g * a).sum(axis=1), 0)
