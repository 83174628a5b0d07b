"""What operators that only move elements do to an array in place of their data.

An analysis has an array for each value, of its rank, with an axis of length 1 wherever it says the same of every
element along it. Such an array stays small where the value itself is large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import attributes

Dims = tuple[int, ...]


def aligned(array: np.ndarray, rank: int) -> np.ndarray:
    """The array with axes of length 1 in front, as broadcasting adds them."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def reshaped(array: np.ndarray, before: Dims, after: Dims) -> np.ndarray | None:
    """The array after a Reshape of its value; None if the sizes contradict each other."""
    if math.prod(before) != math.prod(after) or 0 in before:
        return None
    wide: list[int] = []
    target: list[int] = []
    for old, new in _groups(before, after):
        varies = any(size > 1 for size in array.shape[old])
        wide += before[old] if varies else [1] * (old.stop - old.start)
        target += after[new] if varies else [1] * (new.stop - new.start)
    return np.broadcast_to(array, wide).reshape(target)


def _groups(before: Dims, after: Dims) -> Iterator[tuple[slice, slice]]:
    """The smallest runs of axes on both sides that have as many elements."""
    i = j = 0
    while i < len(before) or j < len(after):
        start, other = i, j
        a = before[i] if i < len(before) else 1
        b = after[j] if j < len(after) else 1
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while a != b:
            if a < b:
                a *= before[i]
                i += 1
            else:
                b *= after[j]
                j += 1
        yield slice(start, i), slice(other, j)


def steps(node: onnx.NodeProto, shapes: StaticShapes) -> dict[int, tuple[int, int]] | None:
    """Per axis where a Slice begins and its step; None if that is computed at run time."""
    whole = shapes.shape(node.input[0])
    parameters = [shapes.integers(name) if name else None for name in node.input[1:]]
    lacking = any(name and value is None for name, value in zip(node.input[1:], parameters, strict=True))
    if whole is None or lacking or parameters[0] is None:
        return None
    starts, rank = parameters[0], len(whole)
    axes = parameters[2] if len(parameters) > 2 and parameters[2] is not None else list(range(len(starts)))
    strides = parameters[3] if len(parameters) > 3 and parameters[3] is not None else [1] * len(starts)
    begins = {}
    for start, axis, step in zip(starts, axes, strides, strict=True):
        size = whole[axis % rank]
        start = start + size if start < 0 else start
        begins[axis % rank] = (min(max(start, 0), size - (step < 0)), step)
    return begins


def offset(node: onnx.NodeProto, output: str, shapes: StaticShapes) -> tuple[int, int] | None:
    """The axis of a Split, and where one of its outputs begins on it."""
    whole = shapes.shape(node.input[0])
    parts = [shapes.shape(name) for name in node.output]
    if whole is None or any(part is None for part in parts):
        return None
    axis = int(attributes(node).get("axis", 0)) % len(whole)
    before = parts[: list(node.output).index(output)]
    return axis, sum(part[axis] for part in before if part is not None)


def moved(node: onnx.NodeProto, output: str, array: np.ndarray, shapes: StaticShapes) -> np.ndarray | None:
    """The array of an output of a node that moves its data's elements; None where it cannot be told."""
    before, after = shapes.shape(node.input[0]), shapes.shape(output)
    if before is None or after is None:
        return None
    array, attrs = aligned(array, len(before)), attributes(node)
    match node.op_type:
        case "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten":
            return reshaped(array, before, after)
        case "Transpose":
            return array.transpose(attrs.get("perm", range(len(before))[::-1]))
        case "Expand":
            return aligned(array, len(after))
        case "Slice":
            begins = steps(node, shapes)
            for axis, (start, step) in (begins or {}).items():
                array = _picked(array, axis, start + step * np.arange(after[axis]))
            return array if begins is not None else None
        case "Split":
            part = offset(node, output, shapes)
            return None if part is None else _picked(array, part[0], part[1] + np.arange(after[part[0]]))
        case "Gather":
            return _gathered(node, array, before, shapes)
        case "Tile":
            times = [size // old for size, old in zip(after, before, strict=True)]
            return np.tile(array, [n if size > 1 else 1 for n, size in zip(times, array.shape, strict=True)])
        case "DepthToSpace" | "SpaceToDepth":
            return _blocks(node.op_type, attrs, array, before, after)
        case _:
            return None


def _picked(array: np.ndarray, axis: int, indices: np.ndarray) -> np.ndarray:
    return array if array.shape[axis] == 1 else array.take(indices, axis=axis)


def _gathered(node: onnx.NodeProto, array: np.ndarray, before: Dims, shapes: StaticShapes) -> np.ndarray | None:
    axis = int(attributes(node).get("axis", 0)) % len(before)
    indices, dims = shapes.integers(node.input[1]), shapes.shape(node.input[1])
    if dims is None:
        return None
    if array.shape[axis] == 1:
        return array.reshape((*array.shape[:axis], *(1 for _ in dims), *array.shape[axis + 1 :]))
    if indices is None:
        return None
    return array.take(np.asarray(indices, np.int64).reshape(dims), axis=axis)


def _blocks(kind: str, attrs: dict[str, object], array: np.ndarray, before: Dims, after: Dims) -> np.ndarray | None:
    """See the ONNX specification of DepthToSpace and SpaceToDepth."""
    side = int(str(attrs["blocksize"]))
    n, c, h, w = before
    inner: Dims
    if kind == "SpaceToDepth":
        inner, perm = (n, c, h // side, side, w // side, side), (0, 3, 5, 1, 2, 4)
    elif attrs.get("mode", "DCR") == "DCR":
        inner, perm = (n, side, side, c // side**2, h, w), (0, 3, 4, 1, 5, 2)
    else:
        inner, perm = (n, c // side**2, side, side, h, w), (0, 1, 4, 2, 5, 3)
    wide = reshaped(array, before, inner)
    return None if wide is None else reshaped(wide.transpose(perm), tuple(inner[axis] for axis in perm), after)


def joined(arrays: Sequence[np.ndarray], sizes: Sequence[int], axis: int) -> np.ndarray:
    """Arrays of one rank along an axis, after a Concat of their values of these sizes along it."""
    dims = np.broadcast_shapes(*((*array.shape[:axis], 1, *array.shape[axis + 1 :]) for array in arrays))
    parts = [
        np.broadcast_to(array, (*dims[:axis], size, *dims[axis + 1 :]))
        for array, size in zip(arrays, sizes, strict=True)
    ]
    return np.concatenate(parts, axis=axis)
