"""Liveness analysis: which elements of a value can reach the scores, whatever the weights.

Where only a class token is read, the patches of the last block get no gradient: the residual Add passes them on, and
nothing reads them. From the scores backwards, the rule of every operator says on which elements of its inputs its live
outputs depend. Inputs of an operator without a rule are live.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import FLOATS, Graph, attributes

if TYPE_CHECKING:
    from onnxcam.graph.static_shapes import StaticShapes

# the live elements of a value; True: all of them
Mask = Any
_QUANTIZED = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16, onnx.TensorProto.UINT16}
_Rule = Callable[["Liveness", onnx.NodeProto, int, Mask, tuple[int, ...]], Mask]


class Liveness:
    """The live elements of every value between the picture and the scores."""

    def __init__(self, graph: Graph, scores: str, shapes: StaticShapes) -> None:
        self.shapes = shapes
        self._reached = graph.downstream(i.name for i in graph.inputs)
        self._live: dict[str, Mask] = {scores: True}
        self._offsets: dict[str, list[int | None]] = {}
        nodes, _ = graph.upstream([scores])
        for node in reversed(nodes):
            for index, name in enumerate(node.input):
                if name not in self._reached:
                    continue
                mask = self.through(node, index)
                if mask is not None:
                    self._live[name] = _either(self._live.get(name), mask)

    def live(self, value: str) -> Mask:
        """The live elements of a value: a boolean array of its shape, True for all, None for none."""
        return self._live.get(value)

    def through(self, node: onnx.NodeProto, index: int) -> Mask:
        """The elements of a node's input that reach the scores through this node; True for all, None for none."""
        name = node.input[index]
        if not self._carries(name) or not any(output in self._live for output in node.output):
            return None
        shape = self.shapes.shape(name)
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if node.op_type in ("Shape", "Size") or (shape is not None and 0 in shape):
            return None  # no element can reach the scores
        if rule is None or shape is None or self.shapes.shape(node.output[0]) is None:
            return True
        if node.op_type == "Split":
            out: Mask = self._of_outputs(node)
        elif any(output in self._live for output in node.output[1:]):
            return True
        else:
            out = self._live[node.output[0]]
        mask = rule(self, node, index, out, shape)
        if mask is True or mask.shape != shape or mask.all():
            return True
        return mask if mask.any() else None

    def full(self, value: str, mask: Mask) -> np.ndarray:
        """Broadcast a mask to the value's shape."""
        shape = self.shapes.shape(value)
        assert shape is not None
        return np.broadcast_to(False if mask is None else mask, shape)

    def offset(self, node: onnx.NodeProto, index: int, axis: int) -> int | None:
        """Where an input of a Concat begins in its output; None if the size of one before is unknown."""
        key = node.output[0]
        if key not in self._offsets:
            offsets: list[int | None] = [0]
            for name in node.input:
                shape, last = self.shapes.shape(name), offsets[-1]
                offsets.append(None if shape is None or last is None else last + shape[axis])
            self._offsets[key] = offsets
        return self._offsets[key][index]

    def _carries(self, value: str) -> bool:
        kind = self.shapes.dtype(value)
        return kind == 0 or kind in FLOATS or kind in _QUANTIZED

    def _of_outputs(self, node: onnx.NodeProto) -> Mask:
        axis = int(attributes(node).get("axis", 0))
        return np.concatenate([self.full(name, self._live.get(name)) for name in node.output], axis=axis)


def _either(a: Mask, b: Mask) -> Mask:
    if a is None or b is None:
        return b if a is None else a
    if a is True or b is True:
        return True
    joined = a | b
    return True if joined.all() else joined


def _any(mask: np.ndarray, axes: Any) -> np.ndarray:
    """Make elements live along whole axes where any element along them is."""
    return np.broadcast_to(mask.any(axis=axes, keepdims=True), mask.shape)


