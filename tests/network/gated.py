"""Networks to export with a gate, and what each gated file has to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcam
from onnxcam.targets.readout import Readout
from tests.support import batches, models
from tests.support.explainable import manifest_of

ALWAYS, NEVER = "confidence <= 1", "confidence < 0"


def readout(scores: np.ndarray, kind: str) -> Readout:
    return Readout("scores", kind, 2 if kind == "binary_logit" else scores.shape[1])


def augment(source: Any, *args: Any, **kwargs: Any) -> onnx.ModelProto:
    """`onnxcam.augment`, whose gated result has to be valid ONNX of the standard domain, whole outside the branch."""
    explainable = onnxcam.augment(source, *args, **kwargs)
    onnx.checker.check_model(explainable, full_check=True)
    assert [o.domain for o in explainable.opset_import] == [""]
    branches = [node for node in explainable.graph.node if node.op_type == "If"]
    assert len(branches) == (1 if manifest_of(explainable).get("gate") else 0)
    bodies = [explainable.graph, *(a.g for node in branches for a in node.attribute)]
    assert {node.domain for body in bodies for node in body.node} <= {"", "ai.onnx"}
    every = [name for body in bodies for node in body.node for name in node.output if name]
    every += [t.name for body in bodies for t in body.initializer]
    assert len(set(every)) == len(every)
    return explainable


def explained(model: onnx.ModelProto) -> list[str]:
    """Names of the outputs that the gate is about."""
    entries = manifest_of(model)["layers"]
    names = [entry["gradients"] for entry in entries if entry["gradients"]]
    return names + [name for entry in entries for name in entry["heatmaps"].values()]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The parity metric, of arrays of the same type."""
    assert a.dtype == b.dtype
    return batches.distance(a, b)


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
