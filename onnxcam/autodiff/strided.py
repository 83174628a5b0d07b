"""Input gradients of strided convolutions of pictures that are faster than ConvTranspose.

ONNX Runtime's ConvTranspose scatters the products of a matrix multiplication in one thread, group after group. Four
kinds of strided convolution do without it where sizes are static.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from onnxcam.autodiff.passes.blocked_layout import blocked
from onnxcam.autodiff.registry import Node
from onnxcam.autodiff.window import LAST, Window, crop, flat
from onnxcam.graph.builder import Builder

_FEW = 4  # channels of a picture, and one more
_MANY = 16  # channels that are worth moving together
Flip = Callable[[Builder, Node, Sequence[int], int], str]


def input_gradient(op: Builder, node: Node, dy: str, shape: Sequence[Window], group: int, flipped: Flip) -> str | None:
    """dX of a convolution with a stride, None where ConvTranspose is best.

    Arguments:
        flipped: emits the weights of the stride-1 convolution of the input gradient.
    """
    x, weight = node.inputs[0], op.static(node.inputs[1])
    sizes = [op.dim(x, axis) for axis in (2, 3)]
    steps = [op.dim(node.output, axis) for axis in (2, 3)]
    sides = [side for side in (*sizes, *steps) if side is not None]
    if len(shape) != 2 or weight is None or len(sides) != 4 or any(window.begin is None for window in shape):
        return None
    if all(window.kernel == 1 and not window.begin and not window.end for window in shape):
        return _pointwise(op, node, dy, shape, group, flipped, sides)
    if weight[0] == group and weight[1] == 1 and all(window.stride <= 2 for window in shape):
        return _depthwise(op, node, dy, shape, group, flipped, sides)
    if group == 1 and shape[0].stride == shape[1].stride and all(window.dilation == 1 for window in shape):
        return (_phases if weight[1] <= _FEW else _apart)(op, node, dy, shape, sides)
    return None


def _pointwise(
    op: Builder, node: Node, dy: str, shape: Sequence[Window], group: int, flipped: Flip, sides: Sequence[int]
) -> str:
    """Windows of one element: the convolution of dY, then zeros between; 0.7 × the time."""
    z = _spread(op, node, op.Conv(dy, flipped(op, node, [1, 1], group), group=group), shape)
    z = _cut(op, node, z, [window.stride * steps for window, steps in zip(shape, sides[2:], strict=True)])
    return blocked(op, z, node.inputs[0])


def _depthwise(
    op: Builder, node: Node, dy: str, shape: Sequence[Window], group: int, flipped: Flip, sides: Sequence[int]
) -> str | None:
    """Zeros between the elements of dY, then a depthwise convolution of stride 1; 0.4-0.7 × the time.

    Across channels the products with zeros would cost more than they save.
    """
    pads = []
    for window, size, steps in zip(shape, sides[:2], sides[2:], strict=True):
        begin = window.begin or 0
        pads.append((window.extent - 1 - begin, size - window.stride * steps + begin))
    if min(min(pair) for pair in pads) < 0:
        return None
    w = flipped(op, node, [window.kernel for window in shape], group)
    dilations = [window.dilation for window in shape]
    return op.Conv(_spread(op, node, dy, shape), w, pads=flat(pads), dilations=dilations, group=group)


def _spread(op: Builder, node: Node, dy: str, shape: Sequence[Window]) -> str:
    """Zeros behind every element: each is repeated and its first copy kept, in two passes that cost little."""
    strides = [window.stride for window in shape]
    repeated = op.repeat(dy, strides)
    kind = onnx.helper.tensor_dtype_to_np_dtype(op.dtype)
    rows, columns = (
        (np.arange(stride * (op.dim(node.output, axis) or 0)) % stride == 0).astype(kind)
        for axis, stride in enumerate(strides, start=2)
    )
    # a product of two vectors: it folds at load, and the file stays small
    return op.Mul(repeated, op.Mul(rows.reshape(1, 1, -1, 1), columns.reshape(1, 1, 1, -1)))


def _phases(op: Builder, node: Node, dy: str, shape: Sequence[Window], sides: Sequence[int]) -> str | None:
    """A network's first convolution: the s² interleaved parts of the picture from one convolution.

    In MobileNetV2 and EfficientNet-B0 0.2 to 0.4 ms less, of 15 and 26 for the whole gradient; alone, between tensors
    in ONNX's layout, 0.7 to 1.3 × the time of ConvTranspose.

    dX[s·i + a] = sum over m of W[a + begin - s·m] · dY[i + m]: each a has a kernel of its own, of every s-th tap.
    """
    w = node.constant(1)
    if w is None:
        return None
    stride = shape[0].stride
    reach, pads = [], []
    for window, size, steps in zip(shape, sides[:2], sides[2:], strict=True):
        low, high = -_part(window, 0).before, _part(window, stride - 1).after
        reach.append((window.begin or 0, low, high))
        pads.append((-low, -(-size // stride) - steps + high))
    if min(min(pair) for pair in pads) < 0:
        return None
    outputs, channels = w.shape[:2]
    taps = [high - low + 1 for _, low, high in reach]
    kernels = np.zeros((stride, stride, channels, outputs, *taps), w.dtype)
    for a, b, i, j in np.ndindex(stride, stride, *taps):
        row, column = (
            phase + begin - stride * (low + at)
            for phase, at, (begin, low, _) in zip((a, b), (i, j), reach, strict=True)
        )
        if 0 <= row < w.shape[2] and 0 <= column < w.shape[3]:
            kernels[a, b, :, :, i, j] = w[:, :, row, column].T
    z = op.Conv(dy, kernels.reshape(-1, outputs, *taps), pads=flat(pads))
    return _interleaved(op, node, z, stride, sides)


def _apart(op: Builder, node: Node, dy: str, shape: Sequence[Window], sides: Sequence[int]) -> str | None:
    """The same for many channels: a convolution for each part, of the taps it has.

    Alone 0.7-0.9 × the time of ConvTranspose on two cores; of ResNet-50's whole gradient 0 to 0.3 ms in 94 to 103. One
    convolution for all of them would multiply by zeros, 16 taps for the 9 of a 3 x 3 kernel. Where the parts have one
    tap each, or differ in size and have to be cut, ConvTranspose is as fast.
    """
    stride = shape[0].stride
    whole = all(size == stride * steps for size, steps in zip(sides[:2], sides[2:], strict=True))
    if not whole or (op.dim(node.inputs[0], 1) or 0) < _MANY or min(window.kernel for window in shape) <= stride:
        return None
    rows, columns = ([_part(window, phase) for phase in range(stride)] for window in shape)
    if min(min(part) for part in (*rows, *columns)) < 0:
        return None
    w = op.Transpose(node.inputs[1], perm=[1, 0, 2, 3])
    parts = []
    for pair in itertools.product(rows, columns):
        starts, stops = [part.first for part in pair], [part.last - 1 if part.last else -LAST for part in pair]
        kernel = op.Slice(w, starts, stops, [2, 3], [-stride, -stride])
        parts.append(op.Conv(dy, kernel, pads=flat([(part.before, part.after) for part in pair])))
    return blocked(op, _interleaved(op, node, op.Concat(*parts, axis=1), stride, sides), node.inputs[0])


class _Part(NamedTuple):
    """Every s-th element of dX along an axis: the taps it has, from `first` down to `last`, and the pads of dY."""

    first: int
    last: int
    before: int
    after: int


def _part(window: Window, phase: int) -> _Part:
    """The elements s·i + phase, of which there are as many as of dY: see `_phases`."""
    begin = (window.begin or 0) + phase
    low, high = -((window.kernel - 1 - begin) // window.stride), begin // window.stride
    return _Part(begin - window.stride * low, begin - window.stride * high, -low, high)


def _interleaved(op: Builder, node: Node, z: str, stride: int, sides: Sequence[int]) -> str:
    """The parts of dX `[N, s·s·C, h, w]`, rows before columns before channels, assembled to the size of x.

    It is what DepthToSpace does, whose kernel on a CPU takes 2 to 3 ns for an element: by transposes that move one axis
    at a time, of single elements or, where there are many, of the channels of a pixel, it takes 0.6 to 1.5.
    """
    channels = op.dim(node.inputs[0], 1) or 0
    height, width = (-(-size // stride) for size in sides[:2])
    if channels < _MANY:
        z = op.Reshape(z, [0, stride, stride, channels * height * width])
        z = op.Reshape(op.Transpose(z, perm=[0, 1, 3, 2]), [0, stride, channels * height, stride * width])
        z = op.Reshape(op.Transpose(z, perm=[0, 2, 1, 3]), [0, channels, stride * height, stride * width])
    else:
        z = op.Reshape(op.Transpose(z, perm=[0, 2, 3, 1]), [0, 0, width, stride, stride * channels])
        z = op.Reshape(op.Transpose(z, perm=[0, 1, 3, 2, 4]), [0, stride * height, stride * width, channels])
        z = op.Transpose(z, perm=[0, 3, 1, 2])
    return _cut(op, node, z, [stride * height, stride * width])


def _cut(op: Builder, node: Node, z: str, sizes: Sequence[int]) -> str:
    """The first elements of z, of height and width `sizes`: as many as x has."""
    x = node.inputs[0]
    return z if [op.dim(x, 2), op.dim(x, 3)] == list(sizes) else crop(op, z, [0, 0], x, (2, 3))
