"""Bounds of every value of a network for all pictures, by interval arithmetic with outward rounding.

Real arithmetic alone would not bound what a runtime computes: it rounds, in an order of its own. So each operator's
bounds are widened by the largest error that a sum of as many terms can have in the arithmetic of the runtime (Higham,
Accuracy and Stability of Numerical Algorithms, section 3.1), with a margin. An operator without a rule is unbounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx

from onnxcam.errors import OnnxcamError
from onnxcam.graph.static_shapes import StaticShapes
from onnxcam.graph.view import Graph, attributes, uses
from onnxcam.inside import moves
from onnxcam.inside.convolutions import constant

# half the distance from 1 to the next number: of float32 as CPUs compute, and of whatever accelerators use instead
UNIT, COARSE_UNIT = 2.0**-24, 2.0**-8
_FLOAT16_UNIT = 2.0**-11
_SIZES = frozenset({"Shape", "Size", "EyeLike"})


@dataclass(frozen=True)
class Interval:
    """The lowest and the highest value of each element, float64, of the value's rank; an axis of length 1 where they
    are the same all along it.
    """

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, low: np.ndarray | float, high: np.ndarray | float) -> Interval:
        """An interval; what is no number has no bound."""
        lowest, highest = np.asarray(low, np.float64), np.asarray(high, np.float64)
        return cls(np.where(np.isnan(lowest), -np.inf, lowest), np.where(np.isnan(highest), np.inf, highest))

    @property
    def magnitude(self) -> np.ndarray:
        """The largest absolute value of each element."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))

    def aligned(self, rank: int) -> Interval:
        """The interval with axes of length 1 in front."""
        return Interval(moves.aligned(self.low, rank), moves.aligned(self.high, rank))

    def widened(self, error: np.ndarray | float) -> Interval:
        """The interval with an error added on both sides, rounded outward."""
        low, high = self.low - error, self.high + error
        return Interval.of(np.nextafter(low, -np.inf), np.nextafter(high, np.inf))

    def hull(self, axes: Sequence[int], *, keep: bool = True) -> Interval:
        """The interval over all elements along some axes."""
        return Interval(self.low.min(axis=tuple(axes), keepdims=keep), self.high.max(axis=tuple(axes), keepdims=keep))


UNBOUNDED = Interval(np.array(-np.inf), np.array(np.inf))
Inputs = list[Interval | None]
Rule = Callable[["Bounds", onnx.NodeProto, str, Inputs], Interval | None]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register the rule of some operators; it returns None where the value is unbounded."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


class Bounds:
    """The bounds of some values of a graph.

    Arguments:
        graph: a normalised graph.
        shapes: of its values.
        picture: the input, and the bounds of its elements.
        values: whose bounds are needed; others are dropped on the way.
        unit: the unit roundoff of the runtime's arithmetic.
    """

    def __init__(
        self,
        graph: Graph,
        shapes: StaticShapes,
        picture: tuple[str, Interval],
        values: Iterable[str],
        unit: float = UNIT,
    ) -> None:
        self.graph, self.shapes, self.unit = graph, shapes, unit
        self._intervals: dict[str, Interval] = {picture[0]: picture[1]}
        self._constants: dict[str, np.ndarray | None] = {}
        needed = set(values)
        last = needed & set(graph.position)
        stop = max((graph.position[value] for value in last), default=-1)
        remaining = {name: len(nodes) for name, nodes in graph.consumers.items()}
        for index, node in enumerate(graph.nodes[: stop + 1]):
            read = list(dict.fromkeys(uses(node)))
            varying = [name for name in read if not graph.is_constant(name)]
            if varying and index <= stop:
                self._visit(node)
            for name in read:
                remaining[name] -= 1
                if not remaining[name] and name not in needed:
                    self._intervals.pop(name, None)

    def interval(self, value: str) -> Interval:
        """The bounds of a value; infinite where none are known."""
        return self._intervals.get(value, UNBOUNDED)

    def array(self, value: str) -> np.ndarray | None:
        """A constant value, None if it varies or cannot be computed."""
        if not value or not self.graph.is_constant(value):
            return None
        if value not in self._constants:
            try:
                self._constants[value] = constant(self.graph, value)
            except OnnxcamError:
                self._constants[value] = None
        return self._constants[value]

    def shape(self, value: str) -> tuple[int, ...] | None:
        """The static shape of a value, None if it is unknown."""
        return self.shapes.shape(value)

    def unit_of(self, value: str) -> float:
        """The unit roundoff in which a value is computed."""
        narrow = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        kind = self.graph.dtype(value)
        if kind not in narrow:
            return self.unit
        return max(self.unit, _FLOAT16_UNIT if kind == narrow[0] else COARSE_UNIT)

    def _visit(self, node: onnx.NodeProto) -> None:
        if node.op_type in _SIZES:
            return
        inputs = [self._input(name) for name in node.input]
        function = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        for output in node.output:
            if not output:
                continue
            shape = self.shape(output)
            with np.errstate(all="ignore"):
                result = function(self, node, output, inputs) if function is not None and shape is not None else None
            if result is not None:
                self._intervals[output] = _fitting(result, shape or ())

    def _input(self, value: str) -> Interval | None:
        """The bounds of a value, of its full rank; None for an input that is left out."""
        if not value:
            return None
        array = self.array(value)
        if array is not None:
            return None if array.dtype.kind not in "fiub" else Interval.of(array, array)
        interval, shape = self.interval(value), self.shape(value)
        return interval if shape is None else interval.aligned(len(shape))


