"""ONNX Runtime's blocked layout (com.microsoft.nchwc) written in the standard's: what it saves at level "all".

A blocked value has the channels of the plain one, filled up with zeros to whole blocks. Each operator becomes its plain
form on these channels; the weights of convolutions are brought back from blocks to `[O, I, h, w]`.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from onnxcam.graph.form import Form, activation

DOMAIN = "com.microsoft.nchwc"
_WINDOW = ("auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides")


def write(form: Form) -> None:
    """Write one node of the blocked layout."""
    name = form.node.op_type
    if name not in FORMS:
        raise form.refuse("of the blocked layout is not known")
    FORMS[name](form)


def block_size(form: Form) -> int:
    """Channels per block: 8 where some number of channels tells, else as ONNX Runtime has it on this processor."""
    for node in form.w.model.graph.node:
        if node.domain == DOMAIN and node.op_type == "Conv":
            tensor = form.w.constants.get(node.input[1])
            if tensor is not None and tensor.dims[0] % 16 == 8:
                return 8
    features: dict[str, bool] = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    return 16 if features.get("AVX512F") or features.get("ASIMD") else 8


def plain_weights(blocks: np.ndarray, size: int, *, inputs: bool) -> np.ndarray:
    """Weights `[O, I, h, w]` from ONNX Runtime's blocks of outputs, `inputs` also of inputs; the shape stays."""
    count, channels, height, width = blocks.shape
    if inputs:  # [O / b, I / b, h, w, b of I, b of O]
        parts = blocks.reshape(count // size, channels // size, height, width, size, size)
        return np.ascontiguousarray(parts.transpose(0, 5, 1, 4, 2, 3).reshape(blocks.shape))
    parts = blocks.reshape(count // size, channels, height, width, size)
    return np.ascontiguousarray(parts.transpose(0, 4, 1, 2, 3).reshape(blocks.shape))


def _convolution(form: Form) -> None:
    w, size = form.w, block_size(form)
    blocks = w.array(form.input(1))
    if blocks is None or blocks.ndim != 4:
        raise form.refuse("of the blocked layout has computed weights")
    group = int(form.attrs.get("group", 1))
    depthwise = group > 1 and blocks.shape[1] == 1
    # few input channels are not blocked
    inputs = not depthwise and blocks.shape[1] >= size
    weights = w.constant(plain_weights(blocks, size, inputs=inputs))
    x, channels = form.input(0), form.shape(form.input(0))[1]
    expected = blocks.shape[1] * (1 if depthwise else group)
    if not depthwise and group == 1 and isinstance(channels, int) and channels < expected:
        x = _filled(form, x, expected - channels)
    if depthwise:
        group = blocks.shape[0]
    options = {key: value for key, value in form.attrs.items() if key in _WINDOW}
    bias, added, active = form.input(2), form.input(3), form.attrs.get("activation", "")
    operands = [x, weights, *([bias] if bias else [])]
    value = w.add("Conv", operands, None if added or active else form.output, group=group, **options)
    if added:
        value = w.add("Add", [value, added], None if active else form.output)
    if active:
        activation(form, value, form.output)


def _pool(form: Form) -> None:
    options = {key: value for key, value in form.attrs.items() if key in _WINDOW}
    form.w.add(form.node.op_type, [form.input(0)], form.output, **options)


def _reorder_input(form: Form) -> None:
    x = form.input(0)
    shape = form.shape(x)
    if form.attrs.get("channels_last", 0):
        x = form.w.add("Transpose", [x], perm=[0, 3, 1, 2])
        shape = (shape[0], shape[3], shape[1], shape[2])
    channels, size = shape[1], block_size(form)
    if not isinstance(channels, int):
        raise form.refuse("of the blocked layout has an open number of channels")
    if channels % size:
        _filled(form, x, size - channels % size, form.output)
    else:
        form.w.add("Identity", [x], form.output)


def _filled(form: Form, x: str, count: int, output: str | None = None) -> str:
    """`count` channels of zeros behind those of a value."""
    return form.w.add("Pad", [x, form.w.integers(0, 0, 0, 0, 0, count, 0, 0)], output)


def _reorder_output(form: Form) -> None:
    w, x, channels = form.w, form.input(0), int(form.attrs["channels"])
    last = bool(form.attrs.get("channels_last", 0))
    if form.shape(x)[1] != channels:
        bounds = [w.integers(0), w.integers(channels), w.integers(1)]
        x = w.add("Slice", [x, *bounds], None if last else form.output)
    elif not last:
        w.add("Identity", [x], form.output)
    if last:
        w.add("Transpose", [x], form.output, perm=[0, 2, 3, 1])


def _upsample(form: Form) -> None:
    scales = form.w.constant(np.asarray(form.attrs["scales"], np.float32))
    options: dict[str, Any] = {"mode": form.attrs.get("mode", "nearest")}
    options["coordinate_transformation_mode"] = form.attrs.get("coordinate_transformation_mode", "asymmetric")
    if options["mode"] == "nearest":
        options["nearest_mode"] = "floor"
    form.w.add("Resize", [form.input(0), "", scales], form.output, **options)


FORMS = {
    "AveragePool": _pool,
    "Conv": _convolution,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    "MaxPool": _pool,
    "ReorderInput": _reorder_input,
    "ReorderOutput": _reorder_output,
    "Upsample": _upsample,
}
