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
_FAR = 1 << 20  # pixels
# support of each kernel without antialiasing as OpenCV has it; with it as Pillow has it
_SUPPORT = {("bilinear", True): 1.0, ("bicubic", True): 2.0, ("area", True): 0.5, ("lanczos", True): 3.0}
_SUPPORT |= {("bilinear", False): 1.0, ("bicubic", False): 2.0}


class Axis(NamedTuple):
    """One axis of a picture that is resized and placed on the model's input: int64 vectors of one element.

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


class _Band(NamedTuple):
    """The pixels that each block of results reads, int64 `[B, L]`, and their weights, `[B, 16, L]`."""

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


def axes(op: Builder, spec: Preprocess, height: str, width: str) -> tuple[Axis, Axis]:
    """Where a picture of this height and width, int64 `[1]` each, comes to lie on the model's input."""
    resize, crop = spec.resize, spec.crop
    resized: tuple[str, ...] = (height, width) if resize is None else _resized(op, resize, height, width)
    sizes = resized
    offsets: tuple[str, ...] = (op.operand([0]), op.operand([0]))
    if resize is not None and resize.mode == "letterbox":
        sizes = tuple(op.operand([side]) for side in _pair(resize.size))
        offsets = tuple(op.Div(op.Sub(side, r), [2]) for side, r in zip(sizes, resized, strict=True))
    if crop is not None:
        moved = tuple(_anchored(op, sizes[k], crop, k) for k in range(2))
        offsets = tuple(op.Add(offset, move) for offset, move in zip(offsets, moved, strict=True))
        sizes = tuple(op.operand([side]) for side in crop.size)
    first, second = (Axis(*one) for one in zip((height, width), resized, offsets, sizes, strict=True))
    return first, second


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _resized(op: Builder, resize: Resize, height: str, width: str) -> tuple[str, str]:
    """`Resize.resized` in the graph; float64 where Python's floats round, so that ties fall the same way."""
    if resize.mode == "stretch":
        h, w = _pair(resize.size)
        return op.operand([h]), op.operand([w])
    if resize.mode == "shortest" and isinstance(resize.size, int):
        short = op.Min(height, width)
        return op.Div(op.Mul(height, [resize.size]), short), op.Div(op.Mul(width, [resize.size]), short)
    box = _pair(resize.size)
    sides = [op.Cast(side, to=_DOUBLE) for side in (height, width)]
    ratios = [op.Div(side, np.array([b], np.float64)) for side, b in zip(sides, box, strict=True)]
    letterbox = resize.mode == "letterbox"
    ratio = op.Max(*ratios) if letterbox else op.Min(*ratios)
    fitted = [op.Cast(op.Round(op.Div(side, ratio)), to=_INT64) for side in sides]
    if letterbox:
        fitted = [op.Min(op.Max(side, [1]), [b]) for side, b in zip(fitted, box, strict=True)]
    else:
        fitted = [op.Max(side, [b]) for side, b in zip(fitted, box, strict=True)]
    return fitted[0], fitted[1]


def _anchored(op: Builder, old: str, crop: Crop, axis: int) -> str:
    """`Crop.offset` along one axis."""
    vertical, _, horizontal = crop.anchor.partition("_")
    anchor = crop.anchor if crop.anchor.startswith("center") else (vertical, horizontal)[axis]
    new = [crop.size[axis]]
    if anchor in ("top", "left"):
        return op.operand([0])
    if anchor in ("bottom", "right"):
        return op.Sub(new, old)
    cut = op.Max(op.Sub(old, new), [0])
    half = op.Div(cut, [2])
    if anchor == "center":  # half to even
        half = op.Add(half, op.Mul(op.Mod(half, [2]), op.Mod(cut, [2])))
    return op.Sub(op.Div(op.Max(op.Sub(new, old), [0]), [2]), half)


def prepare(op: Builder, spec: Preprocess, pixels: str, place: tuple[Axis, Axis], layout: str, dtype: str) -> str:
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


def _nearest(op: Builder, pixels: str, place: tuple[Axis, Axis]) -> str:
    """The pixel under each new one's centre, 0 outside the picture: float `[1, C, h, w]`."""
    masks = []
    for k, axis in enumerate(place):
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


def _inside(op: Builder, row: str, axis: Axis) -> str:
    """1 where a position on the resized picture lies in it, else 0."""
    return op.cast(op.And(op.GreaterOrEqual(row, [0]), op.Less(row, axis.resized)))


