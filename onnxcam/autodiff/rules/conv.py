"""VJP rules: convolution, its transpose, and columns assembled to a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcam.autodiff import strided
from onnxcam.autodiff.passes.blocked_layout import blocked
from onnxcam.autodiff.passes.shared_weights import negated
from onnxcam.autodiff.registry import Cotangents, Node, vjp
from onnxcam.autodiff.window import LAST, Window, crop, flat, halves, same_begin, trim, windows
from onnxcam.graph.builder import Builder


@vjp("Conv")
def conv(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = W transposed * dY (transposed convolution), dW = X correlated with dY, dB = sum of dY."""
    x, shape = node.inputs[0], _windows(op, node)
    group = node.attr("group", 1)
    return [
        _input_gradient(op, node, dy, shape, group) if node.wants(0) else None,
        _weight_gradient(op, node, *_padded(op, node, x, shape), dy, shape, group) if node.wants(1) else None,
        _bias_gradient(op, node, dy) if node.wants(2) else None,
    ]


@vjp("ConvTranspose")
def conv_transpose(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = Conv(dY, W), dW = dY correlated with X, dB = sum of dY."""
    x, w = node.inputs[:2]
    shape = _transpose_windows(op, node)
    group = node.attr("group", 1)
    pads = [(window.begin or 0, window.end or 0) for window in shape]
    return [
        _correlate(op, dy, w, shape, group) if node.wants(0) else None,
        _weight_gradient(op, node, dy, node.output, pads, x, shape, group) if node.wants(1) else None,
        _bias_gradient(op, node, dy) if node.wants(2) else None,
    ]


@vjp("Col2Im")
def col2im(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the blocks of dY as columns: a convolution with one kernel per place in the block."""
    block = node.constant(2)
    if block is None:
        raise node.refuse("its block_shape is computed at run time")
    count, rank = int(block.prod()), len(block)
    places = op.cast(op.constant(np.eye(count, dtype=np.float32).reshape(count, 1, *block)))
    pictures = op.Reshape(dy, [-1, 1] + [0] * rank)
    attrs = {name: node.attr(name) for name in ("dilations", "pads", "strides")}
    return [op.reshape_like(op.Conv(pictures, places, **attrs), node.inputs[0])]


def _kernel(op: Builder, node: Node) -> list[int]:
    shape = op.static(node.inputs[1])
    kernel = node.attr("kernel_shape") or (shape and shape[2:])
    if not kernel:
        raise node.refuse("its weight has no static shape and it has no kernel_shape attribute")
    return list(kernel)


def _windows(op: Builder, node: Node) -> list[Window]:
    return windows(op, node, node.inputs[0], _kernel(op, node))


def _transpose_windows(op: Builder, node: Node) -> list[Window]:
    """The windows of the convolution this node transposes; output padding is less than a stride and changes none."""
    x, kernel = node.inputs[0], _kernel(op, node)
    rank, mode = len(kernel), node.attr("auto_pad", "NOTSET")
    added = node.attr("output_padding") or [0] * rank
    sizes = node.attr("output_shape")
    result = []
    for axis, window in enumerate(windows(op, node, node.inputs[0], kernel)):
        begin, end, opad = window.begin, window.end, added[axis]
        total: int | None = None
        if sizes:
            size = op.dim(x, axis + 2)
            if size is None:
                raise node.refuse(
                    "its output_shape fixes the padding only where the input's height and width are static"
                )
            total = max(0, (size - 1) * window.stride + opad + window.extent - sizes[axis - rank])
        elif mode.startswith("SAME"):
            total = max(0, window.extent + opad - window.stride)
        if total is not None:
            begin, end = halves(total, mode)
        result.append(Window(window.kernel, window.stride, window.dilation, begin, end))
    return result


def _input_gradient(op: Builder, node: Node, dy: str, shape: Sequence[Window], group: int) -> str:
    """Stride 1: Conv with flipped, transposed weights, 1.7-7 × faster than ConvTranspose, which larger strides need."""
    if all(window.stride == 1 for window in shape):
        w = _flipped(op, node, [window.kernel for window in shape], group)
        # at stride 1 even SAME padding does not depend on the size
        pads = [(v.extent - 1 - (v.begin or 0), v.extent - 1 - (v.end or 0)) for v in shape]
        dilations = [window.dilation for window in shape]
        return op.Conv(trim(op, dy, pads), w, pads=flat(pads), dilations=dilations, group=group)
    faster = strided.input_gradient(op, node, dy, shape, group, _flipped)
    return faster or blocked(op, _scatter(op, node, dy, shape, group), node.inputs[0])


def _flipped(op: Builder, node: Node, kernel: Sequence[int], group: int) -> str:
    """[O, C/g, k] to [C, O/g, k] with every k reversed; constant weights make these nodes fold at load."""
    w = node.inputs[1]
    rank = len(kernel)
    if group == 1:
        turned = op.Transpose(w, perm=[1, 0, *range(2, rank + 2)])
    else:
        weight_shape = op.static(w)
        if weight_shape is None:
            raise node.refuse("its grouped weight has no static shape")
        outputs, inputs = weight_shape[0] // group, weight_shape[1]
        turned = w
        if outputs > 1 and inputs > 1:
            split = op.Reshape(w, [group, outputs, inputs, *kernel])
            turned = op.Transpose(split, perm=[0, 2, 1, *range(3, rank + 3)])
        if outputs > 1 or inputs > 1:
            turned = op.Reshape(turned, [group * inputs, outputs, *kernel])
    axes = [axis + 2 for axis, k in enumerate(kernel) if k > 1]
    if not axes:
        return turned
    return op.Slice(turned, [-1] * len(axes), [-LAST] * len(axes), axes, [-1] * len(axes))


def _scatter(op: Builder, node: Node, dy: str, shape: Sequence[Window], group: int) -> str:
    """ConvTranspose with symmetric pads (others fall off CUDA), cropped to the size of x.

    Untouched, the transposed convolution has (out - 1)·stride + extent elements, and x is those from `begin` on. Up to
    stride - 1 elements of x may lie beyond them; how many is known only with the size of x.
    """
    x = node.inputs[0]
    pads: list[int] = []
    added: list[int] = []
    starts: list[int | str] = []
    exact = True
    for axis, window in enumerate(shape, start=2):
        size, steps = op.dim(x, axis), op.dim(node.output, axis)
        if window.begin is None or window.end is None:
            pads.append(0)
            added.append(window.stride - 1)
            starts.append(same_begin(op, node, x, axis, window)[0])
            exact = False
            continue
        pad = min(window.begin, window.end)
        beyond = window.stride - 1
        if size is not None and steps is not None:
            beyond = window.begin + size - (steps - 1) * window.stride - window.extent + window.end
        opad = max(0, pad - window.end + beyond)
        pads.append(pad)
        added.append(opad)
        starts.append(window.begin - pad)
        exact = exact and size is not None and window.begin == pad and pad - window.end + beyond >= 0
    weights, sign = negated(op, node.inputs[1], (0, 1), group)
    z = op.ConvTranspose(
        dy if sign > 0 else op.Neg(dy),
        weights,
        strides=[window.stride for window in shape],
        dilations=[window.dilation for window in shape],
        pads=pads * 2,
        output_padding=added if any(added) else None,
        group=group,
    )
    return z if exact else crop(op, z, starts, x, range(2, len(shape) + 2))


def _correlate(op: Builder, dy: str, w: str, shape: Sequence[Window], group: int) -> str:
    """Conv(dY, W): exactly as many windows fit into dY as x has elements."""
    weights, sign = negated(op, w, (0, 1), group)
    dx = op.Conv(
        dy,
        weights,
        strides=[window.stride for window in shape],
        dilations=[window.dilation for window in shape],
        pads=flat([(window.begin or 0, window.end or 0) for window in shape]),
        group=group,
    )
    return dx if sign > 0 else op.Neg(dx)


def _padded(op: Builder, node: Node, x: str, shape: Sequence[Window]) -> tuple[str, str, list[tuple[int, int]]]:
    """x, a value of its shape, and the pads still to be added; SAME's where a dimension is free are added here."""
    if all(window.begin is not None for window in shape):
        return x, x, [(window.begin or 0, window.end or 0) for window in shape]
    pairs = [
        same_begin(op, node, x, axis, window) if window.begin is None else (window.begin, window.end or 0)
        for axis, window in enumerate(shape, start=2)
    ]
    pads = op.vector(*(begin for begin, _ in pairs), *(end for _, end in pairs))
    padded = op.Pad(x, pads, None, list(range(2, len(shape) + 2)))
    return padded, padded, [(0, 0)] * len(shape)


def _weight_gradient(
    op: Builder,
    node: Node,
    large: str,
    like: str,
    pads: list[tuple[int, int]],
    small: str,
    shape: Sequence[Window],
    group: int,
) -> str:
    """dW[o, c, t] = sum over n, i of small[n, o, i] · large[n, c, i·stride + t·dilation - begin].

    A Conv whose batch is the large side's channels within a group, whose input channels are group × batch, and whose
    strides and dilations are exchanged. `like` has the shape of `large`.
    """
    rank = len(shape)
    spatial = range(2, rank + 2)
    if group == 1:
        turned = op.Transpose(large, perm=[1, 0, *spatial])
    else:
        channels = op.dim(node.inputs[1], 1)
        if channels is None:
            raise node.refuse("its grouped weight has no static shape")
        sizes = [op.size(like, axis) for axis in spatial]
        split = op.Reshape(large, op.vector(op.size(like, 0), group, channels, *sizes))
        turned = op.Transpose(split, perm=[2, 1, 0, *range(3, rank + 3)])
        turned = op.Reshape(turned, op.vector(channels, -1, *sizes))
    kernel = op.Transpose(small, perm=[1, 0, *spatial])
    dw = op.Conv(
        turned,
        kernel,
        strides=[window.dilation for window in shape],
        dilations=[window.stride for window in shape],
        pads=flat(pads),
        group=group,
    )
    dw = op.Slice(dw, [0] * rank, [window.kernel for window in shape], list(spatial))
    return op.Transpose(dw, perm=[1, 0, *spatial])


def _bias_gradient(op: Builder, node: Node, dy: str) -> str:
    rank = node.rank(node.output)
    return op.ReduceSum(dy, [0, *range(2, rank)], keepdims=0)
