"""VJP rules: resizing and padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcam.autodiff.registry import Cotangents, Node, vjp
from onnxcam.autodiff.separable import contract, identity
from onnxcam.autodiff.window import LAST
from onnxcam.graph.builder import Builder


@vjp("Resize")
def resize(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = Mᵀ·dY along each axis, where M is what resizing does to an identity matrix."""
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise node.refuse("it crops a region of interest (tf_crop_and_resize); crop and resize with separate nodes")
    if node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refuse("its scales follow from keep_aspect_ratio_policy; export it with explicit scales or sizes")
    x = node.inputs[0]
    rank = node.rank(x)
    axes = [axis % rank for axis in node.attr("axes") or range(rank)]
    moved = [(place, axis) for place, axis in enumerate(axes) if not _is_unchanged(op, node, place, axis)]
    factors = _repeats(op, node, moved)
    if factors is not None:
        kernel = [factors.get(axis, 1) for axis in range(2, rank)]
        mean = op.AveragePool(dy, kernel_shape=kernel, strides=kernel)
        return [op.Mul(mean, float(np.prod(kernel)))]
    for place, axis in sorted(moved, key=lambda pair: pair[1]):
        dy = contract(op, node, dy, _resized_identity(op, node, place, axis), axis)
    return [dy]


@vjp("Pad")
def pad(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY without the padding, whose part goes where reflect, edge and wrap copied it from, or to dV, summed."""
    x = node.inputs[0]
    rank = node.rank(x)
    listed = node.constant(3)
    if node.input(3) and listed is None:
        raise node.refuse("its axes are computed at run time")
    axes = [int(axis) % rank for axis in listed] if listed is not None else list(range(rank))
    if node.attr("mode", "constant") == "constant":
        dx = _unpadded(op, node, dy, axes)
        if not node.wants(2):
            return [dx]
        rest = op.Sub(op.ReduceSum(dy, keepdims=0), op.ReduceSum(dx, keepdims=0))
        return [dx, None, op.Reshape(rest, op.shape(node.inputs[2]))]
    pads = node.constant(1)
    for place, axis in sorted(enumerate(axes), key=lambda pair: pair[1]):
        ends = _pads(op, node, place, len(axes))
        if pads is None or any(pads[place :: len(axes)]):
            eye = identity(op, x, axis)
            dy = contract(op, node, dy, op.Pad(eye, op.vector(0, ends[0], 0, ends[1]), mode=node.attr("mode")), axis)
    return [dy]


def _is_unchanged(op: Builder, node: Node, place: int, axis: int) -> bool:
    """Whether resizing leaves an axis as it is."""
    scales = node.constant(2)
    if node.input(2) and (scales is None or scales.size):
        return scales is not None and float(scales[place]) == 1.0
    before, after = node.shape(node.inputs[0]), node.shape(node.output)
    return before is not None and after is not None and before[axis] is not None and before[axis] == after[axis]


def _repeats(op: Builder, node: Node, moved: Sequence[tuple[int, int]]) -> dict[int, int] | None:
    """How often nearest resizing repeats each element, by axis, if that is all it does; else None."""
    how = (node.attr("coordinate_transformation_mode", "half_pixel"), node.attr("nearest_mode", "round_prefer_floor"))
    plain = how == ("asymmetric", "floor") or (how[0].startswith("half_pixel") and how[1].startswith("round"))
    if node.attr("mode", "nearest") != "nearest" or not plain:
        return None
    if any(axis < 2 for _, axis in moved) or not 3 <= node.rank(node.inputs[0]) <= 5:
        return None
    scales = node.constant(2)
    factors = {}
    for place, axis in moved:
        before, after = op.dim(node.inputs[0], axis), op.dim(node.output, axis)
        if scales is not None and scales.size:
            factor = float(scales[place])
        elif before and after:
            factor = after / before
        else:
            return None
        if not factor.is_integer():
            return None
        factors[axis] = int(factor)
    return factors


def _resized_identity(op: Builder, node: Node, place: int, axis: int) -> str:
    """[in, out]: the identity matrix resized along its rows just as the node resizes `axis`."""
    names = (
        "antialias",
        "coordinate_transformation_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "mode",
        "nearest_mode",
    )
    attrs = {name: node.attr(name) for name in names}
    eye = op.Unsqueeze(identity(op, node.inputs[0], axis), [0, 1])  # ONNX Runtime resizes images, not matrices
    scales = node.constant(2)
    if node.input(2) and (scales is None or scales.size):
        ones = np.ones(3, dtype=np.float32)
        if scales is not None:
            factors = op.constant(np.append(ones, np.float32(scales[place])))
        else:
            factors = op.Concat(ones, op.Gather(node.inputs[2], [place]), axis=0)
        resized = op.Resize(eye, None, factors, **attrs)
    else:
        size = op.size(node.output, axis)
        resized = op.Resize(eye, None, None, op.vector(1, 1, op.size(node.inputs[0], axis), size), **attrs)
    return op.Squeeze(resized, [0, 1])


def _pads(op: Builder, node: Node, place: int, count: int) -> tuple[int | str, int | str]:
    """The padding before and after the axis listed at `place` of `count`."""
    pads = node.constant(1)
    if pads is not None:
        return int(pads[place]), int(pads[count + place])
    return op.Gather(node.inputs[1], [place]), op.Gather(node.inputs[1], [count + place])


def _unpadded(op: Builder, node: Node, dy: str, axes: Sequence[int]) -> str:
    """Padding undone: a Slice, or where it may be negative a Pad by the opposite."""
    pads = node.constant(1)
    if pads is None or (pads < 0).any():
        opposite = op.Neg(node.inputs[1]) if pads is None else op.constant(-pads)
        return op.Pad(dy, opposite, None, list(axes) if node.input(3) else None)
    count = len(axes)
    touched = [place for place in range(count) if pads[place] or pads[count + place]]
    if not touched:
        return dy
    starts = [int(pads[place]) for place in touched]
    ends = [-int(pads[count + place]) or LAST for place in touched]
    return op.Slice(dy, starts, ends, [axes[place] for place in touched])
