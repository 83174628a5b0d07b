"""Small classifiers for `onnxcam.inside`, and what onnxruntime computes in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.runtime import run


def classifier(
    nodes: Sequence[onnx.NodeProto],
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    *,
    classes: int = 4,
    last: str = "last",
    width: int,
    opset: int = 18,
    nhwc: bool = False,
    dtype: int = onnx.TensorProto.FLOAT,
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """A classifier whose body ends in the map `last` of `width` channels: pooling over places and a Gemm follow."""
    rng = np.random.default_rng(0)
    head = rng.normal(size=(width, classes)).astype(np.float32)
    tail = [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "head"], ["logits"], name="classify"),
    ]
    shape = ["N", *size, channels] if nhwc else ["N", channels, *size]
    graph = helper.make_graph(
        [*nodes, *tail],
        "net",
        [helper.make_tensor_value_info("input", dtype, shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(array, name) for name, array in {**weights, "head": head}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def conv(source: str, weight: str, output: str, bias: str | None = None, **attrs: Any) -> onnx.NodeProto:
    """A Conv node called as its output."""
    return helper.make_node(
        attrs.pop("op", "Conv"), [source, weight, *([bias] if bias else [])], [output], name=f"{output}/node", **attrs
    )


def node(op: str, inputs: Sequence[str], output: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=f"{output}/node", **attrs)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def values(model: onnx.ModelProto, batch: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Values of a plain model, as onnxruntime computes them."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    present = {output.name for output in exposed.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return run(exposed, {"input": batch}, outputs=list(names))


def transformer(size: int = 32, width: int = 8) -> onnx.ModelProto:
    """Patches of 8 x 8, a class token, one block of attention with a residual sum, the mean over tokens."""
    count = (size // 8) ** 2
    weights = {
        "patch": normal(width, 3, 8, 8, seed=1, scale=0.1),
        "cls": normal(1, 1, width, seed=2),
        "to_tokens": np.array([0, width, count], np.int64),
        "q": normal(width, width, seed=3, scale=0.4),
        "k": normal(width, width, seed=4, scale=0.4),
        "v": normal(width, width, seed=5, scale=0.4),
        "axes": np.array([1], np.int64),
        "head": normal(width, 4, seed=6),
    }
    nodes = [
        conv("input", "patch", "patches", strides=[8, 8]),
        node("Reshape", ["patches", "to_tokens"], "rows"),
        node("Transpose", ["rows"], "tokens", perm=[0, 2, 1]),
        node("Concat", ["cls", "tokens"], "sequence", axis=1),
        *(node("MatMul", ["sequence", letter], f"{letter}_out") for letter in "qkv"),
        node("Transpose", ["k_out"], "k_turned", perm=[0, 2, 1]),
        node("MatMul", ["q_out", "k_turned"], "scores"),
        node("Softmax", ["scores"], "attention", axis=-1),
        node("MatMul", ["attention", "v_out"], "mixed"),
        node("Add", ["sequence", "mixed"], "block"),
        node("ReduceMean", ["block", "axes"], "mean", keepdims=0),
        node("MatMul", ["mean", "head"], "logits"),
    ]
    graph = helper.make_graph(
        nodes,
        "transformer",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
