"""Bounds of operators that work element by element, move elements, or quantise them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from onnxcam.graph.view import attributes
from onnxcam.inside import moves
from onnxcam.inside.intervals import Bounds, Inputs, Interval, rule, times

_APPROXIMATE = 256  # units: how far runtimes' exponentials and error functions may be off
_LOWEST_SILU, _LOWEST_GELU, _LOWEST_MISH = -0.27846455, -0.16997121, -0.30884


def _size(interval: Interval) -> np.ndarray:
    return np.where(np.isfinite(interval.magnitude), interval.magnitude, 0)


def _rounded(bounds: Bounds, output: str, interval: Interval, units: int = 4) -> Interval:
    """The interval with the error of some roundings."""
    return interval.widened(units * bounds.unit_of(output) * _size(interval))


@rule("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather",
      "Expand", "Tile", "DepthToSpace", "SpaceToDepth")  # fmt: skip
def _moves(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data = inputs[0]
    if data is None or (node.op_type == "Dropout" and output != node.output[0]):
        return None
    if node.op_type in ("Identity", "Dropout"):
        return data
    ends = [moves.moved(node, output, end, bounds.shapes) for end in (data.low, data.high)]
    if ends[0] is None or ends[1] is None:
        return Interval.of(data.low.min(), data.high.max())
    return Interval(ends[0], ends[1])


@rule("GatherElements", "GatherND", "Compress", "ReverseSequence")
def _any_of(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    return None if inputs[0] is None else Interval.of(inputs[0].low.min(), inputs[0].high.max())


@rule("Concat")
def _concat(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    shapes = [bounds.shape(name) for name in node.input]
    rank = len(bounds.shape(output) or ())
    if any(shape is None for shape in shapes) or any(interval is None for interval in inputs):
        return None
    axis = int(attributes(node)["axis"]) % rank
    sizes = [shape[axis] for shape in shapes if shape is not None]
    parts = [interval.aligned(rank) for interval in inputs if interval is not None]
    low, high = (moves.joined(ends, sizes, axis) for ends in ([p.low for p in parts], [p.high for p in parts]))
    return Interval(low, high)


@rule("Pad")
def _pad(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data = inputs[0]
    if data is None:
        return None
    if str(attributes(node).get("mode", "constant")) != "constant":
        added = data
    elif len(inputs) > 2 and inputs[2] is not None:
        added = Interval.of(inputs[2].low.min(), inputs[2].high.max())
    else:
        added = Interval.of(0.0, 0.0)
    rank = data.low.ndim
    pads = bounds.shapes.integers(node.input[1])
    axes = bounds.shapes.integers(node.input[3]) if len(node.input) > 3 and node.input[3] else list(range(rank))
    if pads is None or axes is None:
        merged = data.hull(range(rank))
    else:
        sides = zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True)
        merged = data.hull([axis % rank for axis, before, after in sides if before or after])
    return Interval.of(np.minimum(merged.low, added.low.min()), np.maximum(merged.high, added.high.max()))


@rule("Resize")
def _resize(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data, attrs = inputs[0], attributes(node)
    crops = attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if data is None or attrs.get("mode", "nearest") == "cubic" or crops:
        return None  # cubic interpolation overshoots
    before, after = bounds.shape(node.input[0]), bounds.shape(output)
    if before is None or after is None:
        return None
    merged = data.hull([axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b])
    return _rounded(bounds, output, merged, 64)


@rule("Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Where")
def _arithmetic(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    parts = [interval for interval in (inputs[1:] if node.op_type == "Where" else inputs) if interval is not None]
    if len(parts) < len(node.input) - (node.op_type == "Where"):
        return None
    first, rest = parts[0], parts[1:]
    for other in rest:
        match node.op_type:
            case "Add" | "Sum" | "Mean":
                error = 4 * bounds.unit_of(output) * (_size(first) + _size(other))
                first = Interval.of(first.low + other.low, first.high + other.high).widened(error)
            case "Sub":
                error = 4 * bounds.unit_of(output) * (_size(first) + _size(other))
                first = Interval.of(first.low - other.high, first.high - other.low).widened(error)
            case "Mul":
                first = _rounded(bounds, output, times(first, other))
            case "Div":
                inverse = _inverse(other)
                first = _rounded(bounds, output, times(first, inverse))
            case "Max":
                first = Interval.of(np.maximum(first.low, other.low), np.maximum(first.high, other.high))
            case "Min":
                first = Interval.of(np.minimum(first.low, other.low), np.minimum(first.high, other.high))
            case _:
                first = Interval.of(np.minimum(first.low, other.low), np.maximum(first.high, other.high))
    if node.op_type == "Mean":
        first = _rounded(bounds, output, Interval.of(first.low / len(parts), first.high / len(parts)))
    if node.op_type == "Mul" and _is_silu(bounds, node):
        first = Interval.of(np.maximum(first.low, _LOWEST_SILU * (1 + 1e-2)), first.high)
    return first


def _inverse(interval: Interval) -> Interval:
    """1 / x; unbounded where x may be 0."""
    crosses = (interval.low <= 0) & (interval.high >= 0)
    low = np.where(crosses, -np.inf, 1 / np.where(crosses, 1, interval.high))
    high = np.where(crosses, np.inf, 1 / np.where(crosses, 1, interval.low))
    return Interval.of(low, high)


def _is_silu(bounds: Bounds, node: onnx.NodeProto) -> bool:
    """Whether a product is that of a value and its own Sigmoid."""
    for one, other in (node.input, reversed(node.input)):
        producer = bounds.graph.producer.get(other)
        if producer is not None and producer.op_type == "Sigmoid" and producer.input[0] == one:
            return True
    return False


def _rising(*operators: str, units: int = 0) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Register an operator that never falls as its data rises, by its function of the data and the attributes."""

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        @rule(*operators)
        def _(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
            if inputs[0] is None:
                return None
            low, high = (function(end, attributes(node)) for end in (inputs[0].low, inputs[0].high))
            result = Interval.of(low, high)
            if not units:
                return result
            return result.widened(units * bounds.unit_of(output) * (_size(result) + (units == _APPROXIMATE)))

        return function

    return register


@_rising("Relu")
def _relu(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(np.maximum(x, 0))


@_rising("Floor")
def _floor(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(np.floor(x))


@_rising("Ceil")
def _ceil(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(np.ceil(x))


@_rising("Round")
def _round(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(np.rint(x))


@_rising("Sqrt", units=4)
def _sqrt(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(np.sqrt(np.maximum(x, 0)))


@_rising("Sigmoid", units=_APPROXIMATE)
def _sigmoid(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


@_rising("Tanh", units=_APPROXIMATE)
def _tanh(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(np.tanh(x))


@_rising("Exp", units=_APPROXIMATE)
def _exp(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(np.exp(x))


@_rising("Softplus", units=_APPROXIMATE)
def _softplus(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(np.logaddexp(0, x))


@_rising("Softsign", units=_APPROXIMATE)
def _softsign(x: np.ndarray, attrs: dict[str, float]) -> np.ndarray:
    return np.asarray(np.where(np.isinf(x), np.sign(x), x / (1 + np.abs(x))))


@rule("HardSigmoid")
def _hard_sigmoid(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    attrs = attributes(node)
    alpha, beta = float(attrs.get("alpha", 0.2)), float(attrs.get("beta", 0.5))
    if inputs[0] is None:
        return None
    line = times(inputs[0], Interval.of(alpha, alpha))
    line = Interval.of(line.low + beta, line.high + beta)
    line = line.widened(8 * bounds.unit_of(output) * (_size(line) + abs(beta)))
    return Interval.of(np.clip(line.low, 0, 1), np.clip(line.high, 0, 1))


@rule("LeakyRelu", "Elu", "Celu", "Selu", "PRelu", "ThresholdedRelu")
def _bent(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    """x where it is positive (times a factor), something else on the left."""
    data, attrs, kind = inputs[0], attributes(node), node.op_type
    if data is None:
        return None
    right = Interval.of(np.maximum(data.low, 0), np.maximum(data.high, 0))
    left = Interval.of(np.minimum(data.low, 0), np.minimum(data.high, 0))
    if kind == "ThresholdedRelu":
        return Interval.of(np.where(right.low > float(attrs.get("alpha", 1.0)), right.low, 0), right.high)
    if kind in ("LeakyRelu", "PRelu"):
        slope = inputs[1] if kind == "PRelu" else Interval.of(attrs.get("alpha", 0.01), attrs.get("alpha", 0.01))
        if slope is None:
            return None
        bent = times(left, slope)
    else:
        alpha = float(attrs.get("alpha", 1.67326319217681884765625 if kind == "Selu" else 1.0))
        gamma = float(attrs.get("gamma", 1.05070102214813232421875)) if kind == "Selu" else 1.0
        width = alpha if kind == "Celu" else 1.0
        if alpha <= 0 or gamma <= 0:
            return None
        bent = Interval.of(gamma * alpha * np.expm1(left.low / width), gamma * alpha * np.expm1(left.high / width))
        right = Interval.of(gamma * right.low, gamma * right.high)
    # where the sign of x is certain, only one side counts
    low = np.where(data.low >= 0, right.low, np.minimum(bent.low, right.low))
    high = np.where(data.high <= 0, bent.high, np.maximum(bent.high, right.high))
    result = Interval.of(low, high)
    return result.widened(_APPROXIMATE * bounds.unit_of(output) * _size(result))


@rule("Gelu", "HardSwish", "Mish", "Swish")
def _dips(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    """x on the right, 0 on the left, a dip below 0 in between."""
    data, kind = inputs[0], node.op_type
    if data is None or (kind == "Swish" and float(attributes(node).get("alpha", 1.0)) != 1.0):
        return None
    dip = {"Gelu": _LOWEST_GELU, "HardSwish": -0.375, "Mish": _LOWEST_MISH, "Swish": _LOWEST_SILU}[kind]
    low = np.where(data.low >= 0, 0.0, dip * (1 + 1e-2))
    high = np.maximum(data.high, 0.0)
    result = Interval.of(low, high)
    return result.widened(_APPROXIMATE * bounds.unit_of(output) * (_size(result) > 0) * (1 + _size(result)))


@rule("Clip")
def _clip(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data = inputs[0]
    if data is None:
        return None
    low, high = data.low, data.high
    for place, function in ((1, np.maximum), (2, np.minimum)):
        if len(node.input) > place and node.input[place]:
            limit = inputs[place]
            if limit is None:
                continue
            low, high = function(low, limit.low.min()), function(high, limit.high.max())
    return Interval.of(low, high)


@rule("Abs")
def _abs(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data = inputs[0]
    if data is None:
        return None
    least = np.where((data.low <= 0) & (data.high >= 0), 0, np.minimum(np.abs(data.low), np.abs(data.high)))
    return Interval.of(least, data.magnitude)


@rule("Neg")
def _neg(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    return None if inputs[0] is None else Interval.of(-inputs[0].high, -inputs[0].low)


@rule("Reciprocal")
def _reciprocal(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    return None if inputs[0] is None else _rounded(bounds, output, _inverse(inputs[0]))


@rule("Pow")
def _pow(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data, power = inputs[0], bounds.array(node.input[1])
    if data is None or power is None or power.size != 1 or float(power.reshape(-1)[0]) not in (2.0, 3.0):
        return None
    if float(power.reshape(-1)[0]) == 3.0:
        return _rounded(bounds, output, Interval.of(data.low**3, data.high**3), 64)
    size = _abs(bounds, node, output, inputs)
    return None if size is None else _rounded(bounds, output, Interval.of(size.low**2, size.high**2), 64)


@rule("Erf", "Sin", "Cos")
def _within_one(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    return Interval.of(-1.0, 1.0).widened(_APPROXIMATE * bounds.unit_of(output))


@rule("Softmax", "Hardmax")
def _shares(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    return Interval.of(0.0, 1.0).widened(_APPROXIMATE * bounds.unit_of(output))


@rule("Cast", "CastLike")
def _cast(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data, kind = inputs[0], bounds.graph.dtype(output)
    if data is None:
        return None
    if kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        return _rounded(bounds, output, data)
    if kind in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
        return Interval.of(np.floor(data.low), np.ceil(data.high))
    return None  # what does not fit into few bits wraps


@rule("QuantizeLinear")
def _quantize(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    """One step wider on both sides: a runtime that computes in integers rounds to either neighbour."""
    scale, zero = bounds.array(node.input[1]), np.zeros((), np.uint8)
    if len(node.input) > 2 and node.input[2]:
        stored = bounds.array(node.input[2])
        if stored is None:
            return None
        zero = stored
    if inputs[0] is None or scale is None or zero.dtype.kind not in "iu":
        return None
    limits = np.iinfo(zero.dtype)
    factor, shift = (_along(array, node, inputs[0].low.ndim) for array in (scale, zero))
    low, high = (np.rint(end / factor) + shift for end in (inputs[0].low, inputs[0].high))
    return Interval.of(np.clip(low - 1, limits.min, limits.max), np.clip(high + 1, limits.min, limits.max))


@rule("DequantizeLinear")
def _dequantize(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data, scale = inputs[0], bounds.array(node.input[1])
    zero = bounds.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
    if data is None or scale is None or zero is None:
        return None
    factor, shift = (_along(array, node, data.low.ndim) for array in (scale, zero))
    return _rounded(
        bounds, output, times(Interval.of(data.low - shift, data.high - shift), Interval.of(factor, factor))
    )


def _along(array: np.ndarray, node: onnx.NodeProto, rank: int) -> np.ndarray:
    """Scales or zero points per channel, along their axis."""
    values = array.astype(np.float64)
    if values.size == 1 or values.ndim != 1 or rank == 0:
        return values.reshape(()) if values.size == 1 else values
    axis = int(attributes(node).get("axis", 1)) % rank
    return values.reshape([-1 if at == axis else 1 for at in range(rank)])