def _padding(op: Builder, spec: Preprocess, resize: Resize, place: tuple[Axis, Axis]) -> str:
    """The letterbox's colour where the picture is not, `[1, C, h, w]`; black where a crop reaches beyond the box."""
    box = _pair(resize.size)
    crop = spec.crop or Crop(box, "top_left")
    moved = crop.offset(box)
    canvas = np.zeros((1, 1, *crop.size), np.float32)
    canvas[..., max(moved[0], 0) : max(moved[0] + box[0], 0), max(moved[1], 0) : max(moved[1] + box[1], 0)] = 1
    rows, columns = (_inside(op, op.Sub(arange(op, axis.size), axis.offset), axis) for axis in place)
    color = np.broadcast_to(np.rint(np.clip(resize.pad_value, 0, 255)), spec.channels).astype(np.float32)
    return op.Mul(op.Sub(canvas, op.Mul(op.Unsqueeze(rows, [1]), columns)), color.reshape(1, -1, 1, 1))


def _resample(op: Builder, pixels: str, place: tuple[Axis, Axis], resize: Resize, spec: Preprocess) -> str:
    """Resize along the width, then along the height: float `[1, C, h, w]`, whole numbers from 0 to 255."""
    channels, gray = spec.channels, spec.color == "L"
    covered = _covers(spec, resize)
    bands = [_band(op, axis, resize.interpolation, resize.antialias, covered=covered) for axis in place]
    rows, columns = bands
    height, width = (axis.picture for axis in place)
    if spec.crop is not None:  # what the result reads
        starts = [op.ReduceMin(op.Reshape(band.sources, [-1]), keepdims=1) for band in bands]
        stops = [op.Add(op.ReduceMax(op.Reshape(band.sources, [-1]), keepdims=1), [1]) for band in bands]
        pixels = op.Slice(pixels, op.vector(*starts), op.vector(*stops), [0, 1])
        rows, columns = (
            band._replace(sources=op.Sub(band.sources, start)) for band, start in zip(bands, starts, strict=True)
        )
        height, width = (op.Sub(stop, start) for start, stop in zip(starts, stops, strict=True))
    # pixels stay bytes for as long as they are moved; they are the left operand of the first product, because ONNX
    # Runtime copies the right one before it multiplies, and a Reshape keeps it from turning the left one while it does
    turned = op.Transpose(op.Reshape(pixels, op.vector(height, -1)), perm=[1, 0])
    turned = op.Gather(op.Reshape(turned, op.vector(width, -1)), columns.sources, axis=0)  # [B, L, C * H]
    count = op.Shape(columns.sources, start=1, end=2)
    turned = op.Reshape(op.Transpose(turned, perm=[0, 2, 1]), op.vector(-1, channels, height, count))
    weights = op.Unsqueeze(op.Transpose(columns.weights, perm=[0, 2, 1]), [1])
    across = op.MatMul(turned if gray else floats(op, turned), weights)
    if resize.antialias:  # Pillow rounds in between, OpenCV does not
        across = levels(op, across)
    across = op.Reshape(op.Transpose(across, perm=[1, 2, 0, 3]), op.vector(channels, height, -1))
    across = op.Gather(_first(op, across, place[1].size, 2), rows.sources, axis=1)
    blocks = op.MatMul(rows.weights, floats(op, across) if resize.antialias else across)  # [C, B, 16, w]
    down = _first(op, op.Reshape(blocks, op.vector(channels, -1, place[1].size)), place[0].size, 1)
    return op.Unsqueeze(floats(op, levels(op, down)), [0])


def _first(op: Builder, values: str, count: str, axis: int) -> str:
    """The first `count` of a whole number of blocks along an axis."""
    number = op.value(count)
    whole = number is not None and int(number[0]) % _BLOCK == 0
    return values if whole else op.Slice(values, [0], count, [axis])


def floats(op: Builder, pixels: str, factor: float = 1.0) -> str:
    """Bytes as float32, times a factor: unlike a Cast it runs on all cores, with vector instructions."""
    return op.DequantizeLinear(pixels, np.array(factor, np.float32))


def levels(op: Builder, values: str) -> str:
    """Numbers rounded to bytes and clipped, in one pass; halves up, as Pillow has them, by a scale just below 1."""
    return op.QuantizeLinear(values, np.array(1 - 2.0**-20, np.float32), np.array(0, np.uint8))


