"""Small models for tests: seeded, built in memory, each like something a user would bring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def tiny_cnn(
    *,
    classes: int = 5,
    size: int | tuple[int, int] | None = 32,
    channels: int = 3,
    width: int = 8,
    batch: int | str = "N",
    ending: str | None = None,
    pool: str = "GlobalAveragePool",
    nhwc: bool = False,
    opset: int = 18,
    seed: int = 1234,
) -> onnx.ModelProto:
    """Conv, Relu, Conv (stride 2), Relu, global pooling, Flatten, Gemm.

    Arguments:
        size: height and width of the input; None leaves both open.
        batch: rows, a number or a symbol.
        ending: None, or an operator after the Gemm such as `Softmax` or `Sigmoid`; its output is then `probabilities`.
        pool: `GlobalAveragePool`, `ReduceMean`, or `Flatten` for none (needs a size).
        nhwc: the input is [N, H, W, C] and transposed first, as Keras models come out.

    Returns:
        input `input`, values `conv1`, `relu1`, `conv2`, `relu2`, `pooled`, output `logits` (or `probabilities`).
    """
    rng = np.random.default_rng(seed)
    height, length = (size, size) if isinstance(size, int) else size or ("H", "W")
    weights = {
        "w1": rng.normal(size=(width, channels, 3, 3)) / np.sqrt(9 * channels),
        "b1": rng.normal(size=width) * 0.1,
        "w2": rng.normal(size=(2 * width, width, 3, 3)) / np.sqrt(9 * width),
        "b2": rng.normal(size=2 * width) * 0.1,
    }
    nodes = []
    picture = "input"
    if nhwc:
        nodes.append(helper.make_node("Transpose", ["input"], ["nchw"], name="to_nchw", perm=[0, 3, 1, 2]))
        picture = "nchw"
    nodes += [
        helper.make_node("Conv", [picture, "w1", "b1"], ["conv1"], name="first", pads=[1] * 4, kernel_shape=[3, 3]),
        helper.make_node("Relu", ["conv1"], ["relu1"], name="first_relu"),
        helper.make_node(
            "Conv", ["relu1", "w2", "b2"], ["conv2"], name="last", pads=[1] * 4, strides=[2, 2], kernel_shape=[3, 3]
        ),
        helper.make_node("Relu", ["conv2"], ["relu2"], name="last_relu"),
    ]
    features = 2 * width
    if pool == "Flatten":
        nodes.append(helper.make_node("Flatten", ["relu2"], ["flat"], name="flatten"))
        features *= ((int(height) + 1) // 2) * ((int(length) + 1) // 2)
    else:
        if pool == "ReduceMean":
            nodes.append(helper.make_node("ReduceMean", ["relu2", "axes"], ["pooled"], name="pool", keepdims=1))
            weights["axes"] = np.array([2, 3], np.int64)
        else:
            nodes.append(helper.make_node(pool, ["relu2"], ["pooled"], name="pool"))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    weights["w3"] = rng.normal(size=(features, classes)) / np.sqrt(features) * 3
    weights["b3"] = rng.normal(size=classes) * 0.1
    nodes.append(helper.make_node("Gemm", ["flat", "w3", "b3"], ["logits"], name="classifier"))
    output = "logits"
    if ending is not None:
        nodes.append(helper.make_node(ending, ["logits"], ["probabilities"], name="ending"))
        output = "probabilities"
    shape = [batch, height, length, channels] if nhwc else [batch, channels, height, length]
    return _model(nodes, weights, {"input": shape}, {output: [batch, classes]}, opset)


def mlp(*, classes: int = 3, opset: int = 18, seed: int = 1234) -> onnx.ModelProto:
    """A picture flattened into two linear layers: nothing spatial that a map could be computed at."""
    rng = np.random.default_rng(seed)
    weights = {"w1": rng.normal(size=(3 * 8 * 8, 16)), "w2": rng.normal(size=(16, classes))}
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["relu"]),
        helper.make_node("MatMul", ["relu", "w2"], ["logits"]),
    ]
    return _model(nodes, weights, {"input": ["N", 3, 8, 8]}, {"logits": ["N", classes]}, opset)


def tabular(*, classes: int = 3) -> onnx.ModelProto:
    """A classifier of feature vectors: its input is no picture."""
    weights = {"w": np.ones((10, classes))}
    nodes = [helper.make_node("MatMul", ["input", "w"], ["logits"])]
    return _model(nodes, weights, {"input": ["N", 10]}, {"logits": ["N", classes]})


def two_inputs() -> onnx.ModelProto:
    """Two pictures in, one score vector out."""
    model = tiny_cnn()
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, ["N", 3, 32, 32]))
    first = next(node for node in model.graph.node if node.name == "first")
    first.input[0] = "both"
    model.graph.node.insert(0, helper.make_node("Add", ["input", "second"], ["both"], name="both"))
    return model


def without_rule() -> onnx.ModelProto:
    """A tiny CNN whose scores pass through an operator that has no gradient rule."""
    model = tiny_cnn()
    classifier = next(node for node in model.graph.node if node.name == "classifier")
    classifier.output[0] = "plain"
    nodes = [
        helper.make_node("Unsqueeze", ["plain", "axis"], ["deep"], name="deepen"),
        helper.make_node("DFT", ["deep"], ["spectrum"], name="spectrum", axis=1),
        helper.make_node("ReduceSum", ["spectrum", "axis"], ["logits"], name="fold", keepdims=0),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "axis"))
    model.graph.node.extend(nodes)
    return model


def custom_domain() -> onnx.ModelProto:
    """A tiny CNN with an operator of somebody's own domain between target layer and scores."""
    model = tiny_cnn()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    pool = next(node for node in model.graph.node if node.name == "pool")
    pool.input[0] = "warped"
    model.graph.node.insert(4, helper.make_node("Warp", ["relu2"], ["warped"], name="warp", domain="com.example"))
    shape = ["N", 16, 16, 16]
    model.graph.value_info.append(helper.make_tensor_value_info("warped", TensorProto.FLOAT, shape))
    return model


def _model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str]],
    opset: int = 18,
) -> onnx.ModelProto:
    initializers = [
        numpy_helper.from_array(value if value.dtype == np.int64 else value.astype(np.float32), name)
        for name, value in weights.items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model
