"""VJP rules: pictures sampled at a grid of places (https://arxiv.org/abs/1506.02025) or in regions."""

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
    plain = _typed(op, np.eye(rank, rank + 1)[None])
    places = op.Reshape(op.AffineGrid(plain, one, align_corners=node.attr("align_corners")), [-1, rank])
    rows = op.Transpose(op.Reshape(dy, op.vector(op.size(theta, 0), -1, rank)), perm=[0, 2, 1])
    return [op.Concat(op.MatMul(rows, places), op.ReduceSum(rows, [2], keepdims=1), axis=2), None]


@vjp("GridSample")
def grid_sample(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the sum of w·dY over the samples that see X; dG = Σ_c dY Σ w'·X · dp/dG, p the place in pixels that G means.

    The pixels around each place, 2 per axis, each have a weight w(p); for nearest it is the one, and dG = 0.
    """
    mode = str(node.attr("mode", "linear"))
    if mode.endswith("cubic"):
        raise node.refuse("mode 'cubic' is not covered, 'linear' and 'nearest' are")
    x, rank, linear = node.inputs[0], node.rank(node.inputs[0]) - 2, mode != "nearest"
    sizes = op.Gather(op.shape(x), list(range(rank + 1, 1, -1)))  # as in the grid: width before height
    counts = op.cast(sizes)
    last = op.Sub(counts, 1.0)
    grid = op.Reshape(op.cast(node.inputs[1]), [0, 1, -1, rank])
    place, slope = _places(op, node, grid, counts, last)
    corners, weights, signs = _around(op, place, rank) if linear else (op.Round(place), None, None)
    clamped = op.Min(op.Max(corners, 0.0), last)
    pixels = _numbered(op, clamped, sizes, rank)  # [N, K, L]: K pixels of each of L samples
    columns = op.Expand(op.Reshape(pixels, [0, 1, -1]), op.Concat([1], op.size(x, 1), [1], axis=0))
    rows = op.Reshape(dy, [0, 0, 1, -1])
    if node.attr("padding_mode", "zeros") == "zeros":
        inside = op.ReduceMin(op.cast(op.Equal(clamped, corners)), [3], keepdims=0)
        rows = op.Mul(rows, op.Unsqueeze(inside, [1]))
    flat = op.Concat(op.Slice(op.shape(x), [0], [2]), [-1], axis=0)
    dx = dgrid = None
    if node.wants(0):
        parts = op.Mul(rows, op.Unsqueeze(op.ReduceProd(weights, [3], keepdims=0), [1])) if weights else rows
        empty = op.Reshape(op.filled(0.0, op.shape(x)), flat)
        parts = op.Reshape(parts, [0, 0, -1])
        dx = op.reshape_like(op.ScatterElements(empty, columns, parts, axis=2, reduction="add"), x)
    if slope and weights and signs:
        values = op.GatherElements(op.Reshape(x, flat), columns, axis=2)
        values = op.Reshape(values, op.Concat(op.Slice(op.shape(x), [0], [2]), op.Shape(pixels, start=1), axis=0))
        along = _steepness(op, op.ReduceSum(op.Mul(values, rows), [1], keepdims=0), weights, signs, rank)
        dgrid = op.CastLike(op.reshape_like(op.Mul(along, op.Squeeze(slope, [1])), node.inputs[1]), node.inputs[1])
    return [dx, dgrid]


@vjp("RoiAlign", since=16)
def roi_align(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = Σ over the regions of a picture of Aᵀ·dY·B, where Y = A·X·Bᵀ: A and B average bilinear samples per axis.

    Regions are constants of the picture, as in torchvision: where they lie passes no gradient on.
    """
    if node.attr("mode", "avg") != "avg":
        raise node.refuse("mode 'max' is not covered, 'avg' is")
    if not node.wants(0):
        return [None, None, None]
    x, rois, batch = node.inputs
    down = _samples(op, node, rois, 1, op.size(x, 2), int(node.attr("output_height", 1)))
    across = _samples(op, node, rois, 0, op.size(x, 3), int(node.attr("output_width", 1)))
    # [R, 1, H, h] · [R, C, h, w] · [R, 1, w, W]
    parts = op.MatMul(op.MatMul(op.Transpose(down, perm=[0, 1, 3, 2]), dy), across)
    return [_by_picture(op, parts, batch, x), None, None]


def _samples(op: Builder, node: Node, rois: str, first: int, size: str, cells: int) -> str:
    """Weights `[R, 1, cells, pixels]` along one axis: each cell is the mean of its bilinear samples.

    There are `sampling_ratio` of them; where that is 0, as many as a cell has pixels, rounded up.
    """
    half = node.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    edges = op.Sub(op.Mul(rois, float(node.attr("spatial_scale", 1.0))), 0.5 if half else 0.0)
    start, end = (op.Gather(edges, [place], axis=1) for place in (first, first + 2))
    length = op.Sub(end, start)
    if not half:  # as in the first versions, a region is a pixel large at least
        length = op.Max(length, 1.0)
    ratio = int(node.attr("sampling_ratio", 0))
    if ratio > 0:
        at = (np.arange(cells * ratio) + 0.5) / (cells * ratio)
        place = op.Add(start, op.Mul(length, _typed(op, at[None])))  # [R, cells x ratio]
        counts, present = None, None
    else:
        counts = op.Max(op.Ceil(op.Div(length, float(cells))), 0.0)  # [R, 1]
        most = op.ReduceMax(op.Concat(op.Reshape(counts, [-1]), _typed(op, np.ones(1)), axis=0), keepdims=0)
        numbers = op.cast(op.Range(0, op.Cast(most, to=onnx.TensorProto.INT64), 1))
        within = op.Div(op.Add(numbers, 0.5), op.Max(counts, 1.0))  # [R, most], in sizes of a cell
        steps = op.Add(op.Unsqueeze(within, [1]), _typed(op, np.arange(cells)[None, :, None]))
        place = op.Add(op.Unsqueeze(start, [2]), op.Mul(op.Unsqueeze(length, [2]), op.Mul(steps, 1.0 / cells)))
        present = op.Unsqueeze(op.Less(numbers, counts), [1])  # [R, 1, most]
    count = op.cast(size)
    inside = op.And(op.GreaterOrEqual(place, -1.0), op.LessOrEqual(place, count))
    inside = op.And(inside, present) if present else inside
    clamped = op.Min(op.Max(place, 0.0), op.Sub(count, 1.0))
    pixels = op.cast(op.Range(0, op.Squeeze(size, [0]), 1))
    last = 3 if present else 2
    weights = op.Max(op.Sub(1.0, op.Abs(op.Sub(op.Unsqueeze(clamped, [last]), pixels))), 0.0)
    weights = op.mask(weights, op.Unsqueeze(inside, [last]))  # [R, cells, most, pixels] or [R, cells x ratio, pixels]
    if counts:
        means = op.Div(op.ReduceSum(weights, [2], keepdims=0), op.Unsqueeze(op.Max(counts, 1.0), [2]))
    else:
        sizes = op.Concat(op.Shape(rois, end=1), [cells, ratio], size, axis=0)  # without -1, for no regions at all
        means = op.ReduceMean(op.Reshape(weights, sizes), [2], keepdims=0)
    return str(op.Unsqueeze(means, [1]))


@vjp("MaxRoiPool")
def max_roi_pool(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = Σ over the regions of a picture of each cell's dY, at its largest value, the first of equal ones.

    A region's cells overlap by up to a pixel; one that lies outside the picture is 0 and has no gradient. Regions are
    constants of the picture.
    """
    if not node.wants(0):
        return [None, None]
    x, rois = node.inputs
    rows, columns = (int(size) for size in node.attr("pooled_shape"))
    picture = op.Cast(op.Reshape(op.Gather(rois, [0], axis=1), [-1]), to=onnx.TensorProto.INT64)
    flat = op.Gather(op.Reshape(x, [0, 0, -1]), picture, axis=0)  # [R, C, pixels]
    down = _cells(op, node, rois, 2, op.size(x, 2), rows)
    across = _cells(op, node, rois, 1, op.size(x, 3), columns)
    lowest = op.constant(np.asarray(np.finfo(onnx.helper.tensor_dtype_to_np_dtype(op.dtype)).min))
    places = []
    for row, column in itertools.product(range(rows), range(columns)):
        inside = op.And(
            op.Unsqueeze(op.Gather(down, row, axis=1), [2]), op.Unsqueeze(op.Gather(across, column, axis=1), [1])
        )
        values = op.Where(op.Unsqueeze(op.Flatten(inside, axis=1), [1]), flat, lowest)
        places.append(op.ArgMax(values, axis=2, keepdims=1))
    some = [op.ReduceMax(op.cast(cells), [2], keepdims=0) for cells in (down, across)]
    filled = op.Flatten(op.Mul(op.Unsqueeze(some[0], [2]), op.Unsqueeze(some[1], [1])), axis=1)
    parts = op.Mul(op.Reshape(dy, [0, 0, rows * columns]), op.Unsqueeze(filled, [1]))
    empty = op.filled(0.0, op.shape(flat))
    by_region = op.ScatterElements(empty, op.Concat(*places, axis=2), parts, axis=2, reduction="add")
    return [_by_picture(op, by_region, picture, x), None]


def _cells(op: Builder, node: Node, rois: str, first: int, size: str, cells: int) -> str:
    """Which pixels `[R, cells, pixels]` along one axis belong to each cell of each region, as Caffe divides them."""
    scaled = op.Mul(rois, float(node.attr("spatial_scale", 1.0)))
    whole = op.Mul(op.Sign(scaled), op.Floor(op.Add(op.Abs(scaled), 0.5)))  # halves away from zero
    start, end = (op.Gather(whole, [place], axis=1) for place in (first, first + 2))
    length = op.Div(op.Max(op.Add(op.Sub(end, start), 1.0), 1.0), float(cells))
    at = np.arange(cells)[None]
    low = op.Add(op.Floor(op.Mul(length, _typed(op, at))), start)
    high = op.Add(op.Ceil(op.Mul(length, _typed(op, at + 1))), start)
    pixels = op.cast(op.Range(0, op.Squeeze(size, [0]), 1))
    return str(op.And(op.GreaterOrEqual(pixels, op.Unsqueeze(low, [2])), op.Less(pixels, op.Unsqueeze(high, [2]))))


def _by_picture(op: Builder, parts: str, picture: str, x: str) -> str:
    """Sum what belongs to each picture `[R, …]` over its regions, in the shape of the pictures."""
    pictures = op.Range(0, op.Squeeze(op.size(x, 0), [0]), 1)
    mine = op.cast(op.Equal(op.Unsqueeze(pictures, [1]), op.Unsqueeze(picture, [0])))
    return str(op.reshape_like(op.MatMul(mine, op.Flatten(parts, axis=1)), x))


def _around(op: Builder, place: str, rank: int) -> tuple[str, str, str]:
    """The pixels around each place, the factors of their weights per axis, and the slopes of these: 1 or -1."""
    offsets = np.asarray(list(itertools.product((0.0, 1.0), repeat=rank))).reshape(-1, 1, rank)
    low, signs = op.Floor(place), _typed(op, 2 * offsets - 1)
    weights = op.Add(op.Mul(op.Sub(place, low), signs), _typed(op, 1 - offsets))
    return op.Add(low, _typed(op, offsets)), weights, signs


def _steepness(op: Builder, values: str, weights: str, signs: str, rank: int) -> str:
    """The derivative of the sum of pixels times weights along each axis: there the factor is replaced by its slope."""
    each = []
    for axis in range(rank):
        along = np.eye(rank)[axis]
        factors = op.Add(op.Mul(weights, _typed(op, 1 - along)), op.Mul(signs, _typed(op, along)))
        products = op.Mul(values, op.ReduceProd(factors, [3], keepdims=0))
        each.append(op.Unsqueeze(op.ReduceSum(products, [1], keepdims=0), [2]))
    return op.Concat(*each, axis=2)


def _places(op: Builder, node: Node, grid: str, sizes: str, last: str) -> tuple[str, str | None]:
    """Places in pixels for a grid that counts from -1 to 1, those beyond brought inside; and dp/dG, if it is needed."""
    corners = bool(node.attr("align_corners", 0))
    needed = node.wants(1) and node.attr("mode", "linear") != "nearest"
    extent, edge = (last, 0.0) if corners else (sizes, -0.5)
    slope = op.Mul(extent, 0.5)
    place = op.Mul(op.Add(grid, 1.0), slope)
    padding = node.attr("padding_mode", "zeros")
    if padding == "reflection":  # to and fro between the edges
        period = op.Max(op.Mul(extent, 2.0), 1.0)
        back = op.Sub(op.Sub(place, op.Mul(op.Floor(op.Div(place, period)), period)), extent)
        place = op.Sub(extent, op.Abs(back))
        slope = op.Mul(op.Neg(op.Sign(back)), slope) if needed else slope
    place = op.Add(place, edge) if edge else place
    if padding == "zeros":
        return place, op.Expand(slope, op.Shape(place)) if needed else None
    clamped = op.Min(op.Max(place, 0.0), last)
    return clamped, op.mask(slope, op.Equal(clamped, place)) if needed else None


def _numbered(op: Builder, places: str, sizes: str, rank: int) -> str:
    """Whole places as numbers of pixels in a row, over the last axis: the first counts ones, the second rows."""
    strides = [op.operand([1])]
    for axis in range(rank - 1):
        strides.append(op.Mul(strides[-1], op.Slice(sizes, [axis], [axis + 1])))
    whole = op.Cast(places, to=onnx.TensorProto.INT64)
    return op.ReduceSum(op.Mul(whole, op.Concat(*strides, axis=0)), [3], keepdims=0)


def _typed(op: Builder, array: np.ndarray) -> str:
    """A constant in the current element type."""
    return op.constant(array.astype(onnx.helper.tensor_dtype_to_np_dtype(op.dtype)))
