"""Predictions about every row, and maps of those that meet a condition: nothing is differentiated for the others."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam.errors import InputError, SettingError, TargetAbsent, listing
from onnxcam.explain.batch_maps import BatchMaps
from onnxcam.explain.question import Question
from onnxcam.network.calibration.record import of_manifest
from onnxcam.targets import conditions
from onnxcam.targets.conditions import QUANTITIES, Calibration, Condition
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import DETECT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcam.explain.examination import Examination
    from onnxcam.explain.explainer import Explainer
    from onnxcam.image import Geometry

ALWAYS, NEVER = "always", "never"
_OF_OBJECTS = {"confidence", "label"}  # what a condition may read of a detector or a segmentation


class Answer(NamedTuple):
    """Predictions about N rows, and the maps of those that meet the condition.

    Attributes:
        scores, probabilities: `[N, K]`, `[N, classes]`.
        fired: bool `[N]`: which rows are explained.
        quantities: `conditions.QUANTITIES` of each row, `[N]` each.
        explained: of each row that is, in order: the maps of a batch, and its row there.
        absent: by row, why a picture that meets the condition has nothing to explain: no box, or none of the class.
    """

    scores: np.ndarray
    probabilities: np.ndarray
    fired: np.ndarray
    quantities: dict[str, np.ndarray]
    explained: list[tuple[BatchMaps, int]]
    absent: Mapping[int, str] = MappingProxyType({})


def read_condition(
    when: Any,
    labels: Sequence[str] | None = None,
    classes: int | None = None,
    calibration: Calibration | None = None,
) -> Condition | bool:
    """The condition that a text means: True for `always`, False for `never`.

    Arguments:
        labels, classes: as of `onnxcam.targets.conditions.parse`; 0 classes of a detector that does not tell.
        calibration: of the file, whose thresholds answer `top` and `risk`: a row's result does not depend on others.

    Raises:
        InputError: no text. SettingError, TargetError: it cannot be read, or asks for a calibration that the file has
            not.
    """
    if not isinstance(when, str):
        raise InputError(f'"when" is a {type(when).__name__}; expected text: always, never or a condition')
    if when in (ALWAYS, NEVER):
        return when == ALWAYS
    return conditions.bind(conditions.parse(when, labels, classes or None), calibration)


def fires(
    condition: Condition | bool,
    probabilities: np.ndarray,
    readout: Readout,
    calibration: Calibration | None = None,
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """Where a condition is met, bool `[N]`.

    Arguments:
        probabilities, scores: `[N, classes]`, `[N, K]`.
        calibration: of the file, for `calibrated` and `set`.

    Raises:
        SettingError: the model has no probabilities.
    """
    if isinstance(condition, bool):
        return np.full(len(probabilities), condition)
    named = _quantities_of(condition, readout)
    quantities = conditions.quantities(probabilities, readout, named, calibration, scores)
    return conditions.evaluate(condition, quantities)


def _quantities_of(condition: Condition, readout: Readout) -> set[str]:
    """The quantities that a condition reads.

    Raises:
        SettingError: the model has no probabilities, or not those of several classes.
    """
    readout.require_probabilities("this condition")
    named = conditions.names(condition)
    if readout.task is not None and not named <= _OF_OBJECTS:
        what = "the score of the best box" if readout.task.name == DETECT else "the share of the largest class"
        raise SettingError(
            f"the condition reads {listing(sorted(named - _OF_OBJECTS))}, and the model does not tell one of several "
            f"classes of a picture apart; use confidence ({what}) or label (its class)"
        )
    return named


def _decide(
    explainer: Explainer, condition: Condition | bool, scores: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Where a condition is met, bool `[N]`, and the quantities of an `Answer`."""
    readout = explainer.terms.readout
    if isinstance(condition, bool):
        return np.full(len(scores), condition), conditions.quantities(probabilities, readout)
    named = {*QUANTITIES, *_quantities_of(condition, readout)}
    values = conditions.quantities(probabilities, readout, named, of_manifest(explainer.manifest), scores)
    return conditions.evaluate(condition, values), values


