"""Names of the classes, or of the values, of a readout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxcam.errors import LabelsError, label_count
from onnxcam.targets.readout import Readout
from onnxcam.targets.resolution import value_names
from onnxcam.targets.tasks import Detect, Values, fit_names


def check_labels(labels: Sequence[str] | None, readout: Readout) -> list[str] | None:
    """The labels, one per class; a class that means "no object" may be left out of them.

    Raises:
        LabelsError: another number of them.
    """
    if labels is None:
        return None
    names = [str(label) for label in labels]
    if readout.task is not None:
        fitting = fit_names(readout.task, names)
    else:
        fitting = names if len(names) == readout.size else None
    if fitting is None:
        raise LabelsError(label_count(len(names), readout.size))
    return fitting


def names_of_values(readout: Readout) -> list[str] | None:
    """What quantities are called: as their outputs are. None of an embedding, whose numbers mean nothing alone."""
    if readout.task is None:
        return [readout.value]
    return value_names(readout.task) if isinstance(readout.task, Values) else None


def fitting_labels(readout: Readout, find: Callable[[int], list[str] | None]) -> list[str] | None:
    """The labels that `find` has for the number of classes, or for one less where one of them means "no object"."""
    named = find(readout.size)
    if named is None and isinstance(readout.task, Detect) and readout.task.background is not None and readout.size > 1:
        named = find(readout.size - 1)
    return named if named is None or readout.task is None else fit_names(readout.task, named)
