"""What a model says of a picture: its best classes, the values that it predicts, or an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxcam.errors import ModelError
from onnxcam.image.panel import percentage
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import EMBEDDING

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer

Prediction = tuple[int, str, float]  # index, label, and probability or value
CLASSES, VALUES, VECTOR = "classes", "values", "embedding"
_BEST = 5


def kind_of(readout: Readout) -> str:
    """Whether a model tells classes apart, predicts values, or makes a vector without a meaning of its own."""
    if readout.kind == EMBEDDING:
        return VECTOR
    return VALUES if readout.numeric else CLASSES


def predictions(explainer: Explainer, scores: np.ndarray) -> list[Prediction]:
    """The best classes of one picture with their probabilities; values in the model's order; nothing of an embedding.

    Arguments:
        scores: of the picture, `[1, K]`.
    """
    readout = explainer.terms.readout
    kind = kind_of(readout)
    if kind == VECTOR:
        return []
    scores = scores.astype(np.float32)
    numbers = readout.probabilities(scores)[0]
    best = list(range(min(_BEST, len(numbers))))
    if kind == CLASSES:
        best = [int(index) for index in readout.best(scores, min(_BEST, readout.size))[0]]
    return [(index, explainer.label(index), float(numbers[index])) for index in best]


def amount(kind: str, number: float) -> str:
    """A probability as a percentage, a value as a number."""
    if not np.isfinite(number):
        return "not a number"
    return percentage(number) if kind == CLASSES else f"{number:.5g}"


def listed(kind: str, some: Sequence[Prediction]) -> str:
    """Predictions in a line."""
    return ", ".join(f"{label} {amount(kind, number)}" for _, label, number in some)


def require_finite(values: np.ndarray, what: str) -> None:
    """Refuse values of which nothing can be said.

    Arguments:
        what: is not finite, for the message.

    Raises:
        ModelError: one is infinite or not a number.
    """
    if not np.isfinite(values).all():
        raise ModelError(
            f"{what} are not finite on this picture: the model overflows, or holds such weights; check the model and "
            "its preprocessing (`onnxcam check`)"
        )
