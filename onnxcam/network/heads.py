"""Walk back from a file's outputs to the value that is explained, and say what was stepped over.

The ordinary endings (a layer with weights, a Softmax, LogSoftmax or Sigmoid behind it) are recognised by their
operators. Of all others the last nodes are run on random values (`onnxcam.network.ending`), and the numbers decide what
the outputs are: whatever computes a softmax of some value is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnxcam.errors import ModelError
from onnxcam.graph import edit
from onnxcam.graph.builder import Builder
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.view import FLOATS, Graph
from onnxcam.network import columns, label_tables, metric_heads, tasks
from onnxcam.network import readout as readouts
from onnxcam.network.ending import Ending, Form, form_of, mixes
from onnxcam.network.meaning import ADVICE, AS_IT_IS, BYTES, LOG_ODDS, LOGARITHM, ROUNDED, Meaning, Numbers
from onnxcam.targets.readout import BINARY, KINDS, LOGITS, MULTILABEL, PROBABILITIES, REGRESSION, Readout
from onnxcam.targets.tasks import DETECT, REGRESS, Values

_LINEAR = having(Trait.PASSES | Trait.RESHAPES) | {
    "Add", "Sub", "Mul", "Div", "QuantizeLinear", "DequantizeLinear", "BatchNormalization",
}  # fmt: skip


@dataclass(frozen=True)
class Head:
    """The end of a classifier.

    Attributes:
        graph: the graph, with the nodes appended that compute the explained value where no value of the file is it.
        readout: the explained value.
        labels: class names by index that the graph holds, None without.
        values: those that are joined to the columns of a task; none of a classifier.
    """

    graph: Graph
    readout: Readout
    labels: list[str] | None
    values: tuple[str, ...] = ()


def attach(
    graph: Graph,
    picture: str,
    scores: str | None = None,
    kind: str | None = None,
    *,
    task: Any = None,
    boxes_output: str | None = None,
    recognise: bool = True,
    scale: float | None = None,
) -> Head:
    """Find the value that is explained, and append the nodes that compute it where it is not a value of the file.

    Arguments:
        graph: a normalised graph, edited in place.
        picture: its input.
        scores: a value, or a node, that holds the class scores, where there are several candidates.
        kind: what its numbers are, one of `KINDS`; None to find out.
        task: one of `onnxcam.targets.tasks.TASKS`, for a model that is no classifier, or values and a `Task` of theirs;
            None to find out.
        boxes_output: the output with the boxes of a detector, and words for what is not measured (`tasks.recognise`).
        recognise: whether a task is looked for where none is named; False for what is known to be a classifier.
        scale: what probabilities sum to, where `kind` says that there are some and the graph does not tell.

    Raises:
        ModelError: no output can be read as scores, several different ones can, or `kind` contradicts the file.
    """
    if isinstance(task, tuple):
        values, described = task
        attached, readout = columns.attach(graph, values, described)
        return Head(attached, readout, None, tuple(values))
    if kind is not None and (boxes_output is not None or task not in (None, REGRESS)):
        raise ModelError(f"kind={kind!r} is of a classifier; leave it out for task={task or DETECT!r}")
    if kind is None and (recognise or task is not None or boxes_output is not None):
        recognition = tasks.recognise(graph, picture, task=task, boxes_output=boxes_output, scores=scores)
        if recognition is not None and recognition.task != Values(recognition.values, (1,)):
            attached, readout = columns.attach(graph, recognition.values, recognition.task, recognition.warnings)
            return Head(attached, readout, None, recognition.values)
        if recognition is not None:  # one quantity
            scores, kind = recognition.values[0], REGRESSION
    if kind is not None and kind not in KINDS:
        raise ModelError(f"kind={kind!r}; expected one of {', '.join(KINDS)}")
    search = _Search(graph, picture, kind, scale)
    meaning = search.of(graph.find(scores)) if scores is not None else search.of_outputs()
    readout = meaning.readout
    emitted, value = _emit(graph, readout, search.form(readout.value), meaning.how)
    labels = label_tables.find(graph, readout.size)
    if kind is None and labels is None and readout.kind == LOGITS and meaning.softmax is None and recognise:
        doubts = metric_heads.doubts(graph, readout.value) or tasks.doubts_of_classes(graph, readout.size)
        readout = replace(readout, warnings=(*readout.warnings, *doubts))
    return Head(emitted, replace(readout, value=value), labels)


class _Search:
    """The meaning of the outputs of one graph."""

    def __init__(self, graph: Graph, picture: str, kind: str | None, scale: float | None) -> None:
        self._graph, self._picture, self._kind, self._scale = graph, picture, kind, scale
        self._rows = (graph.shape(picture) or (None,))[0]
        self._outputs = {output.name for output in graph.outputs}

    def form(self, value: str) -> Form | None:
        return form_of(self._graph.shape(value), self._rows)

    def of(self, value: str) -> Meaning:
        """The meaning of a value that the user named."""
        if not self._is_tensor_of_scores(value):
            raise ModelError(
                f"{value!r} has shape {describe(self._graph.shape(value))}; expected class scores of shape [N, classes]"
            )
        meaning = self._meaning(value)
        # the same scores may be an output twice, as logits and as probabilities: what holds of one holds of both
        for output in self._graph.outputs:
            if output.name != value and readouts.is_scores(self._graph, output.name):
                try:
                    meaning = self._merged(meaning, self._meaning(output.name)) or meaning
                except ModelError:
                    continue
        return meaning

    def of_outputs(self) -> Meaning:
        """The meaning of the outputs, where they agree."""
        graph = self._graph
        names = [output.name for output in graph.outputs]
        usual = [name for name in names if readouts.is_scores(graph, name)]
        unusual = [name for name in names if name not in usual and self._is_tensor_of_scores(name)]
        behind = [value for name in names if (value := label_tables.scores_behind(graph, name)) is not None]
        for values in (usual, unusual, list(dict.fromkeys(behind))):
            meanings, refusals = self._several(values)
            if len(meanings) == 1:
                return meanings[0]
            if meanings:
                raise ModelError(
                    f"the model has several outputs that could be class scores ({self._shapes()}); name the one to "
                    "explain with `scores=` (on the command line: --scores NAME); if they are values, say so with "
                    "task= (--task regress)"
                )
            if refusals:
                raise refusals[0]
        raise ModelError(
            f"the model is not an image classifier: its outputs are {self._shapes()}; expected one of shape "
            "[N, classes]"
        )

    def _several(self, values: Sequence[str]) -> tuple[list[Meaning], list[ModelError]]:
        """The different meanings of some values, and what was refused."""
        meanings: dict[tuple[str, str], Meaning] = {}
        refusals = []
        for value in values:
            try:
                meaning = self._meaning(value)
            except ModelError as error:
                refusals.append(error)
                continue
            key = _source(self._graph, meaning.readout.value), meaning.how
            other = meanings.get(key)
            meanings[key] = meaning if other is None else self._merged(other, meaning) or meaning
        return list(meanings.values()), refusals

    def _merged(self, a: Meaning, b: Meaning) -> Meaning | None:
        """The meaning of two outputs that share a value, None if they do not."""
        sources = [(_source(self._graph, meaning.readout.value), meaning.how) for meaning in (a, b)]
        if sources[0] != sources[1]:
            return None
        first, second = (b, a) if a.readout.output is None and b.readout.output is not None else (a, b)
        merged = readouts.merge(first.readout, second.readout)
        doubtful = merged.signed and not (a.readout.warnings and b.readout.warnings)  # a Sigmoid beside it settles it
        readout = replace(
            merged,
            scale=first.readout.scale,
            stepped_over=() if merged.output is not None else a.readout.stepped_over,
            warnings=() if doubtful else first.readout.warnings,
        )
        return Meaning(readout, a.how, a.softmax or b.softmax)

    def _shapes(self) -> str:
        return ", ".join(f"{o.name!r} {describe(self._graph.shape(o.name))}" for o in self._graph.outputs)

    def _is_tensor_of_scores(self, value: str) -> bool:
        graph = self._graph
        if readouts.is_scores(graph, value):
            return True
        return (graph.dtype(value) in FLOATS or graph.dtype(value) in BYTES) and self.form(value) is not None

    def _meaning(self, value: str) -> Meaning:
        """What one value says, as the user declares it or as it is found."""
        ordinary = self._ordinary(value)
        meaning = ordinary if ordinary is not None else self._measured(value)
        if self._kind is None:
            return meaning
        return self._declared(value, meaning, self._kind)

    def _ordinary(self, value: str) -> Meaning | None:
        """The meaning of an ordinary ending, None of any other."""
        graph = self._graph
        if not readouts.is_scores(graph, value):
            return None
        end = readouts.ending(graph, value)
        if end is None and not _weighted(graph, value):
            return None
        traced = readouts.trace(graph, value)
        if end is not None and _ranked(graph, traced.value):
            return None
        if end is None and traced.signed:
            traced = self._doubted(traced)
        return Meaning(traced, softmax=value if end is not None and end.op_type == "Softmax" else None)

    def _doubted(self, readout: Readout) -> Readout:
        """A single number without a Sigmoid may be a quantity."""
        if self._kind == BINARY:
            return readout
        sentence = (
            f"{readout.value!r} is a single number per picture without a Sigmoid, taken for the logit of two classes; "
            "if it is a quantity, declare kind='regression' (on the command line: --kind regression)"
        )
        return replace(readout, warnings=(*readout.warnings, sentence))

    def _measured(self, value: str) -> Meaning:
        """The meaning of a value by the numbers that the end of the graph computes.

        Raises:
            ModelError: they are neither scores of classes nor probabilities.
        """
        graph = self._graph
        try:
            end = Ending(graph, self._picture, value)
        except ValueError as error:  # nothing to run: the structure is all there is
            meaning = self._by_structure(value)
            if self._kind is not None:
                return meaning
            sentence = (
                f"what the numbers of {value!r} mean could not be found out ({error}): they are taken for scores "
                "without Softmax or Sigmoid; if they are probabilities, declare kind='probabilities' or "
                "kind='multilabel' (on the command line: --kind)"
            )
            warnings = (*meaning.readout.warnings, sentence)
            return replace(meaning, readout=replace(meaning.readout, warnings=warnings))
        if value not in end.tables:
            raise ModelError(
                f"{value!r} has shape {describe(graph.shape(value))}, without an axis for the pictures of a batch: "
                f"it is of all of them together; {ADVICE}"
            )
        try:
            meaning = Numbers(graph, end, value, self._outputs, self._kind).meaning(self._doubted)
        except ModelError:
            unrounded = self._unrounded(value, end) if end.rounds else None
            if unrounded is None:
                raise
            return unrounded
        plain = meaning.how == AS_IT_IS and meaning.softmax is None and not meaning.readout.stepped_over
        return (self._unrounded(value, end) if plain and end.rounds else None) or meaning

    def _unrounded(self, value: str, rounded: Ending) -> Meaning | None:
        """What the numbers of a quantized graph mean but for their rounding, and for ranges that were measured on other
        numbers; None if that is no more than scores."""
        try:
            end = Ending(self._graph, self._picture, value, rounded=False)
            meaning = Numbers(self._graph, end, value, self._outputs, self._kind).meaning(self._doubted)
        except (ModelError, ValueError):
            return None
        readout = meaning.readout
        if meaning.how == AS_IT_IS and (meaning.unsettled or readout.value in (value, readout.output)):
            return None
        change = _difference(rounded.tables[value], end.tables[value])
        if readout.value != value and change > ROUNDED:
            sentence = (
                f"{value!r} differs by up to {change:.2g} from what it would be without the quantization of the nodes "
                f"before it: shown and explained is {readout.value!r}"
            )
            meaning = replace(meaning, readout=replace(readout, warnings=(*readout.warnings, sentence)))
        return meaning

    def _by_structure(self, value: str) -> Meaning:
        graph = self._graph
        if readouts.is_scores(graph, value):
            traced = readouts.trace(graph, value)
            return Meaning(self._doubted(traced) if traced.signed else traced, unsettled=True)
        form = self.form(value)
        if form is None or graph.dtype(value) not in FLOATS:
            raise ModelError(f"{value!r}: what its numbers mean could not be found out; {ADVICE}")
        kind = BINARY if form.size == 1 else LOGITS
        readout = Readout(value, kind, 2 if kind == BINARY else form.size)
        return Meaning(self._doubted(readout) if kind == BINARY else readout, unsettled=True)

    def _declared(self, value: str, meaning: Meaning, kind: str) -> Meaning:
        """The meaning under the kind that the user names.

        Raises:
            ModelError: the file contradicts it.
        """
        readout = meaning.readout
        if kind == REGRESSION:
            return self._quantity(value)
        if kind == readout.kind:
            return meaning
        plain = meaning.how == AS_IT_IS and meaning.softmax is None
        if kind == MULTILABEL and readout.kind == LOGITS and plain:
            return Meaning(replace(readout, kind=MULTILABEL, probabilities_output=None))
        if kind == MULTILABEL and readout.kind == BINARY:
            return Meaning(replace(readout, kind=MULTILABEL, size=1, warnings=()), meaning.how)
        probabilities = readout.value if meaning.unsettled and readout.kind == LOGITS else meaning.softmax
        if kind == PROBABILITIES and probabilities is not None:
            output = probabilities if probabilities in self._outputs else None
            scale = (self._scale if meaning.softmax is None else None) or 1.0
            declared = replace(
                readout, value=probabilities, kind=kind, output=None, probabilities_output=output, scale=scale
            )
            return Meaning(declared, LOGARITHM)
        what = {
            LOGITS: "scores without an upper bound" if plain else "a softmax",
            PROBABILITIES: "probabilities that sum to 1",
            BINARY: "a single number per picture",
            MULTILABEL: "probabilities of classes that are independent of each other",
            REGRESSION: "a value",
        }[readout.kind]
        raise ModelError(
            f"kind={kind!r} contradicts the file: {value!r} is {what} (kind {readout.kind!r}); leave the kind out, or "
            f"{ADVICE}"
        )

    def _quantity(self, value: str) -> Meaning:
        """The meaning of a single number that is a quantity."""
        form = self.form(value)
        if form is None or form.size != 1 or self._graph.dtype(value) not in FLOATS:
            raise ModelError(
                f"kind='regression': {value!r} has shape {describe(self._graph.shape(value))}; expected one float per "
                f"picture, [N, 1] or [N]; {ADVICE}"
            )
        is_output = value in self._outputs and form.standard and form.rank == 2
        return Meaning(Readout(value, REGRESSION, 1, value if is_output else None))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """How far numbers are from others, as a share of the highest that is above 1."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return 1.0
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))


