"""Small classifiers, their int8 files as onnxruntime.quantization writes them, and faults planted in those."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, CLASSES = 24, 5


def pictures(count: int = 8, seed: int = 3) -> list[np.ndarray]:
    """Prepared tensors `[1, 3, 24, 24]` of smooth noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, 6, 6)).astype(np.float32)
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3) + 0.2 * rng.normal(size=(count, 3, SIZE, SIZE))
    return [one[None].astype(np.float32) for one in fine]


@functools.cache
def network(seed: int = 1, fused: bool = False, pooled: bool = False) -> onnx.ModelProto:
    """A classifier of six layers with weights: convolutions (one depthwise), a residual sum, batch normalisation.

    Arguments:
        seed: of the weights.
        fused: with the normalisation folded into the convolutions and other names, as converters write it.
        pooled: with a maximum over 3 x 3 pixels, channels last, behind the second layer.
    """
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    prefix = "f" if fused else ""

    def conv(
        x: str, name: str, out: int, channels: int, side: int, group: int = 1, norm: bool = True, **attrs: Any
    ) -> str:
        fan = channels // group * side * side
        weight = rng.normal(size=(out, channels // group, side, side)) * np.sqrt(2 / fan)
        bias = rng.normal(size=out) * 0.1
        gamma, beta, mean = rng.uniform(0.7, 1.3, out), rng.normal(size=out) * 0.1, rng.normal(size=out) * 0.1
        variance = rng.uniform(0.7, 1.3, out)
        y = f"{prefix}{name}"
        if norm and fused:
            factor = gamma / np.sqrt(variance + 1e-5)
            weight, bias, norm = weight * factor[:, None, None, None], (bias - mean) * factor + beta, False
        constants[f"{y}.weight"], constants[f"{y}.bias"] = weight, bias
        pads = [side // 2] * 4
        nodes.append(helper.make_node("Conv", [x, f"{y}.weight", f"{y}.bias"], [y], y, group=group, pads=pads, **attrs))
        if norm:
            for part, array in (("gamma", gamma), ("beta", beta), ("mean", mean), ("variance", variance)):
                constants[f"{y}.{part}"] = array
            names = [y, *(f"{y}.{part}" for part in ("gamma", "beta", "mean", "variance"))]
            nodes.append(helper.make_node("BatchNormalization", names, [f"{y}.normal"], f"{y}.norm"))
            y = f"{y}.normal"
        return y

    def relu(x: str, name: str) -> str:
        nodes.append(helper.make_node("Relu", [x], [prefix + name], prefix + name))
        return prefix + name

    x = relu(conv("picture", "stem", 8, 3, 3, strides=[2, 2]), "stem.relu")
    y = relu(conv(x, "wide", 16, 8, 1), "wide.relu")
    if pooled:
        for node in (
            helper.make_node("MaxPool", [y], ["largest"], "largest", kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("Transpose", ["largest"], ["turned"], "turned", perm=[0, 2, 3, 1]),
            helper.make_node("Transpose", ["turned"], ["returned"], "returned", perm=[0, 3, 1, 2]),
        ):
            nodes.append(node)
        y = "returned"
    y = relu(conv(y, "depthwise", 16, 16, 3, group=16), "depthwise.relu")
    y = conv(y, "narrow", 8, 16, 1)
    nodes.append(helper.make_node("Add", [x, y], [f"{prefix}sum"], f"{prefix}sum"))
    y = relu(conv(f"{prefix}sum", "last", 24, 8, 3, norm=False), "last.relu")
    nodes.append(helper.make_node("GlobalAveragePool", [y], [f"{prefix}pool"], f"{prefix}pool"))
    nodes.append(helper.make_node("Flatten", [f"{prefix}pool"], [f"{prefix}flat"], f"{prefix}flat"))
    constants["dense.weight"] = rng.normal(size=(CLASSES, 24)) * 0.4
    constants["dense.bias"] = rng.normal(size=CLASSES) * 0.1
    nodes.append(
        helper.make_node("Gemm", [f"{prefix}flat", "dense.weight", "dense.bias"], ["logits"], "dense", transB=1)
    )
    shape = ["N", 3, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@functools.cache
def quantized(form: str = "qdq", pooled: bool = False) -> onnx.ModelProto:
    """The fused classifier in int8, as onnxruntime.quantization writes it.

    Arguments:
        form: `qdq`, `per channel`, `qoperator`, `dynamic`, or `signed` (int8 activations, symmetric).
        pooled: as of `network`.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(pictures(16, seed=5))

        def get_next(self) -> dict[str, np.ndarray] | None:
            tensor = next(self.left, None)
            return None if tensor is None else {"picture": tensor}

    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(network(fused=True, pooled=pooled), source)
        if form == "dynamic":
            quantize_dynamic(source, result)
            return onnx.load(result)
        signed = form == "signed"
        quantize_static(
            source,
            result,
            Reader(),
            quant_format=QuantFormat.QOperator if form == "qoperator" else QuantFormat.QDQ,
            per_channel=form == "per channel",
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": signed},
        )
        return onnx.load(result)


def changed(model: onnx.ModelProto, name: str, change: Any) -> onnx.ModelProto:
    """A copy of a model in which one constant is another: `change` of its array."""
    result = copy.deepcopy(model)
    (tensor,) = (tensor for tensor in result.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array), array.dtype).reshape(array.shape), name))
    return result


def channels_last() -> onnx.ModelProto:
    """The fused classifier as tf2onnx writes Keras models: NHWC, transposed around convolutions, biases as sums."""
    model = copy.deepcopy(network(fused=True))
    graph = model.graph
    nodes = [helper.make_node("Transpose", ["pixels"], ["picture"], "to_first", perm=[0, 3, 1, 2])]
    rename: dict[str, str] = {}
    for node in graph.node:
        inputs = [rename.get(name, name) for name in node.input]
        result = onnx.NodeProto()
        result.CopyFrom(node)
        result.input[:] = inputs
        if node.op_type == "Relu":  # on channels last, as is the bias before it
            last, ended = f"{node.name}/last", f"{node.name}/ended"
            source = next(one for one in nodes if one.output[0] == inputs[0])
            bias = source.input.pop() if source.op_type == "Conv" and len(source.input) == 3 else None
            nodes.append(helper.make_node("Transpose", inputs, [last], last, perm=[0, 2, 3, 1]))
            if bias is not None:
                nodes.append(helper.make_node("Add", [last, bias], [f"{last}/bias"], f"{last}/BiasAdd"))
            result.input[:] = [f"{last}/bias" if bias is not None else last]
            result.output[:] = [ended]
            nodes += [result, helper.make_node("Transpose", [ended], [f"{ended}/first"], perm=[0, 3, 1, 2])]
            rename[node.output[0]] = f"{ended}/first"
        elif node.op_type == "GlobalAveragePool":
            nodes.append(helper.make_node("ReduceMean", [inputs[0], "axes"], list(node.output), node.name, keepdims=1))
        else:
            nodes.append(result)
    graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", SIZE, SIZE, 3]))
    return model