def _band(op: Builder, axis: Axis, interpolation: str, antialias: bool, *, covered: bool) -> _Band:
    """The weights of an axis: Pillow's with antialias, whose kernel grows with the reduction, else OpenCV's.

    Arguments:
        covered: whether each pixel of the input shows one of the picture, whatever its size.
    """
    support = _SUPPORT[interpolation, antialias]
    unit = op.Max(axis.picture, axis.resized) if antialias else axis.resized
    # all in units of 1 / resized, so that they are whole numbers; some pixels more than the kernel reaches
    width = op.Mul(unit, [int(2 * support)])
    lowest = 0 if antialias else -8  # OpenCV repeats the border
    count = op.Add(op.Div(op.Add(op.Mul(axis.picture, [_BLOCK - 1]), width), axis.resized), [5 - lowest])
    if antialias:
        count = op.Min(count, axis.picture)
    last = op.Sub(axis.picture, [1])
    blocks = op.Div(op.Add(axis.size, [_BLOCK - 1]), [_BLOCK])
    start = op.Sub(op.Mul(arange(op, blocks), [_BLOCK]), axis.offset)  # [B]
    left = op.Sub(op.Mul(_odd(op, start), axis.picture), op.Add(width, axis.resized))
    first = op.Sub(op.Div(left, op.Mul(axis.resized, [2])), [1])  # of negative numbers, one more or less is the same
    first = op.Min(op.Max(first, [lowest]), last)
    old = op.Add(op.Unsqueeze(first, [1]), arange(op, count))  # [B, L]
    row = op.Add(op.Unsqueeze(start, [1]), np.arange(_BLOCK))  # [B, 16]
    sources = op.Min(old, last) if antialias else _clip(op, old, axis.picture)
    if antialias:  # beyond the picture there is nothing, and no kernel reaches so far
        old = op.Add(old, op.Mul(op.Cast(op.Greater(old, last), to=_INT64), [_FAR]))
    op.dtype = _DOUBLE  # these few numbers decide ties
    if interpolation == "area":
        weights = _box(op, axis, old, row)
    else:
        # (old + 0.5 - centre of row) * 2 * resized
        distance = op.Sub(
            op.Unsqueeze(op.Mul(_odd(op, old), axis.resized), [1]),
            op.Unsqueeze(op.Mul(_odd(op, row), axis.picture), [2]),
        )  # [B, 16, L]
        x = op.Div(op.cast(distance), op.cast(op.Mul(unit, [2])))
        weights = _KERNELS[interpolation](op, x, antialias)
    total = op.ReduceSum(weights, [2], keepdims=1)
    inside = None if covered else op.Unsqueeze(_inside(op, row, axis), [2])
    if inside is not None:
        total = op.Where(op.Greater(inside, 0.5), total, 1.0)
    weights = op.Div(weights, total)
    if antialias:  # Pillow's weights have 22 bits, which decides where a sum lies halfway between two levels
        weights = op.Mul(op.Round(op.Mul(weights, 2.0**_BITS)), 2.0**-_BITS)
    if inside is not None:
        weights = op.Mul(weights, inside)
    op.dtype = _FLOAT
    return _Band(sources, op.cast(weights))


def _odd(op: Builder, number: str) -> str:
    """2 n + 1: twice the centre of pixel n."""
    return op.Add(op.Mul(number, [2]), [1])


def _covers(spec: Preprocess, resize: Resize) -> bool:
    """Whether the resized picture covers the whole input, whatever the picture's size."""
    if resize.mode == "letterbox":
        return False
    return spec.crop is None or all(new <= old for new, old in zip(spec.crop.size, _pair(resize.size), strict=True))


def _box(op: Builder, axis: Axis, old: str, row: str) -> str:
    """1 from -0.5 (excluded) to 0.5; in float64 and in Pillow's order, which decides about pixels on an edge."""
    scale = op.Div(op.Cast(axis.picture, to=_DOUBLE), op.Cast(axis.resized, to=_DOUBLE))
    half, one = np.array([0.5]), np.array([1.0])
    centre = op.Mul(op.Add(op.Cast(row, to=_DOUBLE), half), scale)
    x = op.Add(op.Sub(op.Unsqueeze(op.Cast(old, to=_DOUBLE), [1]), op.Unsqueeze(centre, [2])), half)
    x = op.Mul(x, op.Div(one, op.Max(scale, one)))
    return op.cast(op.And(op.Greater(x, -half), op.LessOrEqual(x, half)))


def _triangle(op: Builder, x: str, antialias: bool) -> str:
    return op.Relu(op.Sub(1.0, op.Abs(x)))


def _cubic(op: Builder, x: str, antialias: bool) -> str:
    """Keys' kernel: a = -0.5 in Pillow, -0.75 in OpenCV."""
    a = -0.5 if antialias else -0.75
    x = op.Abs(x)
    square = op.Mul(x, x)
    near = op.Add(op.Mul(op.Sub(op.Mul(x, a + 2), a + 3), square), 1.0)
    far = op.Mul(op.Sub(op.Mul(op.Add(op.Mul(op.Sub(x, 5.0), x), 8.0), x), 4.0), a)
    return op.Where(op.Less(x, 1.0), near, op.Where(op.Less(x, 2.0), far, 0.0))


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
