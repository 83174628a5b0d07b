"""Small classifiers made explainable, and what their files compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.network import manifest
from tests.support import models
from tests.support import torch_models as twin

EPS = 1e-5


def batch(rows: int = 3, size: Sequence[int] = (32, 32), channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise, each row with colours of its own so that the rows' best classes differ."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, channels, *size)) + 3 * rng.normal(size=(rows, channels, 1, 1))).astype(np.float32)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, **feeds: Any) -> dict[str, np.ndarray]:
    opened = session(model)
    names = [o.name for o in opened.get_outputs()]
    return dict(zip(names, opened.run(names, feeds), strict=True))


def outputs(model: onnx.ModelProto) -> list[str]:
    return [o.name for o in model.graph.output]


def held(model: onnx.ModelProto) -> dict[str, Any]:
    found = manifest.read(model)
    assert found is not None
    return found


def augment(source: Any, *args: Any, **kwargs: Any) -> onnx.ModelProto:
    """`onnxcam.augment`, every result of which has to be valid ONNX of the standard domain."""
    made = onnxcam.augment(source, *args, **kwargs)
    onnx.checker.check_model(made, full_check=True)
    assert {node.domain for node in made.graph.node} <= {"", "ai.onnx"}
    assert [o.domain for o in made.opset_import] == [""]
    read = {name for node in made.graph.node for name in node.input} | set(outputs(made))
    assert {name for node in made.graph.node for name in node.output if name} <= read
    assert {t.name for t in made.graph.initializer} <= read
    return made


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The parity metric: the largest ‖a−b‖ / ‖b‖ over rows."""
    assert a.shape == b.shape
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    return float((np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)).max())


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def with_output(model: onnx.ModelProto, name: str, shape: Sequence[int | str], first: bool = False) -> onnx.ModelProto:
    made = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    model.graph.output.insert(0 if first else len(model.graph.output), made)
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
