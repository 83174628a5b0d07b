"""Answers of a detector, a segmentation, an embedding or a model of several values: what it reports, and a map of each
thing that a request asks about.

One picture runs alone: which box or region a request means is settled on the scores of its picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcam.errors import TargetAbsent, TargetError
from onnxcam.explain import task_answers
from onnxcam.explain.conditional import fires
from onnxcam.explain.explanation import Explanation, Map, box_entry, boxes
from onnxcam.explain.preparation import Prepared
from onnxcam.explain.question import Question
from onnxcam.explain.saving import Drawing
from onnxcam.server.answers import empty_fields, pictures_of
from onnxcam.server.models import Model, Prediction
from onnxcam.server.refusals import Refusal
from onnxcam.targets.conditions import Condition

# what a request may name in place of a class
OPTIONS = ("target", "box", "part", "region", "like", "output", "contrast", "top")
MOST = 100  # maps of one answer


def values(options: Mapping[str, Any], textual: bool) -> dict[str, Any]:
    """What a request's options say about what is explained, as `Question.parse` takes it.

    Raises:
        Refusal: 422, a vector that is not one of numbers, or more maps than an answer holds.
    """
    named = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    like = named.get("like")
    if like is not None:
        named["like"] = _vector(like, textual)
    count = len(named["box"]) if isinstance(named.get("box"), list) else _top(named.get("top"), textual)
    if count > MOST:
        raise Refusal(422, f"the request asks for {count:,} maps; expected at most {MOST}")
    return named


def _top(value: Any, textual: bool) -> int:
    return int(value) if textual and isinstance(value, str) and value.isascii() and value.isdigit() else value or 1


def _vector(value: Any, textual: bool) -> list[float]:
    items = value.split(",") if textual and isinstance(value, str) else value
    try:
        if isinstance(items, list) and not any(isinstance(item, bool) for item in items):
            return [float(item) for item in items]
    except (TypeError, ValueError):
        pass
    raise Refusal(422, '"like" is no embedding; expected a list of numbers')


def predict(
    model: Model, prepared: Prepared, question: Question, when: Condition | bool, progress: Any
) -> tuple[Prediction, Explanation | None]:
    """What the model says of a picture, and its explanation where that meets the condition.

    A picture without any box has none, unless the request names one.

    Raises:
        Refusal: 422, the picture has no such box or region.
    """
    explainer, (_, tensor, _) = model.explainer, prepared
    readout = explainer.terms.readout
    scores = explainer.batch_scores(explainer.check_batch(tensor))
    probabilities = readout.probabilities(scores)
    fired = fires(when, probabilities, readout, model.calibration, scores)
    prediction = Prediction(probabilities, scores, fired, None)
    if not fired[0]:
        return prediction, None
    try:
        explanation = next(task_answers.explanations(explainer, question, [prepared], progress))
    except TargetError as error:
        if isinstance(error, TargetAbsent) and question.targets == (None,):
            return prediction._replace(fired=np.zeros(1, bool)), None
        raise Refusal(422, str(error)) from error
    return prediction, explanation


def answer(
    model: Model,
    prepared: Prepared,
    prediction: Prediction,
    explanation: Explanation | None,
    question: Question,
    count: int,
    files: Sequence[str],
    style: Drawing,
) -> dict[str, Any]:
    """The answer about one picture; arguments as of `onnxcam.server.answers.answer`.

    Beside the fields of a classifier's answer it has the `task`, the `boxes` that a detector reports, and `maps`: one
    entry for each thing explained, the first of which is the answer's own `target`, `statistics` and pictures too.
    """
    explainer, (_, _, geometry) = model.explainer, prepared
    task = explainer.terms.readout.task
    assert task is not None, "a classifier's answer is made elsewhere"
    if explanation is None:
        reported = task_answers.reported_boxes(explainer, prediction.scores[0], geometry)
    else:
        reported = explanation.boxes
    blank = task.name == "detect" and not (prediction.probabilities[0] > 0).any()
    top = [] if blank or task.name == "embed" else model.top(prediction.probabilities[0], count)
    best = top[0] if top and task.name != "regress" else None
    content: dict[str, Any] = {
        "model": model.name,
        "task": task.name,
        "prediction": reported[0].label if reported else best and best["class_name"],
        "confidence": best and best["confidence"],
        "top_predictions": top,
        "boxes": [box_entry(one) for one in reported],
        "fired": explanation is not None,
        "target": None,
        "layer": question.layer,
        "method": question.methods[0].name,
        "statistics": None,
        "visible": None,
        "warnings": list(explainer.warnings),
        "maps": [],
    }
    if explanation is None:
        return content | dict.fromkeys(empty_fields(files))
    content["visible"] = boxes(explanation.visible, explanation.picture)
    content["warnings"] = list(explanation.warnings)
    content["maps"] = [_entry(explanation, one, files, style) for one in explanation.maps]
    first = content["maps"][0]
    content |= {key: value for key, value in first.items() if key.startswith("gradcam_")}
    return content | {key: first[key] for key in ("target", "statistics", "layer")}


def _entry(explanation: Explanation, one: Map, files: Sequence[str], style: Drawing) -> dict[str, Any]:
    """One map: what it is about, its statistics and pictures."""
    alone = explanation.of_map(one)
    target: dict[str, Any] = {"class_name": one.label, "class_index": one.target, "confidence": one.probability}
    if explanation.numeric:
        target |= {"confidence": None, "value": one.probability}
    scalar = one.scalar
    if scalar is not None:
        box = None if scalar.box is None else box_entry(scalar.box)
        target |= {"objective": scalar.kind, "scalar": scalar.target, "box": box}
    content = {
        "target": target,
        "layer": explanation.layer if scalar is None else scalar.layer,
        "statistics": one.statistics,
        "blank": one.blank,
        **dict(pictures_of(alone, [name for name in files if name != "map"], style)),
    }
    if "map" in files:
        raw = one.raw_map[-1] if isinstance(one.raw_map, list) else one.raw_map
        content["gradcam_map"] = np.asarray(raw, np.float32).tolist()
    return content
