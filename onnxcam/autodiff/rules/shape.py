"""VJP rules of operators that move elements: reshaping, joining, slicing, gathering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxcam.autodiff.registry import Cotangents, Node, no_gradient, vjp
from onnxcam.graph.builder import Builder

no_gradient("Shape", "Size", "NonZero", "ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike")

Extent = int | str  # an int where static, else an int64 vector of length 1 computed at run time
END = 2**31 - 1
INT64 = onnx.TensorProto.INT64


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY in X's shape."""
    return [op.reshape_like(dy, node.inputs[0])]


@vjp("Transpose")
def transpose(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY transposed by the inverse permutation."""
    perm = node.attr("perm")
    return [op.Transpose(dy, perm=None if perm is None else [int(axis) for axis in np.argsort(perm)])]


@vjp("Expand", broadcast=True)
def expand(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY."""
    return [dy]


@vjp("Concat")
def concat(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = X's part of dY."""
    axis = node.attr("axis")
    parts: list[str | None] = []
    start: Extent = 0
    for index, x in enumerate(node.inputs):
        if index > max(node.needed):
            break
        end: Extent = END if index + 1 == len(node.inputs) else _plus(op, start, _extent(op, x, axis))
        parts.append(op.Slice(dy, op.vector(start), op.vector(end), [axis]) if node.wants(index) else None)
        start = end
    return parts


@vjp("Split", multiple=True)
def split(op: Builder, node: Node, dys: Sequence[str | None]) -> Cotangents:
    """dX = the dY joined, zeros for parts without one."""
    parts = [dy or op.filled(0.0, op.shape(y)) for dy, y in zip(dys, node.outputs, strict=True)]
    return [op.Concat(*parts, axis=node.attr("axis", 0))]


@vjp("Slice")
def cut(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY put back where it was cut out, zeros elsewhere."""
    y, rank = node.output, node.rank(node.inputs[0])
    axes = _axes(node, 3, rank)
    steps = node.constant(4) if node.input(4) else np.ones(len(axes), dtype=np.int64)
    if steps is not None and (steps == 1).all():
        return [_placed(op, node, dy, {a: (_start(op, node, k, a), _extent(op, y, a)) for k, a in enumerate(axes)})]
    pads = [0] * (2 * rank)
    for axis in axes:
        pads[rank + axis] = 1
    dx = op.Pad(dy, pads)  # the slice of zeros that every element left out is gathered from
    for k, axis in enumerate(axes):
        dx = op.Gather(dx, _inverse(op, node, k, axis), axis=axis)
    return [dx]


def _start(op: Builder, node: Node, k: int, axis: int) -> Extent:
    """Where the k-th axis of a Slice with step 1 begins, as an index from 0 to the axis's size."""
    x, starts = node.inputs[0], node.constant(1)
    size = op.dim(x, axis)
    if starts is not None:
        start = int(starts[k])
        if start == 0:
            return 0
        if size is not None:
            return min(max(start + size if start < 0 else start, 0), size)
    begin = op.Slice(op.Cast(node.inputs[1], to=INT64), [k], [k + 1])
    counted = op.Where(op.Less(begin, 0), op.Add(begin, op.size(x, axis)), begin)
    return op.Min(op.Max(counted, 0), op.size(x, axis))


def _inverse(op: Builder, node: Node, k: int, axis: int) -> str:
    """For each index of X along a sliced axis the index in Y it went to, or Y's size where it was left out."""
    x = node.inputs[0]
    size, constants = op.dim(x, axis), [node.constant(i) for i in (1, 2, 4)]
    if size is not None and all(c is not None for c in constants):
        start, end, step = (int(c[k]) for c in constants if c is not None)
        picked = np.arange(size)[start:end:step]
        inverse = np.full(size, len(picked))
        inverse[picked] = np.arange(len(picked))
        return op.constant(inverse)
    cuts = [op.Slice(op.Cast(node.inputs[i], to=INT64), [k], [k + 1]) for i in (1, 2, 4)]
    every = op.Range(0, op.Squeeze(op.size(x, axis)), 1)
    indices = op.Slice(every, cuts[0], cuts[1], [0], cuts[2])
    count = op.Shape(indices)
    full = op.Expand(count, op.size(x, axis))
    return op.ScatterElements(full, indices, op.Range(0, op.Squeeze(count), 1), axis=0)


@vjp("Gather")
def gather(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX[indices] = sum of the dY picked from there."""
    x, indices = node.inputs
    rank, axis = node.rank(x), _axis(node, node.attr("axis", 0))
    fixed = node.constant(1)
    scalar = node.rank(indices) == 0
    if fixed is not None and fixed.ndim <= 1 and fixed.size and (np.diff(fixed.ravel()) == 1).all():
        first = int(fixed.ravel()[0])
        if first >= 0 or first + fixed.size <= 0:  # no wrap from the end to the start
            size = _extent(op, x, axis)
            start = first if first >= 0 else _plus(op, size, first)
            return [_placed(op, node, op.Unsqueeze(dy, [axis]) if scalar else dy, {axis: (start, fixed.size)})]
    if scalar:
        dy, indices = op.Unsqueeze(dy, [axis]), op.Unsqueeze(indices, [0])
    elif node.rank(indices) > 1:
        indices = op.Reshape(indices, [-1])
        sizes = [_extent(op, x, a) for a in range(rank)]
        # -1 cannot be told where another axis is empty
        sizes[axis] = (
            -1
            if all(isinstance(size, int) and size for size in sizes[:axis] + sizes[axis + 1 :])
            else op.Shape(indices)
        )
        dy = op.Reshape(dy, op.vector(*sizes))
    if rank > 1:
        indices = op.Reshape(indices, [-1 if a == axis else 1 for a in range(rank)])
        indices = op.Expand(indices, op.Shape(dy))
    return [op.ScatterElements(op.filled(0.0, op.shape(x)), indices, dy, axis=axis, reduction="add")]


@vjp("GatherElements")
def gather_elements(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX[indices] = sum of the dY picked from there."""
    x, indices = node.inputs
    zeros = op.filled(0.0, op.shape(x))
    return [op.ScatterElements(zeros, indices, dy, axis=node.attr("axis", 0), reduction="add")]


@vjp("GatherND")
def gather_nd(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX[indices] = sum of the dY picked from there."""
    x, indices = node.inputs
    shape = op.shape(x)
    size = op.ReduceProd(shape, keepdims=0)
    # ScatterND alone would do, but onnxruntime's adds in several threads and loses sums where indices repeat (#23396)
    places = op.GatherND(
        op.Reshape(op.Range(np.int64(0), size, np.int64(1)), shape), indices, batch_dims=node.attr("batch_dims")
    )
    zeros = op.filled(0.0, op.Reshape(size, [1]))
    flat = op.ScatterElements(zeros, op.Reshape(places, [-1]), op.Reshape(dy, [-1]), axis=0, reduction="add")
    return [op.Reshape(flat, shape)]


@vjp("ScatterND")
def scatter_nd(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY, 0 where overwritten; dupdates = dY[indices]; for max and min, dY goes to where the extremum is."""
    x, indices, updates = node.inputs
    kind = _reduction(node)
    if kind in ("max", "min"):
        # as ScatterElements on all elements in a row: its addition counts repeated indices right, ScatterND's races
        shape = op.shape(x)
        size = op.ReduceProd(shape, keepdims=0)
        numbered = op.Reshape(op.Range(np.int64(0), size, np.int64(1)), shape)
        places = op.Reshape(op.GatherND(numbered, indices), [-1])
        rows = [op.Reshape(value, [-1]) for value in (x, node.output, dy, updates)]
        dx, du = _extremum(op, rows[0], rows[1], rows[2], places, rows[3], 0)
        return [op.Reshape(dx, shape), None, op.reshape_like(du, updates) if node.wants(2) else None]
    dx = dy
    if kind == "none" and node.wants(0):
        dx = op.ScatterND(dy, indices, op.filled(0.0, op.shape(updates)))
    return [dx, None, op.GatherND(dy, indices) if node.wants(2) else None]


@vjp("ScatterElements")
def scatter_elements(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY, 0 where overwritten; dupdates = dY[indices]; for max and min, dY goes to where the extremum is."""
    x, indices, updates = node.inputs
    kind = _reduction(node)
    axis, dx = node.attr("axis", 0), dy
    if kind in ("max", "min"):
        dx, du = _extremum(op, x, node.output, dy, indices, updates, axis)
        return [dx, None, du]
    if kind == "none" and node.wants(0):
        dx = op.ScatterElements(dy, indices, op.filled(0.0, op.shape(updates)), axis=axis)
    return [dx, None, op.GatherElements(dy, indices, axis=axis) if node.wants(2) else None]


@vjp("TensorScatter", since=24)
def tensor_scatter(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY, 0 where overwritten; dupdate = dY from where it was written."""
    x, update = node.inputs[:2]
    axis, rank = _axis(node, node.attr("axis", -2)), node.rank(x)
    places = op.Unsqueeze(op.Range(0, op.Squeeze(op.size(update, axis)), 1), [0])
    if node.input(2):
        places = op.Add(op.Unsqueeze(node.inputs[2], [1]), places)
    if node.attr("mode", "linear") == "circular":
        places = op.Mod(places, op.size(x, axis))
    lost = [other for other in range(rank) if other not in (0, axis)]
    places = op.Expand(op.Unsqueeze(places, lost) if lost else places, op.shape(update))
    dx = None
    if node.wants(0):
        dx = op.ScatterElements(dy, places, op.filled(0.0, op.shape(update)), axis=axis)
    return [dx, op.GatherElements(dy, places, axis=axis) if node.wants(1) else None]


def _reduction(node: Node) -> str:
    kind = str(node.attr("reduction", "none"))
    if kind == "mul":
        raise node.refuse("reduction='mul' is not covered, only 'none', 'add', 'max' and 'min' are")
    return kind


def _extremum(op: Builder, x: str, y: str, dy: str, indices: str, updates: str, axis: int) -> tuple[str, str]:
    """dY shared equally among the element of X and the updates that tie for Y."""
    equal = op.cast(op.Equal(x, y))
    hits = op.cast(op.Equal(updates, op.GatherElements(y, indices, axis=axis)))
    share = op.Div(dy, op.ScatterElements(equal, indices, hits, axis=axis, reduction="add"))
    return op.Mul(share, equal), op.Mul(op.GatherElements(share, indices, axis=axis), hits)


@vjp("TopK")
def top_k(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY at the selected elements, 0 elsewhere."""
    zeros = op.filled(0.0, op.shape(node.inputs[0]))
    return [op.ScatterElements(zeros, node.outputs[1], dy, axis=node.attr("axis", -1))]


@vjp("Compress")
def compress(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY where the condition holds, 0 elsewhere."""
    x, condition = node.inputs
    places = op.Reshape(op.NonZero(condition), [-1])
    axis = node.attr("axis")
    if axis is None:
        size = op.Reshape(op.ReduceProd(op.shape(x), keepdims=0), [1])
        return [op.reshape_like(op.ScatterElements(op.filled(0.0, size), places, dy, axis=0), x)]
    place = _axis(node, axis)
    rows = op.Reshape(places, [-1 if a == place else 1 for a in range(node.rank(x))])
    rows = op.Expand(rows, op.Shape(dy))
    return [op.ScatterElements(op.filled(0.0, op.shape(x)), rows, dy, axis=place)]


@vjp("ReverseSequence")
def reverse_sequence(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = dY with the same sequences reversed."""
    axes = {name: node.attr(name) for name in ("batch_axis", "time_axis")}
    return [op.ReverseSequence(dy, node.inputs[1], **axes)]


@vjp("Tile")
def tile(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = sum of dY over the repetitions."""
    x, repeats = node.inputs
    rank = node.rank(x)
    pairs = op.Concat(op.Unsqueeze(repeats, [1]), op.Unsqueeze(op.shape(x), [1]), axis=1)
    empty = None if op.static(node.output) else 1  # a size of 0 is then meant
    parts = op.Reshape(dy, op.Reshape(pairs, [-1]), allowzero=empty)
    return [op.ReduceSum(parts, list(range(0, 2 * rank, 2)), keepdims=0)]


@vjp("CumSum")
def cumsum(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the cumulative sum of dY from the other end."""
    exclusive, reverse = node.attr("exclusive", 0), node.attr("reverse", 0)
    return [op.CumSum(dy, node.inputs[1], exclusive=exclusive, reverse=1 - reverse)]


@vjp("DepthToSpace")
def depth_to_space(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the blocks of dY back in the channels."""
    block = node.attr("blocksize")
    dx = op.SpaceToDepth(dy, blocksize=block)
    if node.attr("mode", "DCR") == "DCR":
        return [dx]
    channels = op.dim(node.inputs[0], 1)
    if channels is None:
        raise node.refuse("mode CRD needs a static number of channels")
    # SpaceToDepth counts (block row, block column, channel), mode CRD (channel, block row, block column)
    order = np.arange(channels).reshape(block * block, -1).T.ravel()
    return [op.Gather(dx, order, axis=1)]


@vjp("SpaceToDepth")
def space_to_depth(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the channels of dY back in their blocks."""
    return [op.DepthToSpace(dy, blocksize=node.attr("blocksize"), mode=node.attr("mode", "DCR"))]


@vjp("Trilu")
def trilu(op: Builder, node: Node, dy: str) -> Cotangents:
    """dX = the same triangle of dY."""
    return [op.Trilu(dy, node.input(1), upper=node.attr("upper", 1))]


@vjp("Range")
def arange(op: Builder, node: Node, dy: str) -> Cotangents:
    """dstart = sum(dY), ddelta = sum(k dY_k)."""
    count = op.Squeeze(op.Shape(dy))
    steps = op.cast(op.Range(0, count, 1))
    return [op.ReduceSum(dy, keepdims=0), None, op.ReduceSum(op.Mul(dy, steps), keepdims=0)]


@vjp("OneHot")
def one_hot(op: Builder, node: Node, dy: str) -> Cotangents:
    """doff = sum of dY where cold, don = sum where hot."""
    indices, depth, _ = node.inputs
    # in the element type of the values: the runtime has kernels for few combinations
    ends = np.asarray([0, 1], onnx.helper.tensor_dtype_to_np_dtype(op.dtype))
    hot = op.OneHot(indices, depth, ends, axis=node.attr("axis", -1))
    on = op.ReduceSum(op.Mul(dy, hot), keepdims=0)
    off = op.Sub(op.ReduceSum(dy, keepdims=0), on)
    return [None, None, op.Concat(op.Unsqueeze(off, [0]), op.Unsqueeze(on, [0]), axis=0)]


def _placed(op: Builder, node: Node, dy: str, places: Mapping[int, tuple[Extent, Extent]]) -> str:
    """`dy` amid zeros in the shape of X: along each axis its first index there, and its size."""
    x = node.inputs[0]
    rank = node.rank(x)
    pads: list[Extent] = [0] * (2 * rank)
    for axis, (start, size) in places.items():
        pads[axis] = start
        pads[rank + axis] = _minus(op, _minus(op, _extent(op, x, axis), size), start)
    return op.Pad(dy, op.vector(*pads)) if any(pad != 0 for pad in pads) else dy


def _extent(op: Builder, value: str, axis: int) -> Extent:
    length = op.dim(value, axis)
    return op.size(value, axis) if length is None else length


def _plus(op: Builder, a: Extent, b: Extent) -> Extent:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return b if a == 0 else op.Add(op.vector(a), op.vector(b))


def _minus(op: Builder, a: Extent, b: Extent) -> Extent:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return a if b == 0 else op.Sub(op.vector(a), op.vector(b))


def _axis(node: Node, axis: int) -> int:
    """An axis of the first input, counted from the front."""
    return axis + node.rank(node.inputs[0]) if axis < 0 else axis


def _axes(node: Node, index: int, rank: int) -> list[int]:
    """The axes a Slice cuts, counted from the front."""
    if not node.input(index):
        starts = node.shape(node.inputs[1])
        if not starts or not isinstance(starts[0], int):
            raise node.refuse("the number of its starts is unknown")
        return list(range(starts[0]))
    axes = node.constant(index)
    if axes is None:
        raise node.refuse("its axes are computed at run time")
    return [int(axis) % rank for axis in axes]
