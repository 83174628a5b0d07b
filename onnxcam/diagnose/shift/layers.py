"""What each layer of a network adds to its difference from another, and what its precision allows it to add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import onnx

from onnxcam.diagnose.shift import weights as kernels
from onnxcam.diagnose.shift.alignment import Match
from onnxcam.diagnose.shift.operations import Pair, name_of
from onnxcam.diagnose.shift.replay import Sight
from onnxcam.diagnose.shift.weights import Weights
from onnxcam.graph.view import Graph

EXCESS = 3.0  # times what the precision gives: more is a fault
PICTURE, WEIGHTS, BIAS, OPERATOR, ACTIVATION = "input", "weights", "bias", "operator", "activation pair"

# of a layer in this type; in float32 sums in another order are within 1e-5
_TOLERANCES: dict[int, float] = {onnx.TensorProto.FLOAT16: 1e-2, onnx.TensorProto.BFLOAT16: 6e-2}
_TOLERANCE = 1e-4
_BIAS = 0.01  # of a quantized layer's values: a bias of 32 bits is exact but for less than that
_FEW = 4  # grids: fewer have no median worth the name
_COARSEST = 3.0  # times the best grid: of a whole file on purpose
_UNUSUAL = 5.0  # times the median of the layers of the same precision
_CLEAR = 0.05  # relative error that no grid of 8 bits leaves
_INTEGERS = frozenset({"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"})


@dataclass(frozen=True)
class LayerDifference:
    """What one layer of the new network adds to the difference.

    Attributes:
        name: of the old network's operator.
        new_name: of the new network's.
        operator: its type in the new network; `input` of the picture.
        match: what says that the two are one: `name`, `weights` or `structure`.
        error: relative distance of the two networks' values behind it, as both run.
        local_error: the same where the new layer is given the old network's values.
        pair_error: of the old values after the pair of QuantizeLinear and DequantizeLinear alone; None without one.
        pair_expected: what the best grid of as many levels leaves.
        weight_error: relative distance of the weights, None where they are not known.
        weight_expected: what the best grid leaves; None of weights that are not quantized.
        bias_error: of the bias, relative to the layer's values.
        part: what is blamed: `input`, `weights`, `bias`, `operator`, `activation pair`; empty where nothing is.
        node: the node blamed, of the new network, such as the QuantizeLinear of a pair.
        excess: times what is expected of the part that is blamed.
        score_effect: relative change of the old network's scores where this layer alone is the new one's; None where it
            was not measured.
        apart: operators in it or before it that only one of the two networks has, in words; None where there are none
            or the operator is not to blame.
        between: the layers around them, None where the layer itself remains suspect.
    """

    name: str
    new_name: str
    operator: str
    match: str
    error: float
    local_error: float
    pair_error: float | None = None
    pair_expected: float | None = None
    weight_error: float | None = None
    weight_expected: float | None = None
    bias_error: float | None = None
    part: str = ""
    node: str = ""
    excess: float = 0.0
    score_effect: float | None = None
    apart: str | None = None
    between: str | None = None

    def describe(self) -> dict[str, Any]:
        """The numbers, as JSON; null where one is beyond all numbers."""
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in vars(self).items()
            if value is not None
        }


@dataclass
class Sums:
    """What is added up over pictures for one match, all squared."""

    old: float = 0.0
    error: float = 0.0
    local: float = 0.0
    operator: float = 0.0
    inside: float = 0.0
    pairs: list[float] = field(default_factory=list)
    count: int = 0
    low: float = np.inf
    high: float = -np.inf

    def add(self, sight: Sight, limits: tuple[float, float] | None) -> None:
        """Add a picture.

        Arguments:
            sight: what it shows of the match.
            limits: the range of the pair that quantizes the new value, None without.
        """
        old = sight.old.astype(np.float64)
        self.old += float((old**2).sum())
        self.count += old.size
        self.low = min(self.low, float(old.min(initial=np.inf)))
        self.high = max(self.high, float(old.max(initial=-np.inf)))
        self.error += _squared(sight.new, old)
        self.local += _squared(sight.local, old)
        exact, bounded = sight.exact, old
        if limits is not None:  # an activation may be left to the pair, which clips as it does
            exact, bounded = np.clip(exact, *limits), np.clip(old, *limits)
        self.operator += _squared(exact, bounded)
        low, high = float(old.min(initial=np.inf)), float(old.max(initial=-np.inf))
        self.inside += _squared(np.clip(exact, low, high), old)
        self.pairs = self.pairs or [0.0] * len(sight.pairs)
        for number, value in enumerate(sight.pairs):
            self.pairs[number] += _squared(value, old)

    def relative(self, squares: float) -> float:
        """A sum of squared differences, as a distance relative to the old values."""
        if not np.isfinite(squares):
            return float("inf")
        return float(np.sqrt(squares / self.old)) if self.old else float(squares > 0)

    @property
    def scale(self) -> float:
        """Root mean square of the old values."""
        return max(float(np.sqrt(self.old / max(1, self.count))), 1e-12)


def _squared(value: np.ndarray, old: np.ndarray) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        total = float(((value.astype(np.float64) - old) ** 2).sum())
    return total if np.isfinite(total) else float("inf")


class Fault(NamedTuple):
    """What a part of a layer may be blamed for.

    Attributes:
        excess: times what is expected of it.
        part: of the layer.
        node: the node to blame.
        grid: of a part that is rounded, the name of what sets its grid: no more than a few times as much is a fault.
            Empty of others, of which everything is.
    """

    excess: float
    part: str
    node: str
    grid: str = ""


class Judge:
    """Says what each layer may add.

    Arguments:
        graph: of the new network.
        weights: of the old network's operations and of the new one's, by value.
        tolerance: what a layer of floats may add.
    """

    def __init__(
        self, graph: Graph, weights: tuple[Mapping[str, Weights], Mapping[str, Weights]], tolerance: float
    ) -> None:
        self._graph = graph
        self._old_weights, self._new_weights = weights
        self._tolerance = tolerance

    def difference(
        self, match: Match, sums: Sums, ends: set[str], absorbed: bool
    ) -> tuple[LayerDifference, list[Fault]]:
        """What one layer adds, and by which of its parts, which `assign` weighs.

        Arguments:
            match: the layer.
            sums: over the pictures.
            ends: values of all matches of the new network.
            absorbed: whether the next layer makes up for a difference here.
        """
        new, tolerance = match.new, self._tolerance
        operator = sums.relative(sums.operator)
        values: dict[str, Any] = {
            "name": match.old.name, "new_name": new.name, "match": match.by,
            "operator": PICTURE if new.node is None else new.node.op_type,
            "error": sums.relative(sums.error),
            "local_error": operator if new.node is None else sums.relative(sums.local),
        }  # fmt: skip
        faults: list[Fault] = []
        if new.node is None:
            if operator > tolerance and not absorbed:
                faults.append(Fault(operator / tolerance, PICTURE, new.name))
        else:
            values |= self._weight_errors(match, sums)
            integers = self.of_integers(match, ends)
            faults += self._of_constants(match, values, operator, integers)
            if operator > tolerance and not integers and not faults:
                faults.append(Fault(operator / tolerance, OPERATOR, new.name))
        if new.pairs and sums.pairs:
            errors = [sums.relative(squares) for squares in sums.pairs]
            worst = int(np.argmax(errors))
            quantize = new.pairs[worst].quantize
            expected = max(self._grid_error(new.pairs[worst], sums), tolerance)
            values["pair_error"], values["pair_expected"] = errors[worst], expected
            pair = Fault(errors[worst] / expected, ACTIVATION, name_of(quantize), grid=str(quantize.input[1]))
            faults.append(pair)
            if sums.relative(sums.inside) < operator / EXCESS:  # the pair should have clipped, as the activation did
                faults.append(pair._replace(excess=operator / expected))
        return LayerDifference(**values), faults

    def of_integers(self, match: Match, ends: set[str]) -> bool:
        """Whether something in an operation, or before it since the last match, is computed in integers."""
        nodes, _ = self._graph.upstream([match.new.value], stop=ends - {match.new.value})
        return any(node.op_type in _INTEGERS for node in nodes)

    def _of_constants(self, match: Match, values: Mapping[str, Any], operator: float, integers: bool) -> list[Fault]:
        """The faults of weights and bias."""
        name = self._dequantizer(match.new.weight)
        weight_error, expected, bias_error = (values[key] for key in ("weight_error", "weight_expected", "bias_error"))
        if weight_error is None or operator <= self._tolerance:
            return []
        faults = []
        if expected is not None:
            faults.append(
                Fault(weight_error / max(expected, self._tolerance), WEIGHTS, name, grid=str(match.new.weight))
            )
        elif weight_error > self._tolerance:
            faults.append(Fault(weight_error / self._tolerance, WEIGHTS, name))
        allowed = _BIAS if integers else self._tolerance
        if bias_error > allowed and (integers or not faults or bias_error > weight_error):
            faults.append(
                Fault(EXCESS * bias_error / allowed, BIAS, self._dequantizer(match.new.bias or match.new.name))
            )
        return faults

    def _weight_errors(self, match: Match, sums: Sums) -> dict[str, float | None]:
        a, b = self._old_weights.get(match.old.value), self._new_weights.get(match.new.value)
        if a is None or b is None or a.kernel.size != b.kernel.size or len(a.kernel) != len(b.kernel):
            return {"weight_error": None, "weight_expected": None, "bias_error": None}
        kernel = b.kernel.reshape(a.kernel.shape)
        return {
            "weight_error": kernels.distance(kernel, a.kernel),
            "weight_expected": None if b.grid is None else kernels.rounding(a.kernel, b.grid),
            "bias_error": kernels.deviation(b.bias, a.bias) / sums.scale,
        }

    def _dequantizer(self, value: str | None) -> str:
        """The node that dequantizes a constant; the constant's name where none does."""
        name = value or ""
        while (node := self._graph.producer.get(name)) is not None:
            if node.op_type not in ("Transpose", "Reshape", "Cast", "Identity", "Sub"):
                return name_of(node)
            name = node.input[0]
        return name

    def _grid_error(self, pair: Pair, sums: Sums) -> float:
        """What the best grid of a pair's number of levels leaves of the old values, relative to them."""
        zero = self._zero_point(pair)
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        try:
            levels = float(np.iinfo(kind).max) - float(np.iinfo(kind).min)
        except ValueError:  # float8
            return 0.07
        low, high = min(sums.low, 0.0), max(sums.high, 0.0)
        if zero is not None and kind.kind == "i" and not zero.any():  # symmetric about 0
            high = max(high, -low)
            low = -high
        return (high - low) / levels / float(np.sqrt(12)) / sums.scale

    def _zero_point(self, pair: Pair) -> np.ndarray | None:
        inputs = pair.quantize.input
        return self._graph.constant(inputs[2]) if len(inputs) > 2 and inputs[2] else None


