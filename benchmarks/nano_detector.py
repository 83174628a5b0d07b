"""A detector of the size and form of a YOLO of the smallest kind, with random weights, written node by node.

Strided convolutions and blocks that send half of their channels through residual pairs, pooling pyramid, a feature
pyramid of three levels (strides 8, 16, 32) with a way up and a way down, and at each level a branch for the box
(distances to its edges as expectations over 16 bins) and one for the 80 classes. One output `[N, 84, 8400]` of pictures
of 640 x 640: centre, width and height in pixels, and a probability per class. About 3 million weights, 4.4 GMAC.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.view import Graph

SIDE, CLASSES, BINS = 640, 80, 16
STRIDES = (8, 16, 32)
WIDTHS, DEPTHS = (16, 32, 64, 128, 256), (1, 2, 2, 1)


def build(side: int = SIDE, seed: int = 0) -> onnx.ModelProto:
    """The file: opset 18, an open number of pictures."""
    model = onnx.ModelProto()
    model.ir_version = 9
    model.opset_import.add(domain="", version=18)
    model.graph.name = "nano"
    model.graph.input.append(edit.info("images", onnx.TensorProto.FLOAT, ["N", 3, side, side]))
    net = _Net(Builder(Graph(model), prefix="nano"), np.random.default_rng(seed))
    op = net.op
    x, width, levels = net.convolve("images", 3, WIDTHS[0], 3, 2), WIDTHS[0], []
    for following, depth in zip(WIDTHS[1:], DEPTHS, strict=True):
        x = net.block(net.convolve(x, width, following, 3, 2), following, following, depth, residual=True)
        width = following
        levels.append(x)
    fine, middle, coarse = levels[1], levels[2], net.pool(levels[3], width)
    middle_up = net.block(op.Concat(op.repeat(coarse, [2, 2]), middle, axis=1), 384, 128, 1)
    fine_up = net.block(op.Concat(op.repeat(middle_up, [2, 2]), fine, axis=1), 192, 64, 1)
    middle_down = net.block(op.Concat(net.convolve(fine_up, 64, 64, 3, 2), middle_up, axis=1), 192, 128, 1)
    coarse_down = net.block(op.Concat(net.convolve(middle_down, 128, 128, 3, 2), coarse, axis=1), 384, 256, 1)
    parts = []
    for level, channels in ((fine_up, 64), (middle_down, 128), (coarse_down, 256)):
        box = net.last(net.convolve(net.convolve(level, channels, 64), 64, 64), 64, 4 * BINS, 0.0)
        classes = net.last(net.convolve(net.convolve(level, channels, 80), 80, 80), 80, CLASSES, -3.0)
        parts.append(op.Reshape(op.Concat(box, classes, axis=1), [0, 4 * BINS + CLASSES, -1]))
    joined = op.Concat(*parts, axis=2)
    distances, logits = op.call("Split", [joined, [4 * BINS, CLASSES]], outputs=2, axis=1)
    count = sum((side // stride) ** 2 for stride in STRIDES)
    bins = op.Softmax(op.Transpose(op.Reshape(distances, [0, 4, BINS, count]), perm=[0, 2, 1, 3]), axis=1)
    reach = op.Reshape(op.Conv(bins, np.arange(BINS, dtype=np.float32).reshape(1, BINS, 1, 1)), [0, 4, count])
    before, after = op.call("Split", [reach, [2, 2]], outputs=2, axis=1)
    centres, strides = _cells(side)
    low, high = op.Sub(centres, before), op.Add(centres, after)
    box = op.Concat(op.Div(op.Add(low, high), 2.0), op.Sub(high, low), axis=1)
    op.Concat(op.Mul(box, strides), op.Sigmoid(logits), axis=1, name="output0")
    edit.add(model, op)
    model.graph.output.append(edit.info("output0", onnx.TensorProto.FLOAT, ["N", 4 + CLASSES, count]))
    return model


def _cells(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres of all cells in units of their level, `[1, 2, M]`, and the levels' strides, `[1, M]`."""
    centres, strides = [], []
    for stride in STRIDES:
        rows, columns = np.divmod(np.arange((side // stride) ** 2), side // stride)
        centres.append(np.stack([columns, rows]) + 0.5)
        strides.append(np.full(len(rows), stride))
    return np.concatenate(centres, axis=1)[None].astype(np.float32), np.concatenate(strides)[None].astype(np.float32)


class _Net:
    def __init__(self, op: Builder, rng: np.random.Generator) -> None:
        self.op = op
        self._rng = rng

    def _weight(self, shape: Sequence[int], gain: float) -> np.ndarray:
        scale = gain / np.sqrt(np.prod(shape[1:]))
        return (self._rng.standard_normal(shape) * scale).astype(np.float32)

    def convolve(self, x: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> str:
        """Convolution and SiLU."""
        op, half = self.op, kernel // 2
        y = op.Conv(
            x, self._weight((outputs, inputs, kernel, kernel), 1.5), self._weight((outputs, 100), 1.0)[:, 0].copy(),
            kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[half] * 4,
        )  # fmt: skip
        return str(op.Mul(y, op.Sigmoid(y)))

    def last(self, x: str, inputs: int, outputs: int, bias: float) -> str:
        """A convolution of single cells."""
        weight = self._weight((outputs, inputs, 1, 1), 1.0)
        return str(self.op.Conv(x, weight, np.full(outputs, bias, np.float32), kernel_shape=[1, 1]))

    def block(self, x: str, inputs: int, outputs: int, depth: int, *, residual: bool = False) -> str:
        """Half of the channels through pairs of convolutions, joined with all that they pass."""
        op, half = self.op, outputs // 2
        parts = op.call("Split", [self.convolve(x, inputs, outputs, 1), [half, half]], outputs=2, axis=1)
        for _ in range(depth):
            y = self.convolve(self.convolve(parts[-1], half, half), half, half)
            parts.append(op.Add(parts[-1], y) if residual else y)
        return self.convolve(op.Concat(*parts, axis=1), half * len(parts), outputs, 1)

    def pool(self, x: str, width: int) -> str:
        """Maxima over ever larger neighbourhoods, joined."""
        op, parts = self.op, [self.convolve(x, width, width // 2, 1)]
        for _ in range(3):
            parts.append(op.MaxPool(parts[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4))
        return self.convolve(op.Concat(*parts, axis=1), 2 * width, width, 1)
