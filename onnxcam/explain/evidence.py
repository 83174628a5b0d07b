"""Why a map is blank: what is known of the layer, of its gradients, and of the map before its ReLU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxcam.cam.registry import GRAPH, INPUT, Method
from onnxcam.errors import OnnxcamError
from onnxcam.explain.question import Question
from onnxcam.explain.warnings import EVEN, NO_EVIDENCE, OUTSIDE
from onnxcam.targets.objectives import PROBABILITY, Objective, logit

if TYPE_CHECKING:
    from onnxcam.explain.examination import Examination
    from onnxcam.explain.view import LayerView

_GENERAL = "nothing is left of the map after its ReLU"


def describe(method: Method, raw_maps: Sequence[np.ndarray], why: str) -> str:
    """The reason for a heatmap that is zero everywhere.

    Arguments:
        raw_maps: of the method, per layer, after ReLU, not normalised.
        why: what `reason` says of raw maps that are zero everywhere, empty if that is unknown.
    """
    if not any(raw_map.any() for raw_map in raw_maps):
        place = "in the picture" if method.kind == INPUT else "at this layer"
        return f"{NO_EVIDENCE} {place}: {why}" if why else f"{NO_EVIDENCE} {place}"
    return EVEN if all(raw_map.min() == raw_map.max() for raw_map in raw_maps) else OUTSIDE


def reason(
    examine: Callable[[], Examination],
    question: Question,
    index: int,
    method: Method,
    layers: Sequence[str],
    objective: Objective | None = None,
) -> str:
    """Find out why the map of one row is zero everywhere; a general sentence where that fails.

    Arguments:
        examine: gives the examination of this row alone, at the cost of one more run of the model.
        question: about this row alone.
        index: the class explained.
        objective: of a model of another task, what is explained.
    """
    if method.kind == INPUT:
        return (
            "all gradients at the picture are zero: no small change of it changes the score"
            if method.gradient
            else "no change of the picture that was tried changes the score"
        )
    try:
        examination = examine()
        if objective is None:
            objective = (
                question.objective(examination.scores, examination.placements)
                if question.top is None
                else logit(np.array([index], np.int64), examination.readout)
            )
        sentences = [_reason(examination.view(name, objective), method) for name in layers]
    except OnnxcamError:
        return _GENERAL
    if len(set(sentences)) == 1:
        return sentences[0]
    return "; ".join(f"{name}: {sentence}" for name, sentence in zip(layers, sentences, strict=True))


def _reason(view: LayerView, method: Method) -> str:
    activations = view.activations
    if not activations.any():
        return "all activations of the layer are zero"
    if method.gradient:
        gradients = view.gradients
        if not gradients.any():
            if view.objective.describe(0)[0] == PROBABILITY:
                return "all gradients are zero: the probability is saturated, so explain the score instead"
            if view.readout.logarithmic:
                return "all gradients are zero: the probabilities in the file are saturated"
            return "all gradients are zero: no small change of the layer changes the score"
        if gradients.max() <= 0:
            return "no gradient is positive: more of any channel lowers the score"
    if method.divides and view.value()[0] < 0:
        return f"the score is negative ({view.value()[0]:.3g}), and the method divides by it"
    if method.kind == GRAPH:
        before = view.map(method)
        if before.min() < 0 and before.max() <= 0:
            return "before its ReLU the map is nowhere positive: what the layer shows lowers the score"
        if method.gradient and not before.any():
            return "positive gradients and activations do not meet at any position"
    return _GENERAL
