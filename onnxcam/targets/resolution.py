"""From what users ask of any model to objectives: the one place that knows what a target means for each task.

    classes       an index, a label, `Contrast`, `Probability`, `Weights`: see `onnxcam.targets.objectives`
    detection     `Box`, or a class for its best box; None for the best box of all
    segmentation  `Region`, or a class for the cells where it is highest; None for the class that has most of them
    embedding     `Similarity`
    regression    `Value`, or the index of one of several

A target is checked by `check` before anything runs, and resolved by `resolve` or `expand` on the columns of each
unchanged picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxcam.errors import InputError, TargetError, listing
from onnxcam.targets import boxes, objectives, regions, scalars
from onnxcam.targets.classes import TOP1, check_count
from onnxcam.targets.classes import index as class_index
from onnxcam.targets.difference import Difference
from onnxcam.targets.objectives import Labels, Objective, PerRow
from onnxcam.targets.readout import Readout
from onnxcam.targets.scalar_objectives import OUTPUT, Combination, Cosine, Subject, Subtraction
from onnxcam.targets.scalars import Box, Placement, Region, Several, Similarity, Value
from onnxcam.targets.tasks import DETECT, EMBED, REGRESS, SEGMENT, Detect, Embed, Segment, Values

_ANY = 1 << 31  # classes of a detector that does not tell how many it has


def check(target: Any, readout: Readout, labels: Labels = None) -> Any:
    """One target with every class by its index, or a scalar; nothing about it depends on more than the picture.

    Raises:
        TargetError: no such class or value; or a target of another task, with what this one takes.
    """
    if isinstance(target, Several):
        if not target:
            raise TargetError("several targets: the list is empty; name at least one")
        return Several(check(one, readout, labels) for one in target)
    if isinstance(target, Difference):
        return Difference(check(target.first, readout, labels), check(target.second, readout, labels))
    task = readout.task
    if task is None:
        if isinstance(target, Value) and readout.numeric:
            return _only_value(target, readout)
        if scalars.is_scalar(target):
            raise TargetError(
                f"{_spelled(target)} is a target of {_NAMES_OF_ONE[_task_of(target)]}; this model is a classifier: "
                f"{_CLASS}; if it is none, say so with task={_task_of(target)!r} (on the command line: --task "
                f"{_task_of(target)})"
            )
        return objectives.by_index(target, readout, labels)
    if isinstance(target, objectives.SPECIAL):
        raise TargetError(
            f"{_spelled(target)} compares the scores of classes, and this model is {_NAMES[task.name]}: "
            f"{_TAKES[task.name]}"
        )
    if isinstance(task, Detect):
        return _check_box(target, task, labels)
    if isinstance(task, Segment):
        return _check_region(target, task, labels)
    if isinstance(task, Embed):
        return _check_similarity(target, task)
    return _check_value(target, task, labels)


def resolve(
    target: Any,
    scores: np.ndarray,
    readout: Readout,
    labels: Labels = None,
    default: int = TOP1,
    placements: Sequence[Placement] = (),
) -> Objective:
    """The objective that a target means for the rows of a batch.

    Arguments:
        target: of `check`, or a list with one per row.
        scores: `[N, columns]` of the unchanged rows.
        default: the class that None means.
        placements: of each row how its picture lies on the model's input; one serves all. Of a classifier none is read.

    Raises:
        TargetError: a row's picture has no such box or region; or what `objectives.resolve` raises.
    """
    rows = len(scores)
    listed = isinstance(target, (list, tuple)) and not isinstance(target, Several)
    if readout.task is None and not _made_of_two(target):
        return objectives.resolve(target, scores, readout, labels, default)
    if listed:
        check_count(len(target), rows)
    per_row: list[Objective] = []
    for row in range(rows):
        one = target[row] if listed else target
        placement = placements[row if len(placements) > 1 else 0] if placements else None
        per_row.append(_resolve(one, scores[row : row + 1], readout, labels, default, placement))
    return per_row[0] if rows == 1 else PerRow(per_row)


def expand(
    target: Any, top: int | None, row: np.ndarray, readout: Readout, labels: Labels, placement: Placement
) -> list[Any]:
    """The targets of one picture, one for each of its maps.

    Arguments:
        target: of `check`.
        top: instead, the best boxes, or the classes with the most cells: at most as many as there are.
        row: `[columns]` of the unchanged picture.
    """
    task = readout.task
    if top is None:
        return list(target) if isinstance(target, Several) else [target]
    if isinstance(task, Detect):
        from onnxcam.targets.detections import detections

        best = detections(task, row, placement.input_size, labels)[:top]
        return [Box(one.index) for one in best] or [Box()]
    if isinstance(task, Segment):
        return [Region(index) for index in regions.largest(task, row, placement, labels, top)]
    return [target]


def _made_of_two(target: Any) -> bool:
    if isinstance(target, (list, tuple)):
        return any(_made_of_two(one) for one in target)
    return isinstance(target, (Difference, Value))


def _resolve(
    target: Any, scores: np.ndarray, readout: Readout, labels: Labels, default: int, placement: Placement | None
) -> Objective:
    """The objective of one row, `[1, columns]`."""
    if isinstance(target, Difference):
        parts = [_resolve(one, scores, readout, labels, default, placement) for one in (target.first, target.second)]
        return _subtraction(parts[0], parts[1], readout, labels)
    task, row = readout.task, scores[0]
    if isinstance(target, Value):
        return _of_value(target, readout, row, labels)
    if task is None or placement is None:
        return objectives.resolve(target, scores, readout, labels, default)
    if isinstance(task, Detect):
        return boxes.objective(task, Box() if target is None else target, row, placement, labels)
    if isinstance(task, Segment):
        return regions.objective(task, Region() if target is None else target, row, placement, labels)
    if isinstance(target, Similarity) and target.vector is not None:
        cosine = Cosine(Subject(0, "similarity", 0.0, target=scalars.describe(target)), target.vector)
        cosine.subject = replace(cosine.subject, number=float(cosine.value(scores, np.zeros(1, np.int64))[0]))
        return cosine
    raise TargetError(_missing(task.name))


def _subtraction(first: Objective, second: Objective, readout: Readout, labels: Labels) -> Subtraction:
    """The difference of two objectives of one row, named after both."""
    names, subjects = [], [getattr(part, "subject", None) for part in (first, second)]
    for part, subject in zip((first, second), subjects, strict=True):
        index = int(part.classes[0])
        name = subject.label if subject is not None and subject.label is not None else None
        names.append(name or (labels[index] if labels and index < len(labels) else str(index)))
        if subject is not None and subject.candidate is not None:
            names[-1] += f" (box {subject.candidate})"
    leading = subjects[0] or Subject(int(first.classes[0]), None, 0.0)
    described = {"minus": [None if one is None else one.target for one in subjects]}
    doubts = [one.doubt for one in subjects if one is not None and one.doubt]
    number = leading.number
    if leading.candidate is None and subjects[1] is not None:  # of a box the score, as it is without the other
        number -= subjects[1].number
    label = f"{names[0]} minus {names[1]}"
    return Subtraction(
        first, second, replace(leading, label=label, number=number, target=described, doubt="; ".join(doubts) or None)
    )


def _of_value(target: Value, readout: Readout, row: np.ndarray, labels: Labels) -> Combination:
    column = target.index or 0
    name = labels[column] if labels and column < len(labels) else _value_name(readout, column)
    label = name if target.sign > 0 else f"-{name}"
    entry = {"output": _value_name(readout, column), "sign": target.sign}
    subject = Subject(column, label, float(target.sign * row[column]), target=entry)
    return Combination(subject, np.array([column]), np.array([float(target.sign)]), OUTPUT)


def _value_name(readout: Readout, column: int) -> str:
    task = readout.task
    if not isinstance(task, Values):
        return str(column)
    return value_names(task)[column]


def value_names(task: Values) -> list[str]:
    """What each of the values is called: its output, and its index where that has several."""
    return [
        f"{name}[{index}]" if size > 1 else name
        for name, size in zip(task.names, task.sizes, strict=True)
        for index in range(size)
    ]


def _only_value(target: Value, readout: Readout) -> Value:
    """The value of a model that has one."""
    if target.name not in (None, readout.value, readout.output) or target.index not in (None, 0):
        raise TargetError(f"{_spelled(target)}: the model has one value, {readout.output or readout.value!r}")
    return replace(target, index=0)


def _check_box(target: Any, task: Detect, labels: Labels) -> Box | None:
    classes = task.size or (len(labels) if labels else _ANY)
    if target is None or (isinstance(target, (int, np.integer)) and not isinstance(target, bool) and target == TOP1):
        return None
    if isinstance(target, Box):
        if target.label is None:
            return target
        return replace(target, label=class_index(target.label, classes, labels))
    if scalars.is_scalar(target):
        raise _other(target, task.name)
    return Box(label=class_index(target, classes, labels))


def _check_region(target: Any, task: Segment, labels: Labels) -> Region | None:
    if target is None or (isinstance(target, (int, np.integer)) and not isinstance(target, bool) and target == TOP1):
        return None
    if isinstance(target, Region):
        if target.label is None:
            return target
        return Region(class_index(target.label, task.size, labels), target.region)
    if scalars.is_scalar(target):
        raise _other(target, task.name)
    return Region(class_index(target, task.size, labels))


def _check_similarity(target: Any, task: Embed) -> Any:
    if isinstance(target, Value):
        if target.index is None or target.index >= task.size:
            raise TargetError(f"{_spelled(target)}: the embedding has {task.size} numbers, index 0 to {task.size - 1}")
        return target
    if target is None:
        raise TargetError(_missing(task.name))
    if not isinstance(target, Similarity):
        raise _other(target, task.name)
    vector = target.vector
    if vector is None:
        raise TargetError(
            "a similarity with a picture needs the picture's embedding: ask explain() or attribute() of an Explainer, "
            "or give a vector"
        )
    if len(vector) != task.size:
        raise TargetError(f"got a vector of {len(vector)} numbers; the model's embedding has {task.size}")
    return target


def _check_value(target: Any, task: Values, labels: Labels) -> Value:
    if isinstance(target, Value):
        if target.name is None and target.index is not None and len(task.names) == 1:
            target = replace(target, name=task.names[0])
        try:
            return Value(None, task.column(target.name, target.index), target.sign)
        except InputError as error:
            raise TargetError(str(error)) from None
    if target is None:
        raise TargetError(_missing(task.name) + f": {listing(value_names(task))}")
    if scalars.is_scalar(target):
        raise _other(target, task.name)
    index = class_index(target, task.size, labels or value_names(task))
    if index < 0:
        raise TargetError(_missing(task.name) + f": {listing(value_names(task))}")
    return Value(None, index)


_CLASS = "its targets are classes, by index or label"
_NAMES = {
    "detect": "a detector",
    "segment": "a model of segmentation",
    "embed": "an embedding",
    "regress": "a regression of several values",
}
_NAMES_OF_ONE = {**_NAMES, "regress": "a regression"}
_TAKES = {
    "detect": "name a box (--box, onnxcam.targets.Box), or a class for its best box",
    "segment": "name a region (--region, onnxcam.targets.Region), or a class for its own cells",
    "embed": "name what the embedding is compared with (--like, onnxcam.targets.Similarity)",
    "regress": "name one of the values (--value, onnxcam.targets.Value)",
}


def _missing(task: str) -> str:
    return f"no target was named, and {_NAMES[task]} has none of its own: {_TAKES[task]}"


def _other(target: Any, task: str) -> TargetError:
    return TargetError(f"{_spelled(target)} is not a target of this model, {_NAMES[task]}: {_TAKES[task]}")


def _task_of(target: Any) -> str:
    """The task that a scalar is a target of."""
    if isinstance(target, Difference):
        return _task_of(target.first if scalars.is_scalar(target.first) else target.second)
    return {Box: DETECT, Region: SEGMENT, Similarity: EMBED}.get(type(target), REGRESS)


def _spelled(target: Any) -> str:
    """A target in a message, without the numbers of a vector or a mask."""
    if isinstance(target, Similarity):
        return "Similarity(...)"
    if isinstance(target, Region):
        region = "mask" if isinstance(target.region, np.ndarray) else target.region
        return f"Region({target.label!r}, {region})"
    if isinstance(target, Box):
        named = [
            f"{name}={value!r}" for name in ("label", "at", "rank") if (value := getattr(target, name)) is not None
        ]
        return f"Box({', '.join([str(target.index)] * (target.index is not None) + named)})"
    return repr(target) if not isinstance(target, Difference) else "a difference"
