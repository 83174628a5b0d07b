"""What the numbers at the end of a graph mean: a softmax or sigmoid of some value, probabilities, or scores.

Nothing is recognised by its operators here but the steps that keep a class's values in order: the numbers of the last
nodes, run on random values (`onnxcam.network.ending`), decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnxcam.errors import ModelError, listing
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.view import FLOATS, Graph
from onnxcam.network.ending import Ending
from onnxcam.network.relations import (
    LOG_SOFTMAX,
    LOGARITHMS,
    SOFTMAX,
    bound,
    compare,
    factor,
    is_distribution,
    is_sorted,
)
from onnxcam.network.score_facts import ScoreFacts, measure
from onnxcam.targets.readout import BINARY, LOGITS, MULTILABEL, PROBABILITIES, Readout

# how the differentiated value is computed from a value of the file
AS_IT_IS, LOGARITHM, LOG_ODDS = "", "log", "log-odds"
BYTES = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
ADVICE = "name the value to explain with `scores=` (on the command line: --scores NAME)"
_DECLARE = "declare what it is with `kind=` (on the command line: --kind)"
_ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Round"})
# steps that keep the order of a class's values, taken one input at a time
_ORDERLY = having(Trait.PASSES | Trait.RESHAPES) | _ROUNDING | {"Transpose", "Clip", "Min", "Max", "Mul", "Div"}
# operators whose values end at a bound
_SATURATES = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Erf", "Exp"})
# steps by which indices stay numbers among the outputs
_CARRIES_INDICES = having(Trait.PASSES | Trait.RESHAPES) | _ROUNDING | {"Concat", "Transpose"}
# steps that multiply the values of each class by a constant and add another
_AFFINE = ("Add", "Sub", "Mul", "Div", "Neg")
_MULTIPLES = (100.0, 255.0)  # that probabilities are written as
_EXACT, ROUNDED = 1e-5, 1e-2  # how far probabilities may differ: by float32, by 8 bits


Doubt = Callable[[Readout], Readout]


@dataclass(frozen=True)
class Meaning:
    """What one output says.

    Attributes:
        readout: its readout, whose `value` is a value of the file.
        how: what is still to be computed from that value.
        softmax: the probabilities that a softmax of the readout's value makes, None where the file has none.
        unsettled: whether the graph does not tell what the numbers are, and none could be computed.
    """

    readout: Readout
    how: str = AS_IT_IS
    softmax: str | None = None
    unsettled: bool = False


class Numbers:
    """The meaning of a value, by numbers."""

    def __init__(self, graph: Graph, end: Ending, value: str, outputs: set[str], kind: str | None) -> None:
        self._graph, self._end, self._value, self._outputs, self._kind = graph, end, value, outputs, kind
        self._at = value  # the value that is read: before a sorting, where there is one

    def meaning(self, doubted: Doubt) -> Meaning:
        """The meaning; `doubted` adds the warning of a single number."""
        table = self._end.tables[self._value]
        never = np.flatnonzero(np.isnan(table).all(axis=0))
        if len(never):
            self._refuse_missing(never)
        if not np.isfinite(table).all():
            return replace(self._plain(doubted), unsettled=True)
        if table.shape[1] == 1:
            self._at = self._before_maximum(table)
        elif is_sorted(table):
            self._at = self._before_sorting(table)
        relation = self._relation()
        if relation is not None:
            return self._quantity_perhaps(relation)
        indices = self._indices()
        if indices is not None:
            raise ModelError(
                f"{self._value!r} holds indices of classes, from {indices}: its columns are not the scores of classes; "
                f"{ADVICE}"
            )
        return self._without_logit(doubted)

    def _refuse_missing(self, classes: np.ndarray) -> None:
        """Refuse scores that are NaN for some classes whatever the picture, as a constant of the file is NaN there.

        Raises:
            ModelError: there is such a constant.
        """
        constant = self._end.not_a_number()
        if constant is None:
            return
        value = next((name for name in self._end.chain if np.isfinite(self._table(name)).all()), None)
        before = "" if value is None else f", such as {value!r} (on the command line: --scores {value})"
        raise ModelError(
            f"{self._value!r} is NaN for {len(classes)} of {self._table(self._value).shape[1]} classes whatever the "
            f"picture ({listing([str(index) for index in classes[:5]])}), because the constant {constant!r} that it is "
            f"computed with, perhaps a table of thresholds, has NaN in it: replace NaN there, or name a value before "
            f"it with `scores=`{before}"
        )

    def _quantity_perhaps(self, meaning: Meaning) -> Meaning:
        """A sigmoid that is scaled to a range other than 0..1 is a probability in percent, or a quantity."""
        readout = meaning.readout
        highest = float(self._table(self._at).max())
        scaled = self._graph.dtype(self._value) in FLOATS and highest > 1 + ROUNDED
        usual = self._kind is not None or readout.warnings or round(highest) in _MULTIPLES
        if scaled and readout.kind == MULTILABEL and not usual:
            sentence = (
                f"{self._value!r} holds {readout.size} sigmoids scaled to a range up to {highest:.4g}, taken for the "
                "probabilities of classes; if they are quantities, say so with task='regress' (on the command line: "
                "--task regress)"
            )
            return replace(meaning, readout=replace(readout, warnings=(sentence,)))
        if not scaled or readout.kind != BINARY or self._kind == BINARY:
            return meaning
        sentence = (
            f"{self._value!r} is a single number per picture, a sigmoid scaled to a range up to {highest:.4g}, taken "
            "for the probability of two classes; if it is a quantity, declare kind='regression' (on the command line: "
            "--kind regression)"
        )
        return replace(meaning, readout=replace(readout, warnings=(sentence,)))

    def _indices(self) -> str | None:
        """The operator whose indices of classes are among the numbers, None without: cast to numbers of their own, not
        used to gather others."""
        graph, queue, visited = self._graph, [self._at], set()
        while queue:
            value = queue.pop()
            node = graph.producer.get(value)
            if value in visited or node is None or graph.position.get(value) is None:
                continue
            visited.add(value)
            if node.op_type in ("ArgMax", "ArgMin") or (node.op_type == "TopK" and value == node.output[1]):
                return node.op_type
            if node.op_type in _CARRIES_INDICES:
                queue += [name for name in node.input if name]
        return None

    def _table(self, value: str) -> np.ndarray:
        return self._end.tables[value]

    def _before_sorting(self, table: np.ndarray) -> str:
        """The nearest value whose highest numbers are the sorted ones.

        Raises:
            ModelError: there is none.
        """
        count, descending = table.shape[1], bool((np.diff(table, axis=1) <= 0).all())
        for value in self._end.chain[1:]:
            source = self._table(value)
            if source.shape[1] < count or is_sorted(source) or len(source) != len(table):
                continue
            ranked = np.sort(source, axis=1)
            ranked = ranked[:, ::-1][:, :count] if descending else ranked[:, -count:]
            for later in self._orderly(self._value):
                if np.abs(self._table(later) - ranked).max() <= _EXACT * max(1.0, np.abs(ranked).max()):
                    return value
        raise ModelError(
            f"{self._value!r} is sorted: its columns are ranks and not classes, and the value before the sorting was "
            f"not found; {ADVICE}"
        )

    def _before_maximum(self, table: np.ndarray) -> str:
        """The scores whose highest a single number is, where the file has their ArgMax too; else the number itself.

        Raises:
            ModelError: it is the highest of several values, which may be classes or something else.
        """
        for value in self._end.chain[1:]:
            source = self._table(value)
            if source.shape[1] < 2 or np.abs(source.max(axis=1, keepdims=True) - table).max() > _EXACT:
                continue
            if any(node.op_type in ("ArgMax", "TopK") for node in self._graph.consumers.get(value, [])):
                return value
            if self._kind is None:
                raise ModelError(
                    f"{self._value!r} is the highest of the {source.shape[1]} values of {value!r}; name the one to "
                    f"explain with `scores=` (on the command line: --scores NAME), or {_DECLARE}"
                )
        return self._value

    def _orderly(self, value: str, *, affine: bool = False) -> list[str]:
        """The value, and those before it that were taken through steps which keep each class's order, nearest first.

        Arguments:
            affine: also through steps that scale and shift each class by constants of its own.
        """
        graph, values = self._graph, [value]
        while True:
            node = graph.producer.get(values[-1])
            steps = _ORDERLY.union(_AFFINE) if affine else _ORDERLY
            if node is None or node.op_type not in steps or node.domain not in ("", "ai.onnx"):
                return values
            varying = [name for name in node.input if name and not graph.is_constant(name)]
            if len(varying) != 1 or varying[0] not in self._end.tables:
                return values
            if affine and node.op_type in _AFFINE:
                if not self._scales_classes(node, varying[0]):
                    return values
            elif node.op_type in ("Mul", "Div") and not self._positive_factor(node, varying[0]):
                return values
            values.append(varying[0])

    def _scales_classes(self, node: onnx.NodeProto, varying: str) -> bool:
        """Whether a step with constants keeps the order of the values of each class, or turns all of them around."""
        before, after = self._table(varying), self._table(node.output[0])
        if before.shape != after.shape or (node.op_type == "Div" and node.input[0] != varying):
            return False
        slopes = np.sign(((before - before.mean(axis=0)) * (after - after.mean(axis=0))).sum(axis=0))
        return bool(slopes.all()) and len(set(slopes.tolist())) == 1

    def _positive_factor(self, node: onnx.NodeProto, varying: str) -> bool:
        """Whether a Mul or Div by a constant multiplies all classes by one positive number."""
        if node.op_type == "Div" and node.input[0] != varying:
            return False
        before, after = self._table(varying), self._table(node.output[0])
        if before.shape != after.shape:
            return False
        moving = np.abs(before) > 1e-6 * max(1e-30, float(np.abs(before).max()))
        ratios = after[moving] / before[moving]
        return bool(ratios.size) and float(ratios.min()) > 0 and float(np.ptp(ratios)) <= 1e-3 * float(ratios.max())

    def _relation(self, *, affine: bool = False) -> Meaning | None:
        """The meaning of a softmax or sigmoid of some value before, None if there is none.

        Arguments:
            affine: also of one that constants scale and shift.
        """
        later = self._end.chain[self._end.chain.index(self._at) + 1 :]
        for probabilities in self._orderly(self._at, affine=affine):
            matches: dict[str, tuple[str, float]] = {}
            for logits in later:
                if logits == probabilities or self._graph.dtype(logits) not in FLOATS:
                    continue
                match = compare(self._table(probabilities), self._table(logits), self._tolerance(logits))
                # scaled and shifted log p are logits of their own, as after an adjustment to other priors
                if match is not None and not (affine and match[0] in LOGARITHMS):
                    matches[logits] = match
            if matches:
                return self._with_logit(probabilities, matches)
        return None

    def _with_logit(self, probabilities: str, matches: dict[str, tuple[str, float]]) -> Meaning:
        graph = self._graph
        inputs = {
            node.input[0] for node in graph.nodes if node.op_type in ("Softmax", "LogSoftmax", "Sigmoid") and node.input
        }
        # the input of a Softmax, else what is farthest from the end: before a maximum was subtracted
        logits = next((value for value in matches if value in inputs), list(matches)[-1])
        operator, scale = matches[logits]
        size = self._table(logits).shape[1]
        kind = LOGITS if operator in (SOFTMAX, LOG_SOFTMAX) else BINARY if size == 1 else MULTILABEL
        change, multiplied = (0.0, True) if operator in LOGARITHMS else self._change(probabilities, scale)
        usual = not multiplied and scale == 1 and self._at == self._value and change <= ROUNDED
        warnings: tuple[str, ...] = ()
        if change > (ROUNDED if self._rounded(self._at, probabilities) else _EXACT):
            warnings = (
                f"{self._value!r} differs from the probabilities before {listing(self._steps(probabilities))} by up to "
                f"{change:.2g}: shown and explained are those before",
            )
        readout = Readout(
            logits,
            kind,
            2 if kind == BINARY else size,
            logits if self._is_output(logits) else None,
            self._value if usual and self._is_output(self._value) else None,
            stepped_over=self._steps(logits),
            warnings=warnings,
        )
        return Meaning(readout, softmax=probabilities if operator == SOFTMAX else None)

    def _change(self, probabilities: str, scale: float) -> tuple[float, bool]:
        """How far what is shown is from the output, as probabilities; and whether the output is a multiple of it."""
        before, after = self._table(probabilities) / scale, self._table(self._at)
        if after.shape != before.shape:
            return 0.0, False
        if self._graph.dtype(self._at) in BYTES:  # quantized: affine in what it was
            step, zero = np.polyfit(before.reshape(-1), after.reshape(-1), 1)
            return float(np.abs((after - zero) / step - before).max()) if step > 0 else 1.0, False
        multiple = factor(before, after, ROUNDED)
        numbers = (scale, 1.0, *_MULTIPLES, *([] if multiple is None else [multiple]))
        change, number = min((float(np.abs(after / number - before).max()), number) for number in numbers)
        return change, number not in (scale, 1.0)

    def _without_logit(self, doubted: Doubt) -> Meaning:
        """The meaning of numbers that are no softmax or sigmoid of any one value.

        Raises:
            ModelError: they are neither probabilities nor scores.
        """
        if self._graph.dtype(self._at) in BYTES:
            self._at = self._before_rounding(floats_only=True)
        self._at = self._before_logarithm() or self._at
        table = self._table(self._at)
        facts, size = measure(table), table.shape[1]
        if facts.constant:
            return replace(self._plain(doubted), unsettled=True)
        if is_distribution(facts):
            return self._probabilities(facts)
        if size > 1 and facts.lowest >= 0 and is_distribution(measure(np.exp(-table))):
            raise ModelError(
                f"{self._value!r} is -log p of probabilities p: its lowest value is the likeliest class; {ADVICE}"
            )
        scale = self._scale(facts)
        if scale is None or facts.lowest == facts.highest:
            return self._scaled() or self._plain(doubted)
        if size == 1:
            return self._quantity_perhaps(self._odds(BINARY, scale))
        if self._kind == LOGITS:
            return self._plain(doubted)
        if self._kind == MULTILABEL or self._end.independent():
            return self._quantity_perhaps(self._odds(MULTILABEL, scale))
        raise ModelError(
            f"the values of {self._value!r} lie in 0..{scale:g} and depend on each other, yet a picture's do not sum "
            f"to {scale:g} (but to {facts.lowest_sum:.3g} to {facts.highest_sum:.3g}): neither logits nor "
            f"probabilities; {ADVICE}, or {_DECLARE}"
        )

    def _before_logarithm(self) -> str | None:
        """The probabilities, of classes that do not exclude each other, whose logarithms the numbers are; None of
        others."""
        table = self._table(self._at)
        if not (table <= 1e-6).all() or is_distribution(measure(np.exp(table))):
            return None
        for value in self._end.chain[self._end.chain.index(self._at) + 1 :]:
            before = self._table(value)
            if before.shape == table.shape and np.abs(before - np.exp(table)).max() <= _EXACT:
                return value if measure(before).within_unit else None
        return None

    def _scale(self, facts: ScoreFacts) -> float | None:
        """The number that stands for certainty, 1 of probabilities and 100 of percentages; None where there is none."""
        if facts.within_unit:
            return 1.0
        if facts.lowest < 0:
            return None
        table = self._table(self._at)
        for value in self._orderly(self._at)[1:]:
            before = self._table(value)
            if self._graph.dtype(value) in FLOATS and measure(before).within_unit:
                return factor(before, table, ROUNDED)
        highest = bound(table) if table.shape[1] > 1 else None
        if highest is None or not (highest == 100 or self._end.operators & _SATURATES):
            return None
        return highest if self._kind == MULTILABEL or self._end.independent() else None

    def _scaled(self) -> Meaning | None:
        """The meaning of a softmax or sigmoids that constants scale and shift, as 2 p - 1; None of other numbers.

        Raises:
            ModelError: the lowest number is the likeliest class.
        """
        if self._table(self._at).shape[1] < 2 or self._kind == LOGITS:
            return None
        meaning = self._relation(affine=True)
        if meaning is None:
            return None
        before, after = self._table(meaning.readout.value), self._table(self._at)
        first, last = np.argmax(before[:, 0]), np.argmin(before[:, 0])
        if after[first, 0] < after[last, 0]:
            raise ModelError(
                f"{self._value!r} falls where the probability of its class rises: its lowest value is the likeliest "
                f"class; {ADVICE}"
            )
        return meaning

    def _probabilities(self, facts: ScoreFacts) -> Meaning:
        total = facts.total or 1.0
        value = self._before_rounding()
        before = measure(self._table(value)).total or total
        is_output = self._at == self._value and self._is_output(self._value) and abs(before - total) <= 1e-3 * total
        readout = Readout(
            value,
            PROBABILITIES,
            facts.columns,
            None,
            self._value if is_output else None,
            scale=before,
            stepped_over=self._steps(value),
        )
        return Meaning(readout, LOGARITHM)

    def _odds(self, kind: str, scale: float = 1.0) -> Meaning:
        value = self._before_rounding()
        size = self._table(value).shape[1]
        is_output = self._at == self._value and self._is_output(self._value)
        readout = Readout(
            value,
            kind,
            2 if kind == BINARY else size,
            None,
            self._value if is_output else None,
            scale=scale,
            stepped_over=self._steps(value),
        )
        return Meaning(readout, LOG_ODDS)

    def _plain(self, doubted: Doubt) -> Meaning:
        value = self._before_rounding(floats_only=True)
        size = self._table(value).shape[1]
        kind = BINARY if size == 1 else LOGITS
        output = value if self._is_output(value) else None
        readout = Readout(value, kind, 2 if kind == BINARY else size, output, stepped_over=self._steps(value))
        return Meaning(doubted(readout) if kind == BINARY else readout)

    def _before_rounding(self, floats_only: bool = False) -> str:
        """The value before steps that change its numbers by rounding alone; with `floats_only` the nearest float."""
        value, table = self._at, self._table(self._at)
        if floats_only and self._graph.dtype(value) in FLOATS:
            return value
        best = value if self._graph.dtype(value) in FLOATS else None
        for earlier in self._orderly(self._at)[1:]:
            if self._graph.dtype(earlier) not in FLOATS:
                continue
            numbers = self._table(earlier)
            if numbers.shape != table.shape:
                break
            if best is None:
                best = earlier
                if floats_only:
                    return best
                table = numbers
                continue
            limit = ROUNDED if self._rounded(best, earlier) else _EXACT
            if np.abs(numbers - table).max() > limit * max(1e-30, float(np.abs(table).max())):
                break
            best = earlier
        if best is None:
            raise ModelError(f"{self._value!r} holds whole numbers that no float was rounded to; {ADVICE}")
        return best

    def _rounded(self, value: str, before: str) -> bool:
        nodes, _ = self._graph.upstream([value], stop=[before])
        return any(node.op_type in _ROUNDING and node.op_type != "Cast" for node in nodes) or (
            self._graph.dtype(value) in (*BYTES, onnx.TensorProto.FLOAT16)
        )

    def _tolerance(self, before: str) -> float:
        """How far a softmax may be from its copy in NumPy."""
        half = onnx.TensorProto.FLOAT16
        return 2e-3 if half in (self._graph.dtype(before), self._graph.dtype(self._at)) else 2e-6

    def _steps(self, before: str) -> tuple[str, ...]:
        """The operators between a value and the output, from the output back, each once."""
        nodes, _ = self._graph.upstream([self._value], stop=[before])
        varying = [node for node in nodes if not all(self._graph.is_constant(name) for name in node.output if name)]
        return tuple(dict.fromkeys(node.op_type for node in reversed(varying)))

    def _is_output(self, value: str) -> bool:
        form = self._end.form(value)
        floating = self._graph.dtype(value) in FLOATS
        return value in self._outputs and floating and form is not None and form.standard and form.rank == 2
