"""Preprocessing as nodes of a graph: a uint8 picture of any size in, the model's input out.

The rules are those of docs/reference/preprocessing.md. A resize is two matrix products, first along the width as in
Pillow: the rows of the result are computed 16 at a time, each block from the few rows of the picture that it reads, by
weights that are computed in the graph from the picture's size. Distances are whole numbers and weights float64 rounded
to 22 bits, as Pillow has them, so that nearly every pixel is Pillow's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx

from onnxcam.errors import PreprocessError
from onnxcam.graph.builder import Builder
from onnxcam.image.preprocess import Crop, Preprocess, Resize

_FLOAT, _DOUBLE, _INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64
_BLOCK = 16  # rows of the result per matrix product: fewer are more products, more read more rows of weight 0
_BITS = 22  # of Pillow's weights
_FAR = 1 << 16  # pixels: twice as many times a side of the input fit into 32 bits, which OpenVINO has
# support of each kernel without antialiasing as OpenCV has it; with it as Pillow has it
_SUPPORT = {("bilinear", True): 1.0, ("bicubic", True): 2.0, ("area", True): 0.5, ("lanczos", True): 3.0}
_SUPPORT |= {("bilinear", False): 1.0, ("bicubic", False): 2.0}


class Axes(NamedTuple):
    """Height and width of a picture that is resized and placed on the model's input: int64 vectors of two elements.

    Attributes:
        picture: pixels of the picture.
        resized: pixels it is resized to.
        offset: where its first resized pixel lies on the input; negative where a crop cuts.
        size: pixels of the input.
    """

    picture: str
    resized: str
    offset: str
    size: str

    def apart(self, op: Builder) -> tuple[Axes, Axes]:
        """The same of the height and of the width alone, vectors of one element."""
        heights, widths = zip(*(parts(op, value) for value in self), strict=True)
        return Axes(*heights), Axes(*widths)


class _Band(NamedTuple):
    """What is read along an axis.

    Attributes:
        start, stop: the pixels that are read at all, int64 `[1]`.
        sources: those that each block of results reads, int64 `[B, L]`, from `start`.
        weights: of each for each of a block's results, `[B, 16, L]`.
    """

    start: str
    stop: str
    sources: str
    weights: str


def require_expressible(spec: Preprocess) -> None:
    """Refuse a preprocessing that the graph cannot do to a uint8 picture `[H, W, 3]`.

    Raises:
        PreprocessError: what it cannot, and what to do.
    """
    if spec.color == "bands":
        raise PreprocessError(
            f"a picture of pixels has the channels R, G, B, and the model takes {spec.channels} bands; export without "
            "pixels and feed the prepared tensor"
        )
    if spec.value_range is not None:
        raise PreprocessError(
            f"the preprocessing states a range of values, {list(spec.value_range)}, for pictures of more than 8 bits, "
            "and pixels are uint8; export without pixels, or leave `range` out"
        )
    resize = spec.resize
    if resize is not None and resize.interpolation in ("area", "lanczos") and not resize.antialias:
        raise PreprocessError(
            f"resize interpolation {resize.interpolation!r} without antialias (OpenCV's) is not written into a graph; "
            "export without pixels, or with antialias true (Pillow's) if the model was trained so"
        )


def axes(op: Builder, spec: Preprocess, pixels: str) -> Axes:
    """Where a picture, `[H, W, 3]`, comes to lie on the model's input."""
    resize, crop = spec.resize, spec.crop
    picture = op.Shape(pixels, start=0, end=2)
    resized = picture if resize is None else _resized(op, resize, picture)
    size, offset = resized, op.operand([0, 0])
    if resize is not None and resize.mode == "letterbox":
        size = op.operand(list(_pair(resize.size)))
        offset = op.Div(op.Sub(size, resized), [2])
    if crop is not None:
        moved = _anchored(op, size, crop, covered=resize is not None and _covers(spec, resize))
        offset = op.Add(offset, moved) if op.value(offset) is None else moved
        size = op.operand(list(crop.size))
    return Axes(picture, resized, offset, size)


def parts(op: Builder, pair: str) -> tuple[str, str]:
    """The two elements of a vector, as vectors."""
    numbers = op.value(pair)
    if numbers is not None:
        return op.operand([int(numbers[0])]), op.operand([int(numbers[1])])
    first, second = op.call("Split", [pair, [1, 1]], outputs=2, axis=0)
    return first, second


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _covers(spec: Preprocess, resize: Resize) -> bool:
    """Whether the resized picture covers the whole input, whatever the picture's size."""
    if resize.mode == "letterbox":
        return False
    return spec.crop is None or all(new <= old for new, old in zip(spec.crop.size, _pair(resize.size), strict=True))


