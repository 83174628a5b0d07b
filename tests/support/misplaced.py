"""Small random networks whose target layer `layer` lies on the picture otherwise than its shape suggests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = 48  # side of the picture
GRID = 12  # side of the layer, of CHANNELS channels
CHANNELS = 24


class Net:
    """A model under construction: nodes by name, constants by value."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.asarray(values, np.int64))

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, channels: int, to: int, stride: int = 1) -> str:
        w = self.rng.normal(size=(to, channels, 3, 3)) * np.sqrt(2 / (9 * channels))
        y = self.add("Conv", x, self.const(w.astype(np.float32)), pads=[1] * 4, strides=[stride] * 2)
        return self.add("Relu", y)

    def features(self, x: str) -> str:
        """`[N, CHANNELS, h / 4, w / 4]`."""
        return self.conv(self.conv(self.conv(x, 3, 12, 2), 12, CHANNELS, 2), CHANNELS, CHANNELS)

    def backwards(self, x: str, axis: int) -> str:
        return self.add("Slice", x, self.ints(-1), self.ints(-(2**31)), self.ints(axis), self.ints(-1))

    def part(self, x: str, axis: int, start: int, end: int) -> str:
        return self.add("Slice", x, self.ints(start), self.ints(end), self.ints(axis))

    def model(self, layer: str, channel_axis: int = 1) -> onnx.ModelProto:
        """`layer`, the mean over its positions, and five scores."""
        layer = self.add("Identity", layer, output="layer")
        axes = [axis for axis in (1, 2, 3) if axis != channel_axis]
        mean = self.add("ReduceMean", layer, self.ints(*axes), keepdims=0)
        w = self.rng.normal(size=(CHANNELS, 5)).astype(np.float32)
        self.add("MatMul", mean, self.const(w), output="scores")
        graph = helper.make_graph(
            self.nodes,
            "misplaced",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 5])],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@dataclass(frozen=True)
class Case:
    """A network and the right verdict.

    Attributes:
        make: from a seed.
        verdict: on its layer.
        layout: that the layer is declared to have.
        right: the layout that it has.
    """

    make: Callable[[int], onnx.ModelProto]
    verdict: str
    layout: str = "NCHW"
    right: str = "NCHW"


def direct(seed: int) -> onnx.ModelProto:
    net = Net(seed)
    return net.model(net.features("x"))


def mirrored(seed: int) -> onnx.ModelProto:
    """Before the convolutions or behind them, left and right or top and bottom."""
    net = Net(seed)
    axis = 2 + seed % 2
    inside = net.features(net.backwards("x", axis)) if seed % 3 else net.backwards(net.features("x"), axis)
    return net.model(inside)


def transposed(seed: int) -> onnx.ModelProto:
    net = Net(seed)
    return net.model(net.features(net.add("Transpose", "x", perm=[0, 1, 3, 2])))


def rotated(seed: int) -> onnx.ModelProto:
    """By 90, 180 or 270 degrees."""
    net = Net(seed)
    if seed % 3 == 0:
        return net.model(net.backwards(net.backwards(net.features("x"), 2), 3))
    turned = net.add("Transpose", net.features("x"), perm=[0, 1, 3, 2])
    return net.model(net.backwards(turned, 1 + seed % 3))


def rolled(seed: int) -> onnx.ModelProto:
    net = Net(seed)
    value = net.features("x")
    for axis, by in ((2, 4 + seed % 5), (3, seed % 7)):
        value = net.add("Concat", net.part(value, axis, by, GRID), net.part(value, axis, 0, by), axis=axis)
    return net.model(value)


def five_crops(seed: int) -> onnx.ModelProto:
    """The layer is that of one of the four crops at the corners."""
    net = Net(seed)
    side = SIZE * 5 // 8
    top, left = ((0, 0), (0, SIZE - side), (SIZE - side, 0), (SIZE - side, SIZE - side))[seed % 4]
    crop = net.part(net.part("x", 2, top, top + side), 3, left, left + side)
    return net.model(net.features(crop))


def windowed(seed: int) -> onnx.ModelProto:
    """Cells in the order of windows of 3, 4 or 6 cells a side."""
    net = Net(seed)
    side = (3, 4, 6)[seed % 3]
    n = GRID // side
    split = net.add("Reshape", net.features("x"), net.ints(0, CHANNELS * n, side, n, side))
    split = net.add("Reshape", split, net.ints(-1, CHANNELS, n, side, n, side))
    sorted_ = net.add("Transpose", split, perm=[0, 1, 2, 4, 3, 5])
    return net.model(net.add("Reshape", sorted_, net.ints(-1, CHANNELS, GRID, GRID)))


def channels_last(seed: int) -> onnx.ModelProto:
    net = Net(seed)
    return net.model(net.add("Transpose", net.features("x"), perm=[0, 2, 3, 1]), channel_axis=3)


CASES = {
    "mirrored": Case(mirrored, "mirrored"),
    "transposed": Case(transposed, "transposed"),
    "rotated": Case(rotated, "rotated"),
    "rolled": Case(rolled, "shifted"),
    "five crops": Case(five_crops, "shifted"),
    "windowed": Case(windowed, "none"),
    "channels last": Case(channels_last, "none", "NCHW", "NHWC"),
    "channels first": Case(direct, "none", "NHWC", "NCHW"),
}
