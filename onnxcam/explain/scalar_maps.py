"""What the map of a scalar says of it: the box, the layer, and the scalar as it was resolved on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.explain.explanation import Scalar, name_of
from onnxcam.targets import boxes
from onnxcam.targets.objectives import Objective
from onnxcam.targets.scalar_objectives import Subject
from onnxcam.targets.tasks import Detection


def subject_of(objective: Objective) -> Subject:
    """What an objective of a model of another task is about."""
    subject = getattr(objective, "subject", None)
    return subject if isinstance(subject, Subject) else Subject(int(objective.classes[0]), None, 0.0)


def name_subject(subject: Subject, labels: Sequence[str] | None) -> tuple[int, str, float]:
    """Index, name and number of a map."""
    return subject.index, subject.label or name_of(subject.index, labels), subject.number


def scalar_of(objective: Objective, labels: Sequence[str] | None, geometry: image.Geometry, layer: Any) -> Scalar:
    """What was explained, in pixels of the picture."""
    subject, box = subject_of(objective), None
    if subject.box is not None and subject.candidate is not None:
        name = name_of(subject.index, labels)
        on_picture = boxes.to_picture(subject.box, geometry)
        box = Detection(subject.candidate, name, subject.index, subject.number, on_picture)
    mask = None
    if subject.cells is not None:
        mask = geometry.to_picture(subject.cells.astype(np.float32)) >= 0.5
        mask = mask if mask.any() else None
    return Scalar(objective.describe(0)[0], subject.target, layer, box, mask)