def _resized(op: Builder, resize: Resize, picture: str) -> str:
    """`Resize.resized` in the graph; float64 where Python's floats round, so that ties fall the same way."""
    if resize.mode == "stretch":
        return op.operand(list(_pair(resize.size)))
    if resize.mode == "shortest" and isinstance(resize.size, int):
        return op.Div(op.Mul(picture, [resize.size]), op.ReduceMin(picture, keepdims=1))
    box = _pair(resize.size)
    sides = op.Cast(picture, to=_DOUBLE)
    ratios = op.Div(sides, np.array(box, np.float64))
    letterbox = resize.mode == "letterbox"
    ratio = op.ReduceMax(ratios, keepdims=1) if letterbox else op.ReduceMin(ratios, keepdims=1)
    fitted = op.Cast(op.Round(op.Div(sides, ratio)), to=_INT64)
    return op.Min(op.Max(fitted, [1]), list(box)) if letterbox else op.Max(fitted, list(box))


def _anchored(op: Builder, old: str, crop: Crop, *, covered: bool) -> str:
    """`Crop.offset`; `covered` where the crop is never the larger one."""
    new = list(crop.size)
    if not crop.anchor.startswith("center"):
        ends = [int("bottom" in crop.anchor), int("right" in crop.anchor)]
        return op.Mul(op.Sub(new, old), ends) if any(ends) else op.operand([0, 0])
    cut = op.Sub(old, new)
    cut = cut if covered else op.Max(cut, [0])
    half = op.Div(cut, [2])
    if crop.anchor == "center":  # half to even
        half = op.Div(op.Add(cut, op.Mod(half, [2])), [2])
    return op.Neg(half) if covered else op.Sub(op.Div(op.Max(op.Sub(new, old), [0]), [2]), half)


def prepare(op: Builder, spec: Preprocess, pixels: str, place: Axes, layout: str, dtype: str) -> str:
    """Emit the preprocessing.

    Arguments:
        pixels: uint8 `[H, W, 3]`.
        place: of `axes`.
        layout: `NCHW` or `NHWC`.
        dtype: NumPy's name of the model's element type.

    Returns:
        the tensor's name, `[1, C, h, w]` or `[1, h, w, C]`; the picture before it is scaled is `<prefix>/resized`.
    """
    op.dtype = _FLOAT
    resize, channels = spec.resize, spec.channels
    if spec.color == "L":
        pixels = _gray(op, pixels)
    if resize is None or resize.interpolation == "nearest":
        picture = _nearest(op, pixels, place)
    else:
        picture = _resample(op, pixels, place, resize, spec)
    if spec.color == "BGR":
        picture = op.Gather(picture, [2, 1, 0], axis=1)
    if resize is not None and resize.mode == "letterbox" and any(resize.pad_value):
        picture = op.Add(picture, _padding(op, spec, resize, place))
    if layout == "NHWC":
        picture = op.Transpose(picture, perm=[0, 2, 3, 1])
    picture = op.Identity(picture, name=op.unique(f"{op.prefix}/resized"))
    shape = (1, channels, 1, 1) if layout == "NCHW" else (1, 1, 1, channels)
    std = np.array(spec.std)
    factor = np.broadcast_to(spec.scale / std, channels).astype(np.float32).reshape(shape)
    shift = np.broadcast_to(-np.array(spec.mean) / std, channels).astype(np.float32).reshape(shape)
    tensor = picture
    if (factor != 1).any():
        tensor = op.Mul(tensor, factor)
    if shift.any():
        tensor = op.Add(tensor, shift)
    if dtype == "uint8" and tensor != picture:
        tensor = op.Round(tensor)
    return (
        tensor if dtype == "float32" else str(op.Cast(tensor, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))
    )


def _gray(op: Builder, pixels: str) -> str:
    """PIL's `convert("L")` in float32, whose numbers below 2^24 are exact: float `[H, W, 1]`."""
    weights = np.array([[19595], [38470], [7471]], np.float32)
    summed = op.Add(op.MatMul(op.cast(pixels), weights), 32768.0)
    return op.Floor(op.Mul(summed, 2.0**-16))