def _fitting(interval: Interval, shape: tuple[int, ...]) -> Interval:
    """The interval, or the hull of all of it where it contradicts the value's shape."""
    interval = interval if interval.low.ndim >= len(shape) else interval.aligned(len(shape))
    sides = zip(interval.low.shape, shape, strict=False)
    if interval.low.ndim == len(shape) and all(side in (1, size) for side, size in sides):
        return Interval.of(interval.low, interval.high)
    return Interval.of(interval.low.min(), interval.high.max())


def product(matrix: np.ndarray, low: np.ndarray, high: np.ndarray) -> Interval:
    """`matrix @ x` for x from low to high, along their first axis; a weight of 0 cancels what is unbounded."""
    positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)

    def dot(a: np.ndarray, x: np.ndarray, infinite: float) -> np.ndarray:
        finite = a @ np.where(np.isfinite(x), x, 0)
        endless = (a != 0).astype(np.float64) @ np.isinf(x).astype(np.float64) > 0
        return np.where(endless, infinite, finite)

    return Interval.of(
        dot(positive, low, -np.inf) + dot(negative, high, -np.inf),
        dot(positive, high, np.inf) + dot(negative, low, np.inf),
    )


def times(a: Interval, b: Interval) -> Interval:
    """The product of elements of two intervals; 0 times what is unbounded is 0, as runtimes' numbers are finite."""
    corners = [np.where((x == 0) | (y == 0), 0.0, x * y) for x in (a.low, a.high) for y in (b.low, b.high)]
    return Interval.of(np.minimum.reduce(corners), np.maximum.reduce(corners))