def _weighted(graph: Graph, value: str) -> bool:
    """Whether a value comes from a layer with weights by additions and multiplications of constants alone."""
    node = graph.producer.get(value)
    while node is not None and node.op_type in _LINEAR and node.domain in ("", "ai.onnx"):
        varying = [name for name in node.input if name and not graph.is_constant(name)]
        if len(varying) != 1:
            return False
        node = graph.producer.get(varying[0])
    if node is None or node.op_type not in ("Gemm", "MatMul", "Conv") or node.domain not in ("", "ai.onnx"):
        return False
    return any(graph.is_constant(name) for name in node.input[:2]) and not mixes(graph, node)


def _ranked(graph: Graph, value: str) -> bool:
    """Whether a value is what a TopK sorted, but for steps of one input each."""
    node = graph.producer.get(value)
    while node is not None and node.op_type != "TopK":
        varying = [name for name in node.input if name and not graph.is_constant(name)]
        if len(varying) != 1 or node.op_type in ("Gemm", "MatMul", "Conv"):
            return False
        node = graph.producer.get(varying[0])
    return node is not None


def _source(graph: Graph, value: str) -> str:
    """The value that copies were made of."""
    node = graph.producer.get(value)
    while node is not None and node.op_type in ("Identity", "Dropout"):
        value = node.input[0]
        node = graph.producer.get(value)
    return value