def arange(op: Builder, count: str, start: str | None = None) -> str:
    """The whole numbers from `start` (0) up to `count`, int64 vectors of one element each."""
    return op.Range(0 if start is None else op.Squeeze(start, [0]), op.Squeeze(count, [0]), 1)


def _nearest(op: Builder, pixels: str, place: Axes) -> str:
    """The pixel under each new one's centre, 0 outside the picture: float `[1, C, h, w]`."""
    masks = []
    for k, axis in enumerate(place.apart(op)):
        row = op.Sub(arange(op, axis.size), axis.offset)
        # Pillow adds the step pixel by pixel, and CumSum rounds in the same order
        step = op.Div(op.Cast(axis.picture, to=_DOUBLE), op.Cast(axis.resized, to=_DOUBLE))
        steps = op.Expand(step, op.Sub(axis.resized, [1]))
        old = op.Cast(op.CumSum(op.Concat(op.Mul(step, np.array([0.5])), steps, axis=0), 0), to=_INT64)
        old = op.Gather(_clip(op, old, axis.picture), _clip(op, row, axis.resized), axis=0)
        pixels = op.Gather(pixels, old, axis=k)
        masks.append(_inside(op, row, axis))
    picture = op.Unsqueeze(op.Transpose(op.cast(pixels), perm=[2, 0, 1]), [0])
    return op.Mul(picture, op.Mul(op.Unsqueeze(masks[0], [1]), masks[1]))


def _clip(op: Builder, index: str, size: str) -> str:
    return op.Min(op.Max(index, [0]), op.Sub(size, [1]))


def _inside(op: Builder, row: str, axis: Axes) -> str:
    """1 where a position on the resized picture lies in it, else 0."""
    return op.cast(op.And(op.GreaterOrEqual(row, [0]), op.Less(row, axis.resized)))


def _padding(op: Builder, spec: Preprocess, resize: Resize, place: Axes) -> str:
    """The letterbox's colour where the picture is not, `[1, C, h, w]`; black where a crop reaches beyond the box."""
    box = _pair(resize.size)
    crop = spec.crop or Crop(box, "top_left")
    moved = crop.offset(box)
    canvas = np.zeros((1, 1, *crop.size), np.float32)
    canvas[..., max(moved[0], 0) : max(moved[0] + box[0], 0), max(moved[1], 0) : max(moved[1] + box[1], 0)] = 1
    rows, columns = (_inside(op, op.Sub(arange(op, axis.size), axis.offset), axis) for axis in place.apart(op))
    color = np.broadcast_to(np.rint(np.clip(resize.pad_value, 0, 255)), spec.channels).astype(np.float32)
    return op.Mul(op.Sub(canvas, op.Mul(op.Unsqueeze(rows, [1]), columns)), color.reshape(1, -1, 1, 1))


def _resample(op: Builder, pixels: str, place: Axes, resize: Resize, spec: Preprocess) -> str:
    """Resize along the width, then along the height: float `[1, C, h, w]`, whole numbers from 0 to 255."""
    channels = spec.channels
    rows, columns = _bands(op, place, resize, covered=_covers(spec, resize))
    height, width = parts(op, place.picture)
    out_height, out_width = parts(op, place.size)
    if spec.crop is not None:  # what the result reads
        pixels = op.Slice(pixels, op.vector(rows.start, columns.start), op.vector(rows.stop, columns.stop), [0, 1])
        height, width = (op.Sub(band.stop, band.start) for band in (rows, columns))
        rows, columns = (band._replace(sources=op.Sub(band.sources, band.start)) for band in (rows, columns))
    # pixels stay bytes for as long as they are moved; they are the left operand of the first product, because ONNX
    # Runtime copies the right one before it multiplies, and a Reshape keeps it from turning the left one while it does
    turned = op.Transpose(op.Reshape(pixels, op.vector(height, -1)), perm=[1, 0])
    turned = op.Gather(op.Reshape(turned, op.vector(width, -1)), columns.sources, axis=0)  # [B, L, C * H]
    count = op.Shape(columns.sources, start=1, end=2)
    turned = op.Reshape(op.Transpose(turned, perm=[0, 2, 1]), op.vector(-1, channels, height, count))
    weights = op.Unsqueeze(op.Transpose(columns.weights, perm=[0, 2, 1]), [1])
    across = op.MatMul(op.cast(turned), weights)
    if resize.antialias:  # Pillow rounds in between, OpenCV does not
        across = _levels(op, across)
    across = op.Reshape(op.Transpose(across, perm=[1, 2, 0, 3]), op.vector(channels, height, -1))
    across = op.Gather(_first(op, across, out_width, 2), rows.sources, axis=1)
    blocks = op.MatMul(rows.weights, op.cast(across))  # [C, B, 16, w]
    down = _first(op, op.Reshape(blocks, op.vector(channels, -1, out_width)), out_height, 1)
    return op.Unsqueeze(op.cast(_levels(op, down)), [0])