def pair_limits(graph: Graph, match: Match) -> tuple[float, float] | None:
    """The range of the pair that quantizes a match's new value; None without, and where it differs by channel."""
    if not match.new.pairs:
        return None
    node = match.new.pairs[0].quantize
    scale = graph.constant(node.input[1])
    zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or zero.dtype.kind not in "iu":
        return None
    limits = np.iinfo(zero.dtype)
    factor, offset = float(scale.reshape(-1)[0]), float(zero.reshape(-1)[0])
    low, high = (limits.min - offset) * factor, (limits.max - offset) * factor
    return (low, high) if low < high else None


def tolerance(graph: Graph) -> float:
    """What a layer of floats may add, by the coarsest type that a graph computes in."""
    kinds = {graph.dtype(name) for node in graph.nodes for name in node.output}
    return max([_TOLERANCE, *(_TOLERANCES[kind] for kind in kinds if kind in _TOLERANCES)])


def assign(layers: Sequence[LayerDifference], faults: Sequence[Sequence[Fault]]) -> list[LayerDifference]:
    """Blame each layer for its worst fault.

    The grids of a whole file may be coarser than the best ones (seven bits instead of eight, ranges of other pictures):
    what is three times the median of the parts of a kind is a fault. A grid that several layers share counts once.
    """
    usual = {}
    for part in (WEIGHTS, ACTIVATION):
        ratios = {fault.grid: fault.excess for some in faults for fault in some if fault.part == part and fault.grid}
        median = float(np.median(list(ratios.values()))) if len(ratios) >= _FEW else 1.0
        usual[part] = min(max(1.0, median), _COARSEST)
    result = []
    at_fault: set[str] = set()  # grids: a fault of one is that of the first layer that has it
    for layer, some in zip(layers, faults, strict=True):
        clear = [fault for fault in some if not fault.grid or fault.excess > EXCESS * usual[fault.part]]
        clear = [fault for fault in clear if fault.grid not in at_fault]
        if clear:
            worst = max(clear, key=lambda fault: fault.excess)
            at_fault |= {worst.grid} - {""}
            layer = replace(layer, part=worst.part, node=worst.node, excess=worst.excess)
        result.append(layer)
    return result


def unusual(layers: list[LayerDifference], integers: list[int]) -> list[LayerDifference]:
    """Blame layers of integers whose error no grid explains, where it is far above that of the others.

    Arguments:
        layers: all of them.
        integers: places of those that are computed in integers.
    """
    errors = np.array([layers[place].local_error for place in integers])
    finite = errors[np.isfinite(errors)]
    if len(integers) < 3 or not finite.size:
        return layers
    usual = float(np.median(finite))
    result = list(layers)
    for place in integers:
        layer = layers[place]
        of_pair = (layer.pair_error or 0.0) > layer.local_error / 2
        if not layer.part and not of_pair and layer.local_error > max(_CLEAR, _UNUSUAL * usual):
            excess = layer.local_error / max(usual, 1e-12)
            result[place] = replace(layer, part=OPERATOR, node=layer.new_name, excess=excess)
    return result
