"""What one observed picture of a detector or segmentation is explained by: its best box, or its largest class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.errors import InputError
from onnxcam.explain import task_answers
from onnxcam.monitor.predictions import Row
from onnxcam.network.layout import Layout
from onnxcam.targets import boxes
from onnxcam.targets.detections import best_classes, detections, name_of
from onnxcam.targets.scalar_objectives import moves
from onnxcam.targets.scalars import Box
from onnxcam.targets.tasks import Detect, Detection

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

MOST = 20  # boxes in a record


class Scalar(NamedTuple):
    """What is explained of one picture.

    Attributes:
        raw: its map `[h, w]` at layer resolution.
        layer: of the map.
        members: further members of a record's prediction: `task`, `target`, and of a detector `own_layer`, `boxes`.
    """

    raw: np.ndarray
    layer: str
    members: Mapping[str, Any]


def explain(
    explainer: Explainer,
    row: Row,
    tensor: np.ndarray,
    geometry: image.Geometry | None,
    method: str,
    layer: str | None,
) -> Scalar:
    """Explain the default target of an observed picture.

    Arguments:
        tensor: the model's input, `[1, …]`.
        geometry: how the picture lies on it; None where the tensor is all there is, whose pixels boxes are in then.
        layer: None for the one that the target's score comes from.

    Raises:
        OnnxcamError: it cannot be explained.
    """
    task = explainer.terms.readout.task
    if task is None or row.columns is None:
        raise InputError("the row has no outputs of a detector or segmentation; report this as a bug")
    if geometry is None:
        size = Layout.of(explainer.manifest["input"]).size(tensor.shape)
        geometry = image.Geometry(size, size, (0, 0), size)
    labels, target = explainer.labels, None
    members: dict[str, Any] = {"task": task.name}
    if isinstance(task, Detect):
        reported = detections(task, row.columns, geometry.input_size, labels, most=MOST)
        members["own_layer"] = layer is None
        members["boxes"] = [_entry(boxes.on_picture(one, geometry)) for one in reported if one.class_index >= 0]
        if not moves(task):  # the candidate that the serving model reported, also where the other would report another
            _, scores = best_classes(task, row.columns)
            target = Box(int(np.where(np.isnan(scores), -np.inf, scores).argmax()))
    question = explainer.question(rows=1, target=target, method=method, layer=layer, normalize="none", size="layer")
    examination = task_answers.examine(explainer, question, tensor, geometry)
    group, *_ = task_answers.groups_of(explainer, question, examination, geometry)
    (objective, *_) = group.objectives
    if int(objective.classes[0]) < 0:
        raise InputError(f"the best box has the class {int(objective.classes[0])}, which is none: nothing to explain")
    (maps,) = examination.fused(group.question, objective)
    subject = objective.subject  # type: ignore[attr-defined]
    entry: dict[str, Any] = {"index": subject.index, "label": name_of(subject.index, labels), "score": subject.number}
    if subject.box is not None:
        entry |= {"box": list(boxes.to_picture(subject.box, geometry)), "candidate": subject.candidate}
    members["target"] = entry
    return Scalar(np.asarray(maps[0]), "+".join(group.question.layers), members)


def _entry(one: Detection) -> dict[str, Any]:
    return {"index": one.index, "label": one.label, "score": one.score, "box": list(one.box)}