def _first(op: Builder, values: str, count: str, axis: int) -> str:
    """The first `count` of a whole number of blocks along an axis."""
    number = op.value(count)
    whole = number is not None and int(number[0]) % _BLOCK == 0
    return values if whole else op.Slice(values, [0], count, [axis])


def _levels(op: Builder, values: str) -> str:
    """Numbers rounded to bytes and clipped, in one pass; halves up, as Pillow has them, by a scale just below 1."""
    return op.QuantizeLinear(values, np.array(1 - 2.0**-20, np.float32), np.array(0, np.uint8))


def _bands(op: Builder, place: Axes, resize: Resize, *, covered: bool) -> tuple[_Band, _Band]:
    """What is read along the height and along the width, in one go where both have as many blocks of results."""
    sides = op.value(place.size)
    if sides is not None and -(-sides[0] // _BLOCK) == -(-sides[1] // _BLOCK):
        rows, columns = _banded(op, place, resize, covered)
        return rows, columns
    (rows,), (columns,) = (_banded(op, axis, resize, covered) for axis in place.apart(op))
    return rows, columns


def _banded(op: Builder, axes: Axes, resize: Resize, covered: bool) -> list[_Band]:
    """What is read along k axes: Pillow's kernels with antialias, which grow with the reduction, else OpenCV's.

    Arguments:
        axes: vectors of k elements; as many blocks of results along each.
        covered: whether each pixel of the input shows one of the picture, whatever its size.
    """
    interpolation, antialias = resize.interpolation, resize.antialias
    unit = op.Max(axes.picture, axes.resized) if antialias else axes.resized
    # all in units of 1 / resized, so that they are whole numbers; some pixels more than the kernel reaches
    width = op.Mul(unit, [int(2 * _SUPPORT[interpolation, antialias])])
    lowest = 0 if antialias else -8  # OpenCV repeats the border
    count = op.Add(op.Div(op.Add(op.Mul(axes.picture, [_BLOCK - 1]), width), axes.resized), [5 - lowest])
    if antialias:
        count = op.Min(count, axes.picture)
    last = op.Sub(axes.picture, [1])
    blocks = op.Div(op.Add(parts(op, axes.size)[0] if _pairs(op, axes) else axes.size, [_BLOCK - 1]), [_BLOCK])
    starts = op.Sub(op.Mul(arange(op, blocks), [_BLOCK]), op.Unsqueeze(axes.offset, [1]))  # [k, B]
    picture, resized, far_end = (op.Unsqueeze(value, [1, 2]) for value in (axes.picture, axes.resized, last))
    left = op.Sub(
        op.Mul(_odd(op, starts), op.Unsqueeze(axes.picture, [1])), op.Unsqueeze(op.Add(width, axes.resized), [1])
    )
    # of negative numbers, one more or less is the same
    first = op.Sub(op.Div(left, op.Unsqueeze(op.Mul(axes.resized, [2]), [1])), [1])
    first = op.Min(op.Max(first, [lowest]), op.Unsqueeze(last, [1]))
    old = op.Add(op.Unsqueeze(first, [2]), arange(op, op.ReduceMax(count, keepdims=1)))  # [k, B, L]
    row = op.Add(op.Unsqueeze(starts, [2]), np.arange(_BLOCK))  # [k, B, 16]
    sources = op.Min(old if antialias else op.Max(old, [0]), far_end)
    if antialias:  # beyond the picture there is nothing, and no kernel reaches so far
        old = op.Add(old, op.Mul(op.Cast(op.Greater(old, far_end), to=_INT64), [_FAR]))
    op.dtype = _DOUBLE  # these few numbers decide ties
    if interpolation == "area":
        weights = _box(op, picture, resized, old, row)
    else:
        # (old + 0.5 - centre of row) * 2 * resized
        distance = op.Sub(
            op.Unsqueeze(op.Mul(_odd(op, old), resized), [2]), op.Unsqueeze(op.Mul(_odd(op, row), picture), [3])
        )  # [k, B, 16, L]
        x = op.Div(op.cast(distance), op.Unsqueeze(op.cast(op.Mul(unit, [2])), [1, 2, 3]))
        weights = _KERNELS[interpolation](op, x, antialias)
    total = op.ReduceSum(weights, [3], keepdims=1)
    inside = None
    if not covered:
        inside = op.cast(op.And(op.GreaterOrEqual(row, [0]), op.Less(row, resized)))
        inside = op.Unsqueeze(inside, [3])
        total = op.Where(op.Greater(inside, 0.5), total, 1.0)
    weights = op.Div(weights, total)
    if antialias:  # Pillow's weights have 22 bits, which decides where a sum lies halfway between two levels
        weights = op.Mul(op.Round(op.Mul(weights, 2.0**_BITS)), 2.0**-_BITS)
    if inside is not None:
        weights = op.Mul(weights, inside)
    op.dtype = _FLOAT
    weights = op.cast(weights)
    begin = op.Max(op.ReduceMin(first, [1], keepdims=0), [0])
    end = op.Min(op.Add(op.ReduceMax(first, [1], keepdims=0), count), axes.picture)
    if not _pairs(op, axes):
        return [_Band(begin, end, op.Squeeze(sources, [0]), op.Squeeze(weights, [0]))]
    begins, ends, counts = (parts(op, value) for value in (begin, end, count))
    bands = []
    for k in range(2):  # one axis reads fewer pixels than the other
        of_axis, stop = op.operand([k, 0]), op.vector(k + 1, counts[k])
        read = op.Squeeze(op.Slice(sources, of_axis, stop, [0, 2]), [0])
        bands.append(_Band(begins[k], ends[k], read, op.Squeeze(op.Slice(weights, of_axis, stop, [0, 3]), [0])))
    return bands


def _pairs(op: Builder, axes: Axes) -> bool:
    """Whether these are both axes rather than one."""
    sides = op.value(axes.size)
    return sides is not None and len(sides) == 2


def _odd(op: Builder, number: str) -> str:
    """2 n + 1: twice the centre of pixel n."""
    return op.Add(op.Mul(number, [2]), [1])


def _box(op: Builder, picture: str, resized: str, old: str, row: str) -> str:
    """1 from -0.5 (excluded) to 0.5; in float64 and in Pillow's order, which decides about pixels on an edge."""
    scale = op.Div(op.cast(picture), op.cast(resized))  # [k, 1, 1]
    centre = op.Mul(op.Add(op.cast(row), 0.5), scale)
    x = op.Add(op.Sub(op.Unsqueeze(op.cast(old), [2]), op.Unsqueeze(centre, [3])), 0.5)
    x = op.Mul(x, op.Unsqueeze(op.Div(1.0, op.Max(scale, 1.0)), [3]))
    return op.cast(op.And(op.Greater(x, -0.5), op.LessOrEqual(x, 0.5)))


def _triangle(op: Builder, x: str, antialias: bool) -> str:
    return op.Relu(op.Sub(1.0, op.Abs(x)))


def _cubic(op: Builder, x: str, antialias: bool) -> str:
    """Keys' kernel: a = -0.5 in Pillow, -0.75 in OpenCV.

    With n = ReLU(1 - |x|) and f = ReLU(2 - |x|) it is a (1 - f) f^2 + (4 a + 3 - 2 n) n^2, without a comparison.
    """
    a = -0.5 if antialias else -0.75
    x = op.Abs(x)
    near, far = op.Relu(op.Sub(1.0, x)), op.Relu(op.Sub(2.0, x))
    outer = op.Mul(op.Add(op.Mul(far, -a), a), op.Mul(far, far))
    return op.Add(outer, op.Mul(op.Sub(4 * a + 3, op.Mul(near, 2.0)), op.Mul(near, near)))


def _lanczos(op: Builder, x: str, antialias: bool) -> str:
    lobes = 3.0
    x = op.Max(op.Abs(x), 1e-6)
    angle = op.Mul(x, float(np.pi))
    part = op.Div(angle, lobes)
    value = op.Div(op.Mul(op.Sin(angle), op.Sin(part)), op.Mul(angle, part))
    return op.Where(op.Less(x, lobes), value, 0.0)


_KERNELS: dict[str, Callable[[Builder, str, bool], str]] = {
    "bilinear": _triangle,
    "bicubic": _cubic,
    "lanczos": _lanczos,
}
