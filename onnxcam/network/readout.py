"""Find the readout of a classifier: the logits before whatever Softmax or Sigmoid ends the graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from onnxcam.errors import ModelError
from onnxcam.graph.operators import Trait, having
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.view import Graph, attributes
from onnxcam.network.score_facts import ScoreFacts
from onnxcam.targets.readout import BINARY, LOGITS, MULTILABEL, PROBABILITIES, Readout

# columns: in fewer, the classes of all pictures are in order by chance in one of 5,040 models
_SURELY_RANKS = 8
# looked through in search of a final Softmax or Sigmoid: they change the form of the scores, not their order
_FORM, _PROBABILITY = having(Trait.PASSES | Trait.RESHAPES), having(Trait.PROBABILITY)


def find(graph: Graph, name: str | None = None) -> Readout:
    """The readout of a classifier.

    Arguments:
        graph: a normalised model.
        name: an output (or any value) that holds the scores, where the model has several candidates.

    Raises:
        ModelError: no output looks like class scores, or several different ones do.
    """
    if name is not None:
        value = graph.find(name)
        if not is_scores(graph, value):
            raise ModelError(
                f"{name!r} has shape {describe(graph.shape(value))}; expected class scores of shape [N, classes]"
            )
        readout = trace(graph, value)
        # the same scores may be an output twice, as logits and as probabilities: what holds of one holds of both
        for traced in _outputs(graph):
            if traced.value == readout.value:
                readout = merge(readout, traced)
        return readout
    readouts: dict[str, Readout] = {}
    for traced in _outputs(graph):
        other = readouts.get(traced.value)
        readouts[traced.value] = traced if other is None else merge(other, traced)
    if len(readouts) == 1:
        return next(iter(readouts.values()))
    shapes = ", ".join(f"{o.name!r} {describe(graph.shape(o.name))}" for o in graph.outputs)
    if not readouts:
        raise ModelError(
            f"the model is not an image classifier: its outputs are {shapes}; expected one of shape [N, classes]"
        )
    raise ModelError(
        f"the model has several outputs that could be class scores ({shapes}); name the one to explain with "
        "`scores=` (on the command line: --scores NAME); if they are values, say so with task= (--task regress)"
    )


def settle(readout: Readout, facts: ScoreFacts, *, declared: bool = False) -> Readout:
    """Compare a readout that the graph suggests with the numbers that its value takes; the numbers decide.

    Arguments:
        readout: as the structure of the graph suggests it.
        facts: of its value (`readout.value`, what `Explainer.run` calls scores) on several pictures.
        declared: whether the user named the kind: numbers that contradict it are an error then.

    Returns:
        the same readout, with `warnings` added, or one of another `kind`, for which the network is to be opened again
        (`Network(source, kind=…, scale=…)`): its value is another one.

    Raises:
        ModelError: the numbers contradict the kind, and none fits.
    """
    doubts = readout.warnings
    if not facts.rows:
        return _warned(readout, "scores that are not finite occur on every picture that was measured")
    if not facts.finite:
        readout = _warned(readout, "some scores are not finite on the pictures that were measured")
    if readout.kind == LOGITS and facts.distribution:
        what = f"the scores {readout.value!r} are probabilities: none is negative and every row sums to {facts.total:g}"
        if declared:
            raise ModelError(f"{what}, and kind='logits' was declared; use kind='probabilities', or leave it out")
        settled = readout.warnings[len(doubts) :]  # what the graph left open is settled
        total = facts.total or 1.0
        probabilities = replace(readout, kind=PROBABILITIES, output=None, scale=total, warnings=settled)
        return _warned(probabilities, f"{what}; the logarithm of each is explained")
    if readout.kind == PROBABILITIES:
        sums = _sums_of_exponentials(facts)
        if sums is not None:
            raise ModelError(
                f"the scores {readout.value!r} are not logarithms of probabilities: {sums}; declare another kind "
                "with `kind=` (on the command line: --kind)"
            )
    if readout.kind in (LOGITS, MULTILABEL) and facts.parallel:
        return _warned(
            readout,
            f"the scores {readout.value!r} are one number and a constant for each column, as those of an ordinal model "
            "(CORAL), whose column k says that the grade is above k: the order of columns is the same on every "
            "picture, and the one with the highest score is not the grade; name the column to explain as the target",
        )
    if readout.exclusive and facts.ranked:
        what = (
            f"the scores {readout.value!r} are sorted in all of {facts.rows} pictures: columns are ranks and not "
            "classes; name the value before the sorting with `scores=` (on the command line: --scores NAME)"
        )
        if facts.columns >= _SURELY_RANKS:
            raise ModelError(what)
        return _warned(readout, what)
    return readout


def _sums_of_exponentials(facts: ScoreFacts) -> str | None:
    """What is wrong with logarithms of probabilities, None if nothing is."""
    if facts.highest > 1e-2:
        return f"the highest is {facts.highest:g}, above 0"
    if np.exp(facts.highest) * facts.columns < 1 - 1e-2:
        return f"the highest of {facts.columns} is {facts.highest:g}, so that they cannot sum to 1"
    return None


def _warned(readout: Readout, sentence: str) -> Readout:
    return replace(readout, warnings=(*readout.warnings, sentence))


def _outputs(graph: Graph) -> list[Readout]:
    return [trace(graph, output.name) for output in graph.outputs if is_scores(graph, output.name)]


def is_scores(graph: Graph, value: str) -> bool:
    """Whether a value has the usual form of class scores: floats `[N, K]` or `[N, K, 1, 1]`."""
    shape = graph.shape(value)
    if not graph.is_float(value) or shape is None:
        return False
    if len(shape) == 4:
        return shape[2:] == (1, 1) and isinstance(shape[1], int)
    return len(shape) == 2 and isinstance(shape[1], int)


def trace(graph: Graph, value: str) -> Readout:
    """The readout of an output of the usual form, by the Softmax, LogSoftmax or Sigmoid that it ends in, if any."""
    shape = graph.shape(value) or ()
    columns = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 0
    names = {o.name for o in graph.outputs}
    end = ending(graph, value)
    sigmoid = end is not None and end.op_type == "Sigmoid"
    kind = MULTILABEL if sigmoid else LOGITS
    if columns == 1 and (sigmoid or end is None):
        kind = BINARY
    size = 2 if kind == BINARY else columns
    if end is None:
        return Readout(value, kind, size, value if value in names and len(shape) == 2 else None)
    logits = end.input[0]
    output = logits if logits in names and len(graph.shape(logits) or ()) == 2 else None
    probabilities = value if value in names and end.op_type != "LogSoftmax" else None
    return Readout(logits, kind, size, output, probabilities)


def ending(graph: Graph, value: str) -> onnx.NodeProto | None:
    """The Softmax, LogSoftmax or Sigmoid that ends the graph at this value, if one does."""
    node = graph.producer.get(value)
    while node is not None and node.op_type in _FORM and node.domain in ("", "ai.onnx"):
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type not in _PROBABILITY:
        return None
    shape = graph.shape(node.input[0])
    if node.op_type != "Sigmoid" and shape is not None:
        axis = int(attributes(node).get("axis", -1)) % len(shape)
        if any(d != 1 for d in shape[axis + 1 :]) or axis == 0:
            return None
    return node


def merge(a: Readout, b: Readout) -> Readout:
    """The readout of two outputs that share a value: a Sigmoid after one of them decides the kind."""
    kind, size = (b.kind, b.size) if a.exclusive and not b.exclusive else (a.kind, a.size)
    output, probabilities = a.output or b.output, a.probabilities_output or b.probabilities_output
    return Readout(a.value, kind, size, output, probabilities)