def answer(
    explainer: Explainer,
    question: Question,
    condition: Condition | bool,
    batch: np.ndarray,
    count: int | None = None,
    geometries: Sequence[Geometry] = (),
) -> Answer:
    """Predict every row, and compute the maps of those that meet the condition.

    The head runs once; for the rows that meet the condition the tail runs, on as many rows as the batch has: the last
    one is repeated, so that a row's numbers do not depend on how many others meet it.

    Arguments:
        question: of one method and one target.
        condition: as of `read_condition`.
        batch: tensor in the model's own layout and dtype, checked.
        count: rows that are answered about; those after them are padding. None for all.
        geometries: how the picture of each of them lies on the model's input: what a box or a region is depends on it.
            None are needed of a classifier.

    Raises:
        TargetError, MethodError, LayerError, InputError, ModelError, SettingError: as their names say.
    """
    count = len(batch) if count is None else count
    readout = explainer.terms.readout
    if readout.task is not None and len(geometries) == count:
        return _of_objects(explainer, question, condition, batch, geometries)
    if condition is True and not question.alone:
        maps = explainer.batch_maps(question, batch)[0]
        scores, probabilities = maps.scores[:count], maps.probabilities[:count]
        decided = _decide(explainer, True, scores, probabilities)
        return Answer(scores, probabilities, *decided, [(maps, row) for row in range(count)])
    examination = None
    if isinstance(condition, bool) or question.alone:
        scores = explainer.batch_scores(batch)
        probabilities = readout.probabilities(scores)
    else:
        examination = explainer.examination(question, batch, layers=question.layers_read)
        scores, probabilities = examination.scores, examination.probabilities
    scores, probabilities = scores[:count], probabilities[:count]
    fired, values = _decide(explainer, condition, scores, probabilities)
    explained = _maps(explainer, question, batch, np.flatnonzero(fired), examination)
    return Answer(scores, probabilities, fired, values, explained)


def _of_objects(
    explainer: Explainer,
    question: Question,
    condition: Condition | bool,
    batch: np.ndarray,
    geometries: Sequence[Geometry],
) -> Answer:
    """`answer` about a detector or a segmentation: each row's target at the layer that its score comes from."""
    from onnxcam.explain import task_answers

    readout, count = explainer.terms.readout, len(geometries)
    scores, probabilities, fired = None, None, np.ones(count, bool)
    values: dict[str, np.ndarray] = {}
    if condition is not True:  # else the head that explains a row predicts it too
        scores = explainer.batch_scores(batch)[:count]
        probabilities = readout.probabilities(scores)
        fired, values = _decide(explainer, condition, scores, probabilities)
    explained, absent, parts = [], {}, []
    for row in np.flatnonzero(fired).tolist():
        of_row = question.of_rows(row, row + 1)
        examination = task_answers.examine(explainer, of_row, batch[row : row + 1], geometries[row])
        parts.append((examination.scores, examination.probabilities))
        try:
            explained.append((task_answers.row_maps(explainer, of_row, examination, geometries[row]), 0))
        except TargetAbsent as error:
            absent[row] = str(error)
    fired[list(absent)] = False
    if scores is None or probabilities is None:
        scores, probabilities = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        _, values = _decide(explainer, True, scores, probabilities)
    return Answer(scores, probabilities, fired, values, explained, absent)


def _maps(
    explainer: Explainer, question: Question, batch: np.ndarray, rows: np.ndarray, examination: Examination | None
) -> list[tuple[BatchMaps, int]]:
    """Maps of some rows, see `Answer`."""
    if not len(rows):
        return []
    if question.alone:  # random numbers must not depend on the other rows
        return [(explainer.batch_maps(question, batch[row : row + 1])[0], 0) for row in rows]
    padded = np.concatenate([rows, np.repeat(rows[-1:], len(batch) - len(rows))])
    if examination is not None and all(explainer.sessions.cut(name).free for name in question.layers_read):
        maps = explainer.examined_maps(question, batch[padded], examination.of_rows(padded))[0]
    else:
        maps = explainer.batch_maps(question, batch[padded])[0]
    return [(maps, row) for row in range(len(rows))]