def _emit(graph: Graph, readout: Readout, form: Form | None, how: str) -> tuple[Graph, str]:
    """Append the nodes from the file's value to the explained one, `[N, K]`; nothing where it is that already."""
    usual = form is None or (form.rows == 0 and form.rank > 1)
    if how == AS_IT_IS and usual:
        return graph, readout.value
    op = Builder(graph, prefix="onnxcam/scores")
    value = readout.value
    kind = graph.dtype(value)
    if form is not None and not (form.standard and form.rank == 2):
        value = _as_table(op, value, form)
    # of the file's own type: 1 / p of a smaller p would not be finite in 16 bits
    smallest = float(np.finfo(np.float16 if kind == onnx.TensorProto.FLOAT16 else np.float32).tiny)
    if how != AS_IT_IS and kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
        kind = onnx.TensorProto.FLOAT  # of 16 bits the logarithm of a small probability is coarse
        value = op.Cast(value, to=kind)
    op.dtype = kind
    if kind == onnx.TensorProto.DOUBLE:
        smallest = float(np.finfo(np.float64).tiny)
    if how != AS_IT_IS and readout.scale != 1:
        value = op.Div(value, readout.scale)
    if how == LOGARITHM:
        value = op.Log(op.Clip(value, smallest))
    elif how == LOG_ODDS:
        value = op.Sub(op.Log(op.Clip(value, smallest)), op.Log(op.Clip(op.Sub(1.0, value), smallest)))
    rows = (graph.shape(readout.value) or ("N",))[form.rows or 0] if form is not None else "N"
    for node in op.nodes:
        for name in node.output:
            op.infos[name] = edit.info(name, kind, [rows, readout.columns])
    edit.add(graph.model, op)
    return graph.again(), value


def _as_table(op: Builder, value: str, form: Form) -> str:
    """The value as `[N, K]`."""
    axes = [axis for axis in (form.rows, form.classes) if axis is not None]
    rest = [axis for axis in range(form.rank) if axis not in axes]
    if [*axes, *rest] != list(range(form.rank)):
        value = op.Transpose(value, perm=[*axes, *rest])
    if rest:
        value = op.Squeeze(value, list(range(len(axes), form.rank)))
    if form.rows is None:
        value = op.Unsqueeze(value, [0])
    return value if form.classes is not None else str(op.Unsqueeze(value, [1]))
