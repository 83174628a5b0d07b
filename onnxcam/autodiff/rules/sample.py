"""VJP rules of spatial transformers (https://arxiv.org/abs/1506.02025): a grid of places, and a picture sampled there."""

from __future__ import annotations

import itertools

import numpy as np
import onnx

from onnxcam.autodiff.registry import Cotangents, Node, vjp
from onnxcam.graph.builder import Builder


@vjp("AffineGrid", since=20)
def affine_grid(op: Builder, node: Node, dy: str) -> Cotangents:
    """dtheta = dYᵀ·(P, 1), with the places P that theta is applied to: the grid of the identity."""
    theta, size = node.inputs
    rank = op.dim(theta, 1)
    if rank is None:
        raise node.refuse("whether its grid is flat or spatial is unknown")
    one = op.Concat([1], op.Slice(size, [1], [rank + 2]), axis=0)
    plain = _held(op, np.eye(rank, rank + 1)[None])
    places = op.Reshape(op.AffineGrid(plain, one, align_corners=node.attr("align_corners")), [-1, rank])
    rows = op.Transpose(op.Reshape(dy, op.vector(op.size(theta, 0), -1, rank)), perm=[0, 2, 1])
    return [op.Concat(op.MatMul(rows, places), op.ReduceSum(rows, [2], keepdims=1), axis=2), None]


@vjp("GridSample")
def grid_sample(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the sum of w·dY over the samples that see X; dG = Σ_c dY Σ w'·X · dp/dG, p the place in pixels that G means.

    K pixels around each place are looked at, each with a weight w(p): one for nearest, 2 per axis for linear.
    """
    mode = str(node.attr("mode", "linear"))
    if mode.endswith("cubic"):
        raise node.refuse("mode 'cubic' is not covered, 'linear' and 'nearest' are")
    x, grid = node.inputs
    rank = node.rank(x) - 2
    sizes = op.Gather(op.shape(x), list(range(rank + 1, 1, -1)))  # as in the grid: width before height
    place, slope = _places(op, node, op.Reshape(op.cast(grid), [0, 1, -1, rank]), op.cast(sizes))
    if mode == "nearest":
        corners, weights = op.Round(place), None
    else:
        offsets = np.asarray(list(itertools.product((0.0, 1.0), repeat=rank))).reshape(-1, 1, rank)
        low = op.Floor(place)
        corners = op.Add(low, _held(op, offsets))
        signs = _held(op, 2 * offsets - 1)
        weights = op.Add(op.Mul(op.Sub(place, low), signs), _held(op, 1 - offsets))
    last = op.Sub(op.cast(sizes), 1.0)
    seen = op.Min(op.Max(corners, 0.0), last)
    pixels = _numbered(op, seen, sizes, rank)  # [N, K, L], L samples
    inside = None
    if node.attr("padding_mode", "zeros") == "zeros":
        inside = op.ReduceMin(op.cast(op.Equal(seen, corners)), [3], keepdims=0)
    flat = op.Concat(op.Slice(op.shape(x), [0], [2]), [-1], axis=0)
    columns = op.Expand(op.Reshape(pixels, [0, 1, -1]), op.Concat([1], op.size(x, 1), [1], axis=0))
    rows = op.Reshape(dy, [0, 0, 1, -1])
    dx = dgrid = None
    if node.wants(0):
        weight = op.ReduceProd(weights, [3], keepdims=0) if weights else op.filled(1.0, op.Shape(pixels))
        weight = op.Mul(weight, inside) if inside else weight
        parts = op.Reshape(op.Mul(rows, op.Unsqueeze(weight, [1])), [0, 0, -1])
        empty = op.Reshape(op.filled(0.0, op.shape(x)), flat)
        dx = op.reshape_like(op.ScatterElements(empty, columns, parts, axis=2, reduction="add"), x)
    if node.wants(1) and weights:
        values = op.GatherElements(op.Reshape(x, flat), columns, axis=2)
        around = op.Reshape(values, op.Concat(op.Shape(dy, end=2), op.Shape(pixels, start=1), axis=0))
        seen_by = op.ReduceSum(op.Mul(around, rows), [1], keepdims=0)  # [N, K, L]
        seen_by = op.Mul(seen_by, inside) if inside else seen_by
        each = []
        for axis in range(rank):
            chosen = _held(op, np.eye(rank)[axis])
            steep = op.Add(op.Mul(weights, op.Sub(1.0, chosen)), op.Mul(signs, chosen))
            products = op.Mul(seen_by, op.ReduceProd(steep, [3], keepdims=0))
            each.append(op.Unsqueeze(op.ReduceSum(products, [1], keepdims=0), [2]))
        along = op.Mul(op.Concat(*each, axis=2), op.Squeeze(slope, [1]))
        dgrid = op.CastLike(op.reshape_like(along, grid), grid)
    elif node.wants(1):
        dgrid = op.CastLike(op.filled(0.0, op.shape(grid)), grid)
    return [dx, dgrid]


def _places(op: Builder, node: Node, grid: str, sizes: str) -> tuple[str, str]:
    """Places in pixels, and their derivatives, for a grid that counts from -1 to 1; outside ones brought inside."""
    corners = bool(node.attr("align_corners", 0))
    scale = op.Mul(op.Sub(sizes, 1.0) if corners else sizes, 0.5)
    place = op.Sub(op.Mul(op.Add(grid, 1.0), scale), 0.0 if corners else 0.5)
    padding, last = node.attr("padding_mode", "zeros"), op.Sub(sizes, 1.0)
    if padding == "zeros":
        return place, op.Expand(scale, op.Shape(place))
    slope = scale
    if padding == "reflection":  # to and fro between the edges
        edge = 0.0 if corners else -0.5
        extent = op.Sub(sizes, 1.0) if corners else sizes
        period = op.Max(op.Mul(extent, 2.0), 1.0)
        beyond = op.Sub(place, edge)
        beyond = op.Sub(op.Sub(beyond, op.Mul(op.Floor(op.Div(beyond, period)), period)), extent)
        place = op.Add(op.Sub(extent, op.Abs(beyond)), edge)
        slope = op.Neg(op.Mul(op.Sign(beyond), scale))
    held = op.Min(op.Max(place, 0.0), last)
    return held, op.mask(slope, op.Equal(held, place))


def _numbered(op: Builder, places: str, sizes: str, rank: int) -> str:
    """Whole places as numbers of pixels in a row, over the last axis: the first counts ones, the second rows."""
    strides = [op.operand([1])]
    for axis in range(rank - 1):
        strides.append(op.Mul(strides[-1], op.Slice(sizes, [axis], [axis + 1])))
    return op.ReduceSum(op.Mul(op.Cast(places, to=onnx.TensorProto.INT64), op.Concat(*strides, axis=0)), [3], keepdims=0)


def _held(op: Builder, array: np.ndarray) -> str:
    """A constant in the current element type."""
    return op.constant(array.astype(onnx.helper.tensor_dtype_to_np_dtype(op.dtype)))
