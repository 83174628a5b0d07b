"""VJP rules: pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcam.autodiff.pool_by_taps import by_taps
from onnxcam.autodiff.registry import Cotangents, Node, vjp
from onnxcam.autodiff.separable import contract, identity
from onnxcam.autodiff.window import Window, flat, windows
from onnxcam.graph.builder import Builder


@vjp("MaxPool")
def max_pool(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY added at the first maximum of each window.

    The forward node stays as it is and a second one computes the indices: with Indices, MaxPool takes 10 × as long
    (2.2 instead of 0.2 ms on 1x64x112x112, 3x3, stride 2), and a prediction must not pay for that.
    """
    x = node.inputs[0]
    if op.portable and (dx := by_taps(op, node, dy, _windows(op, node))) is not None:
        return [dx]
    indices = op.call(
        "MaxPool", [x], outputs=2, **{k: v for k, v in _attributes(node).items() if k != "storage_order"}
    )[1]
    apart = all(window.stride >= window.extent for window in _windows(op, node))
    return [_scatter(op, x, indices, dy, None if apart else "add")]


@vjp("MaxUnpool")
def max_unpool(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the dY that lie at the indices."""
    if node.input(2):
        raise node.refuse("its output_shape moves the elements that its indices mean; export it without")
    return [op.Gather(op.Reshape(dy, [-1]), node.inputs[1], axis=0)]


@vjp("GlobalMaxPool")
def global_max_pool(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY at the first maximum of each channel."""
    x = node.inputs[0]
    rows = op.Reshape(x, [0, 0, -1])
    first = op.ArgMax(rows, axis=2, keepdims=1)
    if op.portable:
        places = op.Range(0, op.Squeeze(op.size(rows, 2), [0]), 1)
        return [op.reshape_like(op.mask(op.Reshape(dy, [0, 0, -1]), op.Equal(first, places)), x)]
    zeros = op.filled(0.0, op.Shape(rows))
    placed = op.ScatterElements(zeros, first, op.Reshape(dy, [0, 0, -1]), axis=2)
    return [op.reshape_like(placed, x)]


@vjp("AveragePool")
def average_pool(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = sum of dY / divisor over the windows that see X; the divisor is whatever the forward node divides by.

    One window over all of X: Expand. Windows side by side: nearest Resize (0.2 × the time of ConvTranspose). Stride 1:
    AveragePool itself (0.3 ×). Anything else: one matrix per axis (0.5-1 ×).
    """
    x = node.inputs[0]
    shape = _windows(op, node)
    sizes = [op.dim(x, axis) for axis in range(2, len(shape) + 2)]
    unpadded = all((window.begin, window.end) == (0, 0) for window in shape)
    dense = all(window.dilation == 1 for window in shape)
    if unpadded and dense and [window.kernel for window in shape] == sizes:
        return [_spread(op, dy, x, range(2, len(shape) + 2))]
    if unpadded and dense and all(_beside(node, *pair) for pair in zip(shape, sizes, strict=True)):
        return [_upsample(op, dy, x, shape, sizes)]
    if dense and all(window.stride == 1 for window in shape):
        return [_slide(op, node, dy, shape)]
    return [_gather(op, node, dy)]


@vjp("GlobalAveragePool")
def global_average_pool(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY / number of pixels, at every pixel."""
    x = node.inputs[0]
    return [_spread(op, dy, x, range(2, node.rank(x)))]


@vjp("LpPool")
def lp_pool(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = sign(X)·|X|^(p-1) · sum of dY·Y^(1-p) over the windows that see X."""
    p = node.attr("p", 2)
    scaled = _lp_outer(op, node.output, dy, p)
    return [op.Mul(_lp_inner(op, node.inputs[0], p), _gather(op, node, scaled, p=1))]


@vjp("GlobalLpPool")
def global_lp_pool(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = sign(X)·|X|^(p-1) · dY·Y^(1-p)."""
    p = node.attr("p", 2)
    return [op.Mul(_lp_inner(op, node.inputs[0], p), _lp_outer(op, node.output, dy, p))]


def _attributes(node: Node) -> dict[str, Any]:
    return {attribute.name: node.attr(attribute.name) for attribute in node.proto.attribute}


def _windows(op: Builder, node: Node) -> list[Window]:
    return windows(op, node, node.inputs[0], node.attr("kernel_shape"))


def _scatter(op: Builder, x: str, indices: str, dy: str, reduction: str | None) -> str:
    """dY at flat `indices` of zeros in the shape of x."""
    dims = op.static(x)
    size = op.ReduceProd(op.shape(x), keepdims=1) if dims is None else op.operand([int(np.prod(dims))])
    at, values = op.Reshape(indices, [-1]), op.Reshape(dy, [-1])
    return op.reshape_like(op.ScatterElements(op.filled(0.0, size), at, values, axis=0, reduction=reduction), x)


def _spread(op: Builder, dy: str, x: str, axes: Sequence[int]) -> str:
    return op.spread(op.divide(dy, x, axes), x, axes)


def _beside(node: Node, window: Window, size: int | None) -> bool:
    """Whether windows touch without overlapping, and none reaches beyond the end as ceil_mode would let it."""
    whole = not node.attr("ceil_mode", 0) or (size is not None and size % window.kernel == 0)
    return window.stride == window.kernel and whole


def _upsample(op: Builder, dy: str, x: str, shape: Sequence[Window], sizes: Sequence[int | None]) -> str:
    """Every window's share repeated over it, and zeros on what is left beyond the last one."""
    kernel = [window.kernel for window in shape]
    z = op.repeat(op.Mul(dy, 1.0 / float(np.prod(kernel))), kernel)
    if all(size is not None and size % k == 0 for size, k in zip(sizes, kernel, strict=True)):
        return z
    axes = list(range(2, len(shape) + 2))
    rest = op.Mod(op.vector(*(op.size(x, axis) for axis in axes)), kernel)
    return op.Pad(z, op.Concat([0] * len(axes), rest, axis=0), None, axes)


def _slide(op: Builder, node: Node, dy: str, shape: Sequence[Window]) -> str:
    """At stride 1 the adjoint of a mean is a mean, of cotangents scaled up where fewer than k elements were counted."""
    kernel = [window.kernel for window in shape]
    pads = [(window.begin or 0, window.end or 0) for window in shape]
    if any(max(pair) > 0 for pair in pads) and not node.attr("count_include_pad", 0):
        spatial = op.vector(1, 1, *(op.size(node.inputs[0], axis) for axis in range(2, len(shape) + 2)))
        ones = op.filled(1.0, spatial)
        dy = op.Div(dy, op.AveragePool(ones, kernel_shape=kernel, pads=flat(pads), count_include_pad=1))
    turned = [(k - 1 - begin, k - 1 - end) for k, (begin, end) in zip(kernel, pads, strict=True)]
    return op.AveragePool(dy, kernel_shape=kernel, pads=flat(turned), count_include_pad=1)


def _gather(op: Builder, node: Node, dy: str, **changed: Any) -> str:
    """The adjoint of a pool that is linear along each axis; the pool of an identity matrix holds its weights."""
    attrs = {**_attributes(node), **changed}
    rank = len(attrs["kernel_shape"])
    for axis in range(rank):
        along = dict(attrs)
        for name in ("kernel_shape", "strides", "dilations"):
            if name in attrs:
                along[name] = [attrs[name][axis]]
        if "pads" in attrs:
            along["pads"] = [attrs["pads"][axis], attrs["pads"][rank + axis]]
        eye = op.Unsqueeze(identity(op, node.inputs[0], axis + 2), [0])
        weights = op.Squeeze(op.call(node.op_type, [eye], **along)[0], [0])
        dy = contract(op, node, dy, weights, axis + 2)
    return dy


def _lp_inner(op: Builder, x: str, p: int) -> str:
    """sign(x)·|x|^(p-1)."""
    if p == 2:
        return x
    sign = op.Sign(x)
    return sign if p == 1 else op.Mul(sign, op.Pow(op.Abs(x), float(p - 1)))


def _lp_outer(op: Builder, y: str, dy: str, p: int) -> str:
    """dy·y^(1-p); where y is 0 any finite value does, for all its inputs are 0."""
    if p == 1:
        return dy
    norm = op.Add(y, op.cast(op.Equal(y, 0.0)))
    return op.Div(dy, norm if p == 2 else op.Pow(norm, float(p - 1)))
