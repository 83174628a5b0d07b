"""The pooling of onnx's evaluator with all windows at once: it visits them one by one, 100,000 a second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pool(
    padded: np.ndarray,
    x_shape: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    out_shape: Sequence[int],
    pooling_type: str,
    pads_required: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    count_include_pad: int = 0,
    p: int = 1,
) -> np.ndarray:
    """Do what `onnx.reference.ops.op_pool_common.pool` does; padding is NaN where it does not count."""
    rank = len(x_shape) - 2
    strides, dilations = strides or [1] * rank, [1] * rank if dilations is None else dilations
    required, pads = ([0] * 2 * rank if one is None else one for one in (pads_required, pads))
    windows, inside = padded, np.ones([1] * 2 * rank, bool)
    counts = []
    for axis in range(rank):
        size, extent = x_shape[axis + 2], 1 + (kernel[axis] - 1) * dilations[axis]
        counts.append(int((size + required[axis] + required[axis + rank] - extent) / strides[axis] + 1))
        at = strides[axis] * np.arange(counts[-1])[:, None] + dilations[axis] * np.arange(kernel[axis])
        windows = np.take(windows, at.clip(max=windows.shape[2 + 2 * axis] - 1), axis=2 + 2 * axis)
        shape = [1] * 2 * rank
        shape[2 * axis : 2 * axis + 2] = at.shape
        inside = inside & (at < size + pads[axis] + pads[axis + rank]).reshape(shape)
    order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
    windows = windows.transpose(0, 1, *(2 + axis for axis in order)).reshape(*padded.shape[:2], *counts, -1)
    inside = np.broadcast_to(inside.transpose(order).reshape(*counts, -1), windows.shape)
    if not count_include_pad or pooling_type == "MAX":
        inside = inside & ~np.isnan(windows)
    if pooling_type == "MAX":
        result = np.where(inside, windows, -np.inf).max(axis=-1)
    elif pooling_type == "AVG":
        result = np.where(inside, windows, 0).sum(axis=-1) / inside.sum(axis=-1)
    else:
        result = (np.where(inside, np.abs(windows), 0) ** p).sum(axis=-1) ** (1.0 / p)
    y = np.zeros([*x_shape[:2], *out_shape], padded.dtype)
    y[tuple(slice(count) for count in (*x_shape[:2], *counts))] = result
    return y
