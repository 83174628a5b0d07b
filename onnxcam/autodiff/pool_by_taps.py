"""The input gradient of a maximum pool by convolutions alone.

MaxPool's Indices and the scattering of gradients to them are what other runtimes lack or compute wrongly: tract refuses
them with a free batch, WebGPU has no Indices, IREE's are wrong. Here one kernel for each place of the window takes a
window apart, the first place that holds the maximum is marked, and the transposed convolution puts dY there. It takes
as many times the memory of Y as a window has places.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from onnxcam.autodiff.registry import Node
from onnxcam.autodiff.window import Window, crop, flat
from onnxcam.graph.builder import Builder

_LOWEST = -3e38  # of a place outside the picture; the smallest float32 is -3.4e38


def by_taps(op: Builder, node: Node, dy: str, shape: Sequence[Window]) -> str | None:
    """dX of a maximum pool, None where its padding is computed at run time or its type has no convolution."""
    x = node.inputs[0]
    axes = range(2, len(shape) + 2)
    pads = [_pads(op, node, window, axis) for window, axis in zip(shape, axes, strict=True)]
    if op.dtype != onnx.TensorProto.FLOAT or any(pair is None for pair in pads):
        return None
    bounds = [pair for pair in pads if pair is not None]
    kernel = [window.kernel for window in shape]
    count = int(np.prod(kernel))
    kind = helper.tensor_dtype_to_np_dtype(op.dtype)
    places = op.constant(np.eye(count, dtype=kind).reshape(count, 1, *kernel))
    window = {
        "strides": [window.stride for window in shape],
        "dilations": [window.dilation for window in shape],
    }
    sizes = op.vector(*(op.size(x, axis) for axis in axes))
    pictures = op.Reshape(x, op.vector(-1, 1, sizes))
    taps = op.Conv(pictures, places, pads=flat(bounds), **window)
    if any(max(pair) > 0 for pair in bounds):
        # 1 where a tap lies on the picture, 0 on the padding
        inside = op.Conv(op.filled(1.0, op.vector(1, 1, sizes)), places, pads=flat(bounds), **window)
        taps = op.Add(taps, op.Mul(op.Sub(1.0, inside), _LOWEST))
    first = op.ArgMax(taps, axis=1, keepdims=1)
    numbers = np.arange(count, dtype=np.int64).reshape(1, count, *[1] * len(shape))
    steps = op.vector(*(op.size(node.output, axis) for axis in axes))
    marked = op.mask(op.Reshape(dy, op.vector(-1, 1, steps)), op.Equal(first, numbers))
    # one stride beyond the last window, so that the picture is covered whatever its size
    beyond = [window.stride - 1 for window in shape]
    z = op.ConvTranspose(marked, places, output_padding=beyond if any(beyond) else None, **window)
    cut = crop(op, z, [begin for begin, _ in bounds], pictures, axes)
    return op.reshape_like(cut, x)


def _pads(op: Builder, node: Node, window: Window, axis: int) -> tuple[int, int] | None:
    """Padding before and behind, the latter with what rounding up adds; None where that depends on the size."""
    if window.begin is None or window.end is None:
        return None
    if not node.attr("ceil_mode", 0):
        return window.begin, window.end
    size, steps = op.dim(node.inputs[0], axis), op.dim(node.output, axis)
    if size is None or steps is None:
        return None
    return window.begin, max(window.end, (steps - 1) * window.stride + window.extent - window.begin - size)