def _summed(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo broadcasting: reduce a mask by `any` to a shape."""
    lead = mask.ndim - len(shape)
    reduced = np.asarray(mask.any(axis=tuple(range(lead))))
    axes = tuple(k for k, size in enumerate(shape) if size == 1 and reduced.shape[k] != 1)
    return np.asarray(reduced.any(axis=axes, keepdims=True))


def _elementwise(_: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    return True if out is True or (node.op_type == "BatchNormalization" and index) else _summed(out, shape)


def _reshaped(_: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    return True if out is True else out.reshape(shape)


def _transposed(_: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    perm = attributes(node).get("perm", range(len(shape))[::-1])
    return True if out is True else out.transpose(np.argsort(perm))


def _mixed(_: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    """Softmax and LayerNormalization: along the axis every output depends on every input."""
    if out is True or index:
        return True
    axis = int(attributes(node).get("axis", -1)) % len(shape)
    return _any(out, axis if "Softmax" in node.op_type else tuple(range(axis, len(shape))))


def _reduced(liveness: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    if out is True:
        return True
    if out.ndim != len(shape):
        axes = liveness.shapes.integers(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        axes = list(range(len(shape))) if axes is None else sorted(axis % len(shape) for axis in axes)
        if out.ndim + len(axes) != len(shape):
            return True
        out = np.expand_dims(out, tuple(axes))
    return np.broadcast_to(out, shape)


def _product(liveness: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    """A · B: row i of A is live where row i of the product is, column j of B where column j is."""
    if out is True or len(shape) < 2 or out.ndim < 2:
        return True
    mask = out.any(axis=-1 if index == 0 else -2, keepdims=True)
    whole = np.broadcast_to(mask, (*mask.shape[:-2], *shape[-2:]))
    return _summed(whole, shape)


def _gemm(liveness: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    if out is True or index > 1:
        return True
    mask = out.any(axis=1 - index)  # rows of A, columns of B
    turned = bool(attributes(node).get("transB" if index else "transA", 0))
    along = int((index == 1) != turned)
    return np.broadcast_to(mask[None, :] if along else mask[:, None], shape)


def _einsum(liveness: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    equation = str(attributes(node).get("equation", "")).replace(" ", "")
    if out is True or "->" not in equation or "." in equation:
        return True
    sides, result = equation.split("->")
    letters = sides.split(",")[index]
    if len(set(letters)) < len(letters) or len(set(result)) < len(result):
        return True
    mask = out.any(axis=tuple(k for k, letter in enumerate(result) if letter not in letters))
    shared = [letter for letter in result if letter in letters]
    mask = mask.transpose([shared.index(letter) for letter in letters if letter in shared])
    return np.broadcast_to(
        np.expand_dims(mask, tuple(k for k, letter in enumerate(letters) if letter not in shared)), shape
    )


def _concat(liveness: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    axis = int(attributes(node)["axis"]) % len(shape)
    start = None if out is True else liveness.offset(node, index, axis)
    if start is None:
        return True
    return out[(slice(None),) * axis + (slice(start, start + shape[axis]),)]


def _split(liveness: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    return out if out.shape == shape else True


def _sliced(liveness: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    parameters = [liveness.shapes.integers(name) if name else None for name in node.input[1:]]
    if any(name and values is None for name, values in zip(node.input[1:], parameters, strict=True)):
        return True
    starts, ends = parameters[0] or [], parameters[1] or []
    axes = parameters[2] if len(parameters) > 2 and parameters[2] is not None else list(range(len(starts)))
    steps = parameters[3] if len(parameters) > 3 and parameters[3] is not None else [1] * len(starts)
    parts = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = shape[axis % len(shape)]
        # beyond the first element, going backwards, is None in Python
        stop = None if step < 0 and end < -size else end
        parts[axis % len(shape)] = slice(start, stop, step)
    mask = np.zeros(shape, bool)
    if mask[tuple(parts)].shape != liveness.full(node.output[0], out).shape:
        return True
    mask[tuple(parts)] = liveness.full(node.output[0], out)
    return mask


def _padded(liveness: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    pads = liveness.shapes.integers(node.input[1])
    plain = attributes(node).get("mode", "constant") == "constant" and len(node.input) < 4
    if pads is None or not plain or len(pads) != 2 * len(shape) or min(pads) < 0 or out is True:
        return True
    return out[tuple(slice(pads[k], pads[k] + size) for k, size in enumerate(shape))]


def _gathered(liveness: Liveness, node: onnx.NodeProto, index: int, out: Mask, shape: tuple[int, ...]) -> Mask:
    indices = liveness.shapes.integers(node.input[1])
    if indices is None:
        return True
    axis = int(attributes(node).get("axis", 0)) % len(shape)
    mask_out = liveness.full(node.output[0], out).reshape(*shape[:axis], len(indices), *shape[axis + 1 :])
    mask = np.zeros(shape, bool)
    for place, element in enumerate(indices):
        mask[(slice(None),) * axis + (element,)] |= mask_out[(slice(None),) * axis + (place,)]
    return mask


_RULES: dict[str, _Rule] = {
    **dict.fromkeys((*having(Trait.ELEMENTWISE), "CastLike", "BatchNormalization", "Expand"), _elementwise),
    **dict.fromkeys(having(Trait.REDUCES), _reduced),
    **dict.fromkeys(having(Trait.RESHAPES), _reshaped),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"), _mixed),
    "Transpose": _transposed, "MatMul": _product, "Gemm": _gemm, "Einsum": _einsum, "Concat": _concat,
    "Split": _split, "Slice": _sliced, "Pad": _padded, "Gather": _gathered,
}  # fmt: skip
