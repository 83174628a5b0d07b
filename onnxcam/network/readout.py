"""Finds the class scores of a classifier: the logits behind whatever ends the graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxcam.errors import ModelError
from onnxcam.graph.shape_inference import describe
from onnxcam.graph.view import Graph, attributes

# looked through in search of a final Softmax or Sigmoid: they change the form of the scores, not their order
_FORM = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"}
_PROBABILITY = {"Softmax", "LogSoftmax", "Sigmoid"}


@dataclass(frozen=True)
class Scores:
    """The scores of a classifier.

    Attributes:
        value: the differentiated value, `[N,K]` (or `[N,K,1,1]`), before any ending Softmax or Sigmoid.
        output: the original output that is that value, None if it has to be appended as `logits`.
        kind: `logits`, `binary_logit` (`[N,1]`, two classes) or `multilabel`.
        classes: number of classes.
        probabilities: the original output that holds probabilities, None if there is none.
    """

    value: str
    output: str | None
    kind: str
    classes: int
    probabilities: str | None


def find(graph: Graph, asked: str | None = None) -> Scores:
    """The scores of a classifier.

    Arguments:
        graph: a normalised model.
        asked: an output (or any value) that holds them, where the model has several candidates.

    Raises:
        ModelError: no output looks like class scores, or several different ones do.
    """
    if asked is not None:
        value = graph.find(asked)
        if not _is_scores(graph, value):
            raise ModelError(
                f"{asked!r} has shape {describe(graph.shape(value))}; expected class scores of shape [N, classes]"
            )
        found = _trace(graph, value)
        # the same scores may be an output twice, as logits and as probabilities: what is known of one holds for both
        for traced in _outputs(graph):
            if traced.value == found.value:
                found = _merge(found, traced)
        return found
    pairs: dict[str, Scores] = {}
    for traced in _outputs(graph):
        held = pairs.get(traced.value)
        pairs[traced.value] = traced if held is None else _merge(held, traced)
    if len(pairs) == 1:
        return next(iter(pairs.values()))
    shapes = ", ".join(f"{o.name!r} {describe(graph.shape(o.name))}" for o in graph.outputs)
    if not pairs:
        raise ModelError(
            f"the model is not an image classifier: its outputs are {shapes}; expected one of shape [N, classes]"
        )
    raise ModelError(
        f"the model has several outputs that could be class scores ({shapes}); name the one to explain with "
        "`scores=` (on the command line: --scores NAME)"
    )


def _outputs(graph: Graph) -> list[Scores]:
    return [_trace(graph, output.name) for output in graph.outputs if _is_scores(graph, output.name)]


def _is_scores(graph: Graph, value: str) -> bool:
    shape = graph.shape(value)
    if not graph.is_float(value) or shape is None:
        return False
    if len(shape) == 4:
        return shape[2:] == (1, 1) and isinstance(shape[1], int)
    return len(shape) == 2 and isinstance(shape[1], int)


def _trace(graph: Graph, value: str) -> Scores:
    shape = graph.shape(value) or ()
    classes = shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 0
    names = {o.name for o in graph.outputs}
    ending = _ending(graph, value)
    if ending is None:
        kind = "binary_logit" if classes == 1 else "logits"
        output = value if value in names and len(shape) == 2 else None
        return Scores(value, output, kind, 2 if classes == 1 else classes, None)
    logits = ending.input[0]
    kind = "logits"
    if ending.op_type == "Sigmoid":
        kind = "binary_logit" if classes == 1 else "multilabel"
    output = logits if logits in names and len(graph.shape(logits) or ()) == 2 else None
    probabilities = value if value in names and ending.op_type != "LogSoftmax" else None
    return Scores(logits, output, kind, 2 if kind == "binary_logit" else classes, probabilities)


def _ending(graph: Graph, value: str) -> onnx.NodeProto | None:
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


def _merge(a: Scores, b: Scores) -> Scores:
    output = a.output or b.output
    kind = a.kind if a.kind != "logits" else b.kind
    classes = a.classes if a.kind == kind else b.classes
    return Scores(a.value, output, kind, classes, a.probabilities or b.probabilities)