@rule("Conv", "ConvTranspose")
def _convolution(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data, weight = inputs[0], bounds.array(node.input[1])
    bias = bounds.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if data is None or weight is None or bias is None or weight.ndim < 3:
        return None
    attrs, rank = attributes(node), weight.ndim
    group, shape = int(attrs.get("group", 1)), bounds.shape(node.input[0])
    if shape is None:
        return None
    merged = data.hull(range(2, rank))
    low, high = (np.broadcast_to(x.max(0).reshape(-1), (shape[1],)) for x in (-merged.low, merged.high))
    low = -low
    if _pads(attrs) or node.op_type == "ConvTranspose":
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    weights = weights_of_array(node, weight, group).astype(np.float64)
    parts = []
    outputs, each = len(weights) // group, weights.shape[1]
    for index in range(group):
        some = weights[index * outputs : (index + 1) * outputs]
        # the weights at all places of the kernel, positive and negative ones apart, as each place has its own element
        taps = np.concatenate([np.maximum(some, 0), np.minimum(some, 0)], axis=1).reshape(outputs, 2 * each, -1).sum(-1)
        x, y = (end[index * each : (index + 1) * each] for end in (low, high))
        parts.append(product(taps, np.concatenate([x, x]), np.concatenate([y, y])))
    result = Interval.of(np.concatenate([p.low for p in parts]), np.concatenate([p.high for p in parts]))
    largest = np.where(np.isfinite(low) & np.isfinite(high), np.maximum(np.abs(low), np.abs(high)), 0)
    power = np.abs(weights).reshape(len(weights), each, -1).sum(-1)
    total = np.array([power[o] @ largest[o // outputs * each : (o // outputs + 1) * each] for o in range(len(weights))])
    terms = weights[0].size + 8
    error = 2 * terms * bounds.unit_of(output) * (total + np.abs(bias))
    result = Interval.of(result.low + bias, result.high + bias).widened(error)
    dims = [1, -1] + [1] * (rank - 2)
    return Interval(result.low.reshape(dims), result.high.reshape(dims))


def weights_of_array(node: onnx.NodeProto, weight: np.ndarray, group: int) -> np.ndarray:
    """Weights as `[O, I / group, ...]`."""
    if node.op_type == "Conv":
        return weight
    inputs, outputs = weight.shape[:2]
    parts = weight.reshape(group, inputs // group, outputs, *weight.shape[2:])
    return np.moveaxis(parts, 1, 2).reshape(group * outputs, inputs // group, *weight.shape[2:])


def _pads(attrs: dict[str, object]) -> bool:
    pads = attrs.get("pads")
    explicit = isinstance(pads, Sequence) and any(pads)
    return explicit or attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


@rule("MatMul", "Gemm")
def _matrix_product(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    attrs = attributes(node)
    shapes = [bounds.shape(name) for name in node.input[:2]]
    if shapes[0] is None or shapes[1] is None or len(shapes[0]) < 2 or len(shapes[1]) < 2:
        return None
    a, b = (
        _turned(interval, bool(attrs.get(key, 0)))
        for interval, key in zip(inputs[:2], ("transA", "transB"), strict=True)
    )
    if a is None or b is None:
        return None
    length = shapes[0][-2] if attrs.get("transA", 0) else shapes[0][-1]
    right, left = (bounds.array(name) is not None for name in (node.input[1], node.input[0]))
    if right and b.low.ndim == 2:
        ends = [np.moveaxis(np.broadcast_to(x, (*x.shape[:-1], length)), -1, 0) for x in (a.low, a.high)]
        flat = [x.reshape(length, -1) for x in ends]
        factor = product(b.low.T, flat[0], flat[1])
        result = Interval(*(np.moveaxis(x.reshape(-1, *ends[0].shape[1:]), 0, -1) for x in (factor.low, factor.high)))
        peak = _finite(a.magnitude.max())
        error = peak * np.abs(b.low).sum(axis=0)
    elif left and a.low.ndim == 2 and b.low.ndim == 2:
        x, y = (np.broadcast_to(x, (length, x.shape[-1])) for x in (b.low, b.high))
        result = product(a.low, x, y)
        error = _finite(b.magnitude.max()) * np.abs(a.low).sum(axis=1)[:, None]
    else:  # both vary: as many products as the axis is long
        both = times(Interval.of(a.low.min(), a.high.max()), Interval.of(b.low.min(), b.high.max()))
        rank = len(bounds.shape(output) or ())
        result = Interval.of(length * both.low, length * both.high).aligned(rank)
        error = np.asarray(_finite(np.maximum(np.abs(result.low), np.abs(result.high)).max()))
    alpha, beta = float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0))
    result = times(result, Interval.of(alpha, alpha))
    error = error * abs(alpha)
    if len(inputs) > 2 and inputs[2] is not None:
        bias = times(inputs[2], Interval.of(beta, beta))
        result = Interval.of(result.low + bias.low, result.high + bias.high)
        error = error + _finite(bias.magnitude.max())
    return result.widened(2 * (length + 8) * bounds.unit_of(output) * error)


def _finite(number: float) -> float:
    return float(number) if np.isfinite(number) else 0.0


def _turned(interval: Interval | None, turn: bool) -> Interval | None:
    if interval is None or not turn:
        return interval
    return Interval(interval.low.swapaxes(-1, -2), interval.high.swapaxes(-1, -2))


@rule("BatchNormalization")
def _batch_normalization(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    arrays = [bounds.array(name) for name in node.input[1:5]]
    data = inputs[0]
    if data is None or any(array is None for array in arrays):
        return None
    dims = [1, -1] + [1] * (data.low.ndim - 2)
    scale, bias, mean, variance = (np.asarray(array, np.float64).reshape(dims) for array in arrays)
    factor = scale / np.sqrt(variance + float(attributes(node).get("epsilon", 1e-5)))
    result = times(Interval.of(data.low - mean, data.high - mean), Interval.of(factor, factor))
    size = np.where(np.isfinite(data.magnitude), data.magnitude, 0)
    error = 16 * bounds.unit_of(output) * (np.abs(factor) * (size + np.abs(mean)) + np.abs(bias))
    return Interval.of(result.low + bias, result.high + bias).widened(error)


@rule("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")
def _normalization(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    """No element of n lies more than the square root of n standard deviations from their mean."""
    shape, kind = bounds.shape(node.input[0]), node.op_type
    scale = bounds.array(node.input[1]) if len(node.input) > 1 else None
    bias = bounds.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if shape is None or scale is None or bias is None or output != node.output[0]:
        return None
    attrs = attributes(node)
    if kind in ("LayerNormalization", "RMSNormalization"):
        count = prod(shape[int(attrs.get("axis", -1)) % len(shape) :])
        dims: list[int] = list(scale.shape)
    else:
        count = prod(shape[2:]) * (shape[1] // int(attrs.get("num_groups", shape[1])))
        dims = [1, -1] + [1] * (len(shape) - 2)
        if scale.size != shape[1]:
            return None
    reach = np.abs(scale.astype(np.float64)).reshape(dims) * count**0.5
    shift = bias.astype(np.float64).reshape(dims if bias.size > 1 else [1])
    error = 2 * (count + 64) * bounds.unit_of(output) * (reach + np.abs(shift))
    return Interval.of(shift - reach, shift + reach).widened(error).aligned(len(shape))


@rule("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
def _pool(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data, shape = inputs[0], bounds.shape(node.input[0])
    if data is None or shape is None or output != node.output[0]:
        return None
    merged, attrs = data.hull(range(2, len(shape))), attributes(node)
    if "Max" in node.op_type:
        return merged
    count = prod(attrs.get("kernel_shape") or shape[2:])
    if node.op_type == "AveragePool":  # zeros of the padding may count
        merged = (
            Interval.of(np.minimum(merged.low, 0), np.maximum(merged.high, 0)) if _averages_zeros(attrs) else merged
        )
    return _mean(bounds, output, merged, count)


def _averages_zeros(attrs: dict[str, object]) -> bool:
    return bool(attrs.get("count_include_pad", 0)) or bool(attrs.get("ceil_mode", 0))


def _mean(bounds: Bounds, output: str, interval: Interval, count: int) -> Interval:
    size = np.where(np.isfinite(interval.magnitude), interval.magnitude, 0)
    return interval.widened(2 * (count + 8) * bounds.unit_of(output) * size)


@rule("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum")
def _reduction(bounds: Bounds, node: onnx.NodeProto, output: str, inputs: Inputs) -> Interval | None:
    data, shape, attrs = inputs[0], bounds.shape(node.input[0]), attributes(node)
    if data is None or shape is None:
        return None
    axes: Sequence[int] | None = attrs.get("axes")
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = bounds.shapes.integers(node.input[1])
        if axes is None:
            return None
    if axes is None:
        axes = [] if attrs.get("noop_with_empty_axes", 0) else range(len(shape))
    axes = [axis % len(shape) for axis in axes]
    merged = data.hull(axes, keep=bool(attrs.get("keepdims", 1)))
    count = prod(shape[axis] for axis in axes)
    if node.op_type == "ReduceSum":
        merged = Interval.of(merged.low * count, merged.high * count)
    return merged if node.op_type in ("ReduceMax", "ReduceMin") else _mean(bounds, output, merged, count)
