"""Classifiers of any number of nodes: chains, fans, diamonds, branches and nested bodies, each of one pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Nodes = list[onnx.NodeProto]
_SIDE, _CHANNELS, _CLASSES = 8, 4, 5


class _Network:
    """The nodes of a network, from a first convolution with output `v` on."""

    def __init__(self, channels: int = _CHANNELS) -> None:
        rng = np.random.default_rng(1234)
        self.constants: dict[str, np.ndarray] = {
            "first": rng.normal(size=(channels, 3, 3, 3)).astype(np.float32) * 0.2,
            "kernel": rng.normal(size=(_CHANNELS, _CHANNELS, 1, 1)).astype(np.float32) * 0.3,
            "one": np.ones(1, np.float32),
        }
        self.nodes: Nodes = []
        self.add("Conv", ["x", "first"], "v", pads=[1] * 4)

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, *values: int) -> str:
        self.constants[name] = np.array(values, np.int64)
        return name

    def model(self, value: str, channels: int = _CHANNELS, opset: int = 18) -> onnx.ModelProto:
        """The network that ends with pooling and a linear layer."""
        return self.ended(self.add("Flatten", [self.add("GlobalAveragePool", [value])]), channels, opset)

    def ended(self, features: str, channels: int = _CHANNELS, opset: int = 18) -> onnx.ModelProto:
        self.constants["head"] = np.random.default_rng(5).normal(size=(channels, _CLASSES)).astype(np.float32)
        self.add("MatMul", [features, "head"], "logits")
        return self.with_outputs("logits", opset)

    def with_outputs(self, output: str, opset: int = 18) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "large",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, _SIDE, _SIDE])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", _CLASSES])],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def chain(count: int) -> onnx.ModelProto:
    """Elementwise operators, one after the other."""
    net, value = _Network(), "v"
    for index in range(count):
        kind = ("Relu", "Sigmoid", "Mul", "Tanh", "Add")[index % 5]
        value = net.add(kind, [value, "one"] if kind in ("Mul", "Add") else [value])
    return net.model(value)


def constant_steps(count: int) -> onnx.ModelProto:
    """Additions and multiplications by constants, one after the other, and a residual block."""
    net, value = _Network(), "v"
    net.constants["half"] = np.full(1, 0.5, np.float32)
    for index in range(count):
        value = net.add(("Add", "Mul")[index % 2], [value, ("one", "half")[index % 2]])
    return net.model(net.add("Add", [value, net.add("Relu", [net.add("Conv", [value, "kernel"])])]))


def diamonds(count: int) -> onnx.ModelProto:
    """x + tanh x, one after the other."""
    net, value = _Network(), "v"
    for _ in range(count // 2):
        value = net.add("Add", [value, net.add("Tanh", [value])])
    return net.model(value)


def gates(count: int) -> onnx.ModelProto:
    """x sigmoid x, one after the other."""
    net, value = _Network(), "v"
    for _ in range(count // 2):
        value = net.add("Mul", [value, net.add("Sigmoid", [value])])
    return net.model(value)


def convolutions(count: int) -> onnx.ModelProto:
    """Convolution and ReLU, one after the other."""
    net, value = _Network(), "v"
    for _ in range(count // 2):
        value = net.add("Relu", [net.add("Conv", [value, "kernel"])])
    return net.model(value)


def residual_blocks(count: int) -> onnx.ModelProto:
    """x + block(x), one after the other."""
    net, value = _Network(), "v"
    for _ in range(count // 3):
        value = net.add("Add", [value, net.add("Relu", [net.add("Conv", [value, "kernel"])])])
    return net.model(value)


def skips_from_one(count: int) -> onnx.ModelProto:
    """Every block is added to the same first value."""
    net, value = _Network(), "v"
    for _ in range(count // 3):
        value = net.add("Add", ["v", net.add("Relu", [net.add("Conv", [value, "kernel"])])])
    return net.model(value)


def nested_skips(count: int) -> onnx.ModelProto:
    """A U-Net: the last block is added to the first value, the last but one to the second."""
    net, value = _Network(), "v"
    passed = []
    for _ in range(count // 6):
        value = net.add("Relu", [net.add("Conv", [value, "kernel"])])
        passed.append(value)
    for skip in reversed(passed):
        value = net.add("Relu", [net.add("Conv", [net.add("Add", [value, skip]), "kernel"])])
    return net.model(value)


def sum_of_many(count: int) -> onnx.ModelProto:
    """Many functions of one value, in one Sum."""
    net = _Network()
    return net.model(net.add("Sum", [net.add("Tanh", ["v"]) for _ in range(count)]))


def sums_of_many(count: int) -> onnx.ModelProto:
    """Many functions of one value, added one by one."""
    net = _Network()
    values = [net.add("Tanh", ["v"]) for _ in range(count // 2)]
    total = values[0]
    for value in values[1:]:
        total = net.add("Add", [total, value])
    return net.model(total)


def concat_of_many(count: int) -> onnx.ModelProto:
    """Many functions of one value, in one Concat."""
    net = _Network()
    joined = net.add("Concat", [net.add("Tanh", ["v"]) for _ in range(count)], axis=1)
    return net.model(joined, _CHANNELS * count)


def split_into_many(count: int) -> onnx.ModelProto:
    """A value split into its channels."""
    net = _Network(count)
    names = [f"part{index}" for index in range(count)]
    net.nodes.append(helper.make_node("Split", ["v"], names, axis=1, num_outputs=count))
    return net.model(net.add("Sum", [net.add("Tanh", [name]) for name in names]), 1)


def branches(count: int) -> onnx.ModelProto:
    """Branches of ten convolutions side by side."""
    net, ends = _Network(), []
    for _ in range(max(2, count // 20)):
        value = "v"
        for _ in range(10):
            value = net.add("Relu", [net.add("Conv", [value, "kernel"])])
        ends.append(value)
    return net.model(net.add("Sum", ends))


def many_short_branches(count: int) -> onnx.ModelProto:
    """Branches of one convolution side by side."""
    net = _Network()
    ends = [net.add("Relu", [net.add("Conv", ["v", "kernel"])]) for _ in range(count // 2)]
    return net.model(net.add("Sum", ends))


def ladder(count: int) -> onnx.ModelProto:
    """Every layer also reaches the scores by a pooling of its own."""
    net, value, ends = _Network(), "v", []
    for _ in range(count // 3):
        value = net.add("Relu", [net.add("Conv", [value, "kernel"])])
        ends.append(net.add("GlobalAveragePool", [value]))
    return net.ended(net.add("Flatten", [net.add("Sum", ends)]))


def squeezes(count: int) -> onnx.ModelProto:
    """Squeeze-and-excitation, one after the other."""
    net, value = _Network(), "v"
    for _ in range(count // 4):
        factor = net.add("Sigmoid", [net.add("Conv", [net.add("GlobalAveragePool", [value]), "kernel"])])
        value = net.add("Mul", [value, factor])
    return net.model(value)


def transpositions(count: int) -> onnx.ModelProto:
    """An activation between two Transposes, one after the other."""
    net, value = _Network(), "v"
    for _ in range(count // 3):
        turned = net.add("Relu", [net.add("Transpose", [value], perm=[0, 2, 3, 1])])
        value = net.add("Transpose", [turned], perm=[0, 3, 1, 2])
    return net.model(value)


def pads(count: int) -> onnx.ModelProto:
    """A Pad, diamonds, and a Slice that takes the padding away."""
    net, value = _Network(), "v"
    net.constant("pads", 0, 0, 1, 1, 0, 0, 1, 1)
    start, end, axes = net.constant("start", 1, 1), net.constant("end", 9, 9), net.constant("axes", 2, 3)
    for _ in range(count // 20):
        value = net.add("Pad", [value, "pads"])
        for _ in range(9):
            value = net.add("Add", [value, net.add("Tanh", [value])])
        value = net.add("Slice", [value, start, end, axes])
    return net.model(value)


def shapes(count: int) -> onnx.ModelProto:
    """Shapes computed in the graph, one after the other."""
    net, value = _Network(), "v"
    first, rest = net.constant("zero", 0), net.constant("rest", _CHANNELS, _SIDE, _SIDE)
    for _ in range(count // 5):
        rows = net.add("Gather", [net.add("Shape", [value]), first])
        value = net.add("Relu", [net.add("Reshape", [value, net.add("Concat", [rows, rest], axis=0)])])
    return net.model(value)


def constants(count: int) -> onnx.ModelProto:
    """A factor that is computed from constants in many steps, half of them copies."""
    net, factor = _Network(), "one"
    for index in range(count):
        factor = net.add("Identity", [factor]) if index % 2 else net.add("Mul", [factor, "one"])
    return net.model(net.add("Mul", ["v", factor]))


def scores_in_steps(count: int) -> onnx.ModelProto:
    """Elementwise operators behind the linear layer."""
    net = _Network()
    net.constants["head"] = np.random.default_rng(5).normal(size=(_CHANNELS, _CLASSES)).astype(np.float32)
    value = net.add("MatMul", [net.add("Flatten", [net.add("GlobalAveragePool", ["v"])]), "head"])
    for index in range(count):
        value = net.add(("Identity", "Tanh")[index % 2], [value])
    return net.with_outputs(value)


def _tokens(net: _Network) -> str:
    net.constants["mix"] = np.random.default_rng(6).normal(size=(_CHANNELS, _CHANNELS)).astype(np.float32) * 0.3
    shape = net.constant("tokens", 0, _CHANNELS, _SIDE * _SIDE)
    return net.add("Transpose", [net.add("Reshape", ["v", shape])], perm=[0, 2, 1])


def token_blocks(count: int) -> onnx.ModelProto:
    """Residual blocks of tokens."""
    net = _Network()
    value = _tokens(net)
    for _ in range(count // 3):
        value = net.add("Add", [value, net.add("Tanh", [net.add("MatMul", [value, "mix"])])])
    return net.ended(net.add("ReduceMean", [value, net.constant("axis", 1)], keepdims=0))


def sum_of_tokens(count: int) -> onnx.ModelProto:
    """Many functions of the same tokens, in one Sum."""
    net = _Network()
    value = _tokens(net)
    total = net.add("Sum", [net.add("Tanh", [net.add("MatMul", [value, "mix"])]) for _ in range(count // 2)])
    return net.ended(net.add("ReduceMean", [net.add("Add", [value, total]), net.constant("axis", 1)], keepdims=0))


def nested_branches(count: int) -> onnx.ModelProto:
    """Ifs of a constant condition, twelve deep."""
    net, value = _Network(), "v"
    net.constants["yes"] = np.array(True)
    for index in range(max(1, count // 25)):
        inner = [helper.make_node("Relu", [value], ["y"])]
        for depth in range(12):
            info = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
            then = helper.make_graph(inner, "then", [], info)
            other = helper.make_graph([helper.make_node("Tanh", [value], ["y"])], "else", [], info)
            name = "y" if depth < 11 else f"branch{index}"
            inner = [helper.make_node("If", ["yes"], [name], then_branch=then, else_branch=other)]
        net.nodes += inner
        value = f"branch{index}"
    return net.model(value)


def functions(count: int) -> onnx.ModelProto:
    """Calls of a local function, one after the other."""
    net, value = _Network(), "v"
    body = [helper.make_node("Relu", ["a"], ["c"]), helper.make_node("Tanh", ["c"], ["b"])]
    for index in range(count // 2):
        net.nodes.append(helper.make_node("F", [value], [f"call{index}"], domain="local"))
        value = f"call{index}"
    model = net.model(value)
    model.functions.append(helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    return model


def composites(count: int) -> onnx.ModelProto:
    """Convolution and Gelu, which is decomposed, one after the other."""
    net, value = _Network(), "v"
    for _ in range(count // 8):
        value = net.add("Gelu", [net.add("Conv", [value, "kernel"])])
    return net.model(value, opset=20)


PATTERNS: dict[str, Callable[[int], onnx.ModelProto]] = {
    pattern.__name__: pattern
    for pattern in (
        chain, constant_steps, diamonds, gates, convolutions, residual_blocks, skips_from_one, nested_skips,
        sum_of_many, sums_of_many, concat_of_many, split_into_many, branches, many_short_branches, ladder,
        squeezes, transpositions, pads, shapes, constants, scores_in_steps, token_blocks,
        sum_of_tokens, nested_branches, functions, composites,
    )
}  # fmt: skip
