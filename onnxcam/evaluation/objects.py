"""Judge methods on objects: the boxes of a detector, the regions of a model of segmentation.

Each object is a row, and its number is the score of its box, or the class's mean probability in its region: what
insertion and deletion follow as the picture changes. With boxes drawn around the objects a detector's own are those
that it reports of the same class with an overlap (IoU) of at least 0.5; without, each is judged by the box that the
detector itself reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.errors import InputError, TargetError
from onnxcam.evaluation import boxes as box_files
from onnxcam.evaluation import drise
from onnxcam.evaluation.evaluation import Evaluation
from onnxcam.evaluation.metrics import Metric
from onnxcam.evaluation.trial import ROWS, Runs, Trial, to_input
from onnxcam.explain import task_answers
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.maps import fuse, windows_of
from onnxcam.explain.question import Question
from onnxcam.network.layout import Layout
from onnxcam.targets import boxes as box_targets
from onnxcam.targets import regions
from onnxcam.targets.classes import resolve as resolve_class
from onnxcam.targets.detections import detections, iou
from onnxcam.targets.scalar_objectives import moves
from onnxcam.targets.scalars import Box, Region, Several
from onnxcam.targets.tasks import Detect, Segment, Size

OVERLAP = 0.5  # of a reported box with one that was drawn, to be of the same object


@dataclass(frozen=True)
class Thing:
    """One object of a picture.

    Attributes:
        target: what is explained.
        index, score: of its class, and its number in the unchanged picture.
        measure: the number under scores `[columns]`.
        again: what is explained of a changed picture, from its scores `[columns]`.
        inside: its box, bool of the picture's size; None where it is not known.
        others: the boxes of the other objects of its class.
        detail: what the results say of it: its box in the picture's pixels, its candidate.
        candidate: its index in the file's own output, None of a region.
    """

    target: Any
    index: int
    score: float
    measure: Callable[[np.ndarray], float] = field(repr=False)
    again: Callable[[np.ndarray], Any] = field(repr=False)
    inside: np.ndarray | None = field(default=None, repr=False)
    others: tuple[np.ndarray, ...] = field(default=(), repr=False)
    detail: dict[str, Any] = field(default_factory=dict)
    candidate: int | None = None


@dataclass
class Tally:
    """How many objects there are.

    Attributes:
        drawn: boxes that were given, of classes that the model has.
        detected: those of them that the detector reports.
        pictures: pictures that were read.
    """

    drawn: int = 0
    detected: int = 0
    pictures: int = 0


def is_of_objects(explainer: Explainer) -> bool:
    """Whether a model's maps are of objects: it is a detector, or one of segmentation."""
    return isinstance(explainer.terms.readout.task, (Detect, Segment))


def things(
    explainer: Explainer,
    row: np.ndarray,
    geometry: image.Geometry,
    drawn: Sequence[box_files.Box] | None,
    tally: Tally,
    *,
    missed: bool = False,
) -> list[Thing]:
    """The objects of one picture that are judged.

    Arguments:
        row: the scores of the picture, `[columns]`.
        drawn: the boxes around its objects; None where they are not known.
        tally: counts them.
        missed: of a detector, explain a drawn object that it does not report too, by the candidate of its class with
            the highest score that overlaps it enough.
    """
    task, labels = explainer.terms.readout.task, explainer.labels
    tally.pictures += 1
    labelled = None if drawn is None else [(box, _class(explainer, box)) for box in drawn]
    tally.drawn += len(labelled or [])
    if isinstance(task, Detect):
        selected = _boxes(task, row, geometry, labels, labelled, missed)
    elif isinstance(task, Segment):
        selected = _regions(task, row, geometry, labels, labelled)
    else:
        raise InputError("objects are judged of a detector or a model of segmentation")
    tally.detected += sum(bool(thing.detail.get("detected", True)) for thing in selected)
    return selected


def _class(explainer: Explainer, box: box_files.Box) -> int | None:
    """The class of a drawn box by index; None where it names none."""
    label, labels = box.label, explainer.labels
    if label is None:
        return None
    if isinstance(label, str) and label.isdigit() and label not in (labels or ()):
        label = int(label)
    task = explainer.terms.readout.task
    size = getattr(task, "size", 0) or len(labels or ()) or 1 << 31
    return int(resolve_class(label, 1, size, labels)[0])


def _boxes(
    task: Detect,
    row: np.ndarray,
    geometry: image.Geometry,
    labels: Sequence[str] | None,
    labelled: Sequence[tuple[box_files.Box, int | None]] | None,
    missed: bool,
) -> list[Thing]:
    reported = [box_targets.on_picture(one, geometry) for one in detections(task, row, geometry.input_size, labels)]
    if labelled is None:
        return _with_others(
            [
                _box(task, row, geometry, one.index, one.class_index, box_files.Box(*one.box), {"detected": True})
                for one in reported
            ]
        )
    subjects: list[Thing] = []
    free = list(reported)
    for box, index in labelled:
        edges = np.array([box.x0, box.y0, box.x1, box.y1])
        overlaps = [iou(edges, np.array([one.box]))[0] if index in (None, one.class_index) else 0.0 for one in free]
        best = next((k for k, overlap in enumerate(overlaps) if overlap >= OVERLAP), None)  # best score first
        if best is not None:
            one = free.pop(best)
            subjects.append(_box(task, row, geometry, one.index, one.class_index, box, {"detected": True}))
        elif missed and index is not None:
            near = _candidate(task, row, geometry, edges, index)
            if near is not None:
                subjects.append(_box(task, row, geometry, near, index, box, {"detected": False}))
    return _with_others(subjects)


def _candidate(task: Detect, row: np.ndarray, geometry: image.Geometry, edges: np.ndarray, index: int) -> int | None:
    """The candidate with the highest score of a class that overlaps a box of the picture enough."""
    scale, offset = np.array(geometry.scale[::-1] * 2), np.array(geometry.offset[::-1] * 2)
    boxes = task.pixels(task.boxes.read(row, task.count(len(row))), geometry.input_size)
    scores = np.where(iou(edges * scale + offset, boxes) >= OVERLAP, _scores(task, row, index), -1.0)
    best = int(scores.argmax()) if len(scores) else -1
    return best if best >= 0 and scores[best] > 0 else None


def _scores(task: Detect, row: np.ndarray, index: int) -> np.ndarray:
    """The score of a class of every candidate, float64 `[M]`."""
    p = task.probabilities(row)
    if task.labels is None:
        return np.asarray(p[:, index])
    return np.where(np.rint(task.labels.read(row, len(p))[:, 0]) == index, p[:, 0], 0.0)


def _box(
    task: Detect,
    row: np.ndarray,
    geometry: image.Geometry,
    candidate: int,
    index: int,
    drawn: box_files.Box,
    detail: dict[str, Any],
) -> Thing:
    reference = task.pixels(task.boxes.read(row, task.count(len(row)))[candidate], geometry.input_size)

    def likeness(changed: np.ndarray) -> np.ndarray:
        """The scores of the class; where candidates are others on each picture, times their overlap with the box."""
        scores = _scores(task, changed, index)
        if not moves(task):
            return scores
        boxes = task.pixels(task.boxes.read(changed, len(scores)), geometry.input_size)
        return np.asarray(scores * iou(reference, boxes))

    def measure(changed: np.ndarray) -> float:
        scores = likeness(changed)
        return float(scores.max(initial=0.0) if moves(task) else scores[candidate])

    def again(changed: np.ndarray) -> Box:
        return Box(int(likeness(changed).argmax()) if moves(task) else candidate)

    target = box_targets.to_picture(tuple(reference.tolist()), geometry)
    detail = {"candidate": candidate, "box": [round(edge, 2) for edge in target], **detail}
    inside = box_files.mask([drawn], geometry.picture_size)
    score = float(_scores(task, row, index)[candidate])
    return Thing(Box(candidate), index, score, measure, again, inside, (), detail, candidate)


def _regions(
    task: Segment,
    row: np.ndarray,
    geometry: image.Geometry,
    labels: Sequence[str] | None,
    labelled: Sequence[tuple[box_files.Box, int | None]] | None,
) -> list[Thing]:
    if labelled is None:
        best = regions.largest(task, row, geometry, labels, 1)[0]
        return [_region(task, row, geometry, labels, Region(best), None)]
    subjects = []
    for box, index in labelled:
        try:
            region = Region(index, (box.x0, box.y0, box.x1, box.y1))
            subjects.append(_region(task, row, geometry, labels, region, box))
        except TargetError:  # outside what the model sees of the picture
            continue
    return _with_others(subjects)


def _region(
    task: Segment,
    row: np.ndarray,
    geometry: image.Geometry,
    labels: Sequence[str] | None,
    target: Region,
    drawn: box_files.Box | None,
) -> Thing:
    objective = regions.objective(task, target, row, geometry, labels)
    columns, size = objective.columns, geometry.input_size

    def measure(changed: np.ndarray) -> float:
        """The mean probability of the class over the region."""
        return float(task.flatten(task.probabilities(changed, size))[columns].mean())

    detail = {} if drawn is None else {"box": [drawn.x0, drawn.y0, drawn.x1, drawn.y1]}
    inside = None if drawn is None else box_files.mask([drawn], geometry.picture_size)
    return Thing(target, objective.subject.index, measure(row), measure, lambda changed: target, inside, (), detail)


def _with_others(subjects: Sequence[Thing]) -> list[Thing]:
    """The same with the boxes of the other objects of each one's class."""
    return [
        replace(
            one,
            others=tuple(
                other.inside
                for other in subjects
                if other is not one and other.index == one.index and other.inside is not None
            ),
        )
        for one in subjects
    ]


def maps(explainer: Explainer, question: Question, tensor: np.ndarray, geometry: image.Geometry) -> list[np.ndarray]:
    """Per method the maps of all targets of one picture, 0 to 1, float32 `[targets, H, W]` of the model's input."""
    examination = task_answers.examine(explainer, question, tensor, geometry)
    groups = task_answers.groups_of(explainer, question, examination, geometry)
    count = sum(len(group.places) for group in groups)
    result = [np.zeros((count, *examination.input_size), np.float32) for _ in question.methods]
    for group in groups:
        windows = explainer.windows(group.question.layers)
        for place, by_layer in enumerate(examination.several(group.question, group.objectives)):
            method = question.methods[place]
            fused = fuse(
                [one[0] for one in by_layer],
                question.normalize,
                examination.input_size,
                question.fusion,
                windows=windows_of(method, windows),
                input_size=examination.input_size,
            )
            result[place][group.places] = fused
    return result


def judge_picture(
    explainer: Explainer,
    question: Question,
    tensor: np.ndarray,
    geometry: image.Geometry,
    subjects: Sequence[Thing],
    places: Sequence[int],
    metrics: Sequence[Metric],
    options: dict[str, Any],
    evaluation: Evaluation,
    tell: Callable[[], None],
) -> list[np.ndarray]:
    """Judge every method on the objects of one picture; return the maps, per method."""
    entry = explainer.manifest["input"]
    by_method = maps(explainer, question, tensor, geometry)
    picture = np.asarray(Layout.of(entry).to_canonical(tensor), np.float32)
    pictures = np.broadcast_to(picture, (len(subjects), *picture.shape[1:]))
    masked: dict[int, np.ndarray] = {}
    runs = Runs(explainer.sessions.rows or ROWS)

    def run(changed: np.ndarray) -> np.ndarray:
        return explainer.batch_scores(to_input(changed, entry))

    def measure(changed: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.array([subjects[int(row)].measure(one) for one, row in zip(run(changed), rows, strict=True)])

    def masking(count: int) -> np.ndarray:
        if count not in masked:
            masked[count] = _masked(explainer, picture[0], run, subjects, count, question.seed, tell)
        return masked[count]

    def explaining(method: str) -> Callable[[np.ndarray], np.ndarray]:
        """Maps of the objects, each in a changed picture of its own."""

        def explain(changed: np.ndarray) -> np.ndarray:
            again = []
            for thing, one in zip(subjects, changed, strict=True):
                batch = to_input(one[None], entry)
                target = thing.again(explainer.batch_scores(batch)[0])
                named = question.layer if question.layer_named else None
                question_again = explainer.question(
                    rows=1, target=[target], method=[method], layer=named, seed=question.seed
                )
                again.append(maps(explainer, question_again, batch, geometry)[0][0])
            return np.stack(again)

        return explain

    for place, method in enumerate(question.methods):
        trial = Trial(
            predict=run,
            explain=explaining(method.name),
            pictures=pictures,
            maps=by_method[place],
            classes=np.array([thing.index for thing in subjects], np.int64),
            whole=np.array([thing.score for thing in subjects]),
            places=places,
            seed=question.seed,
            boxes=[thing.inside for thing in subjects],
            others=[thing.others for thing in subjects],
            originals=[geometry.to_picture(one) for one in by_method[place]],
            measure=measure,
            masking=masking,
            tell=tell,
            runs=runs,
        )
        for metric in metrics:
            evaluation.record(method.name, metric.name, places, metric(trial, options))
        evaluation.add_curves(method.name, places, trial.curves)
    evaluation.passes["pictures"] += 1
    evaluation.passes["changed"] += runs.count
    evaluation.passes["shared"] += runs.repeated
    return by_method


def _masked(
    explainer: Explainer,
    picture: np.ndarray,
    run: Callable[[np.ndarray], np.ndarray],
    subjects: Sequence[Thing],
    count: int,
    seed: int,
    tell: Callable[[], None],
) -> np.ndarray:
    """The maps of D-RISE; of regions, of masks weighed by each one's number."""
    task = explainer.terms.readout.task
    size: Size = (picture.shape[1], picture.shape[2])
    if isinstance(task, Detect):
        candidates = [thing.candidate or 0 for thing in subjects]
        objects = drise.references(task, run(picture[None])[0], candidates, size)

        def weigh(row: np.ndarray) -> np.ndarray:
            return drise.similarity(task, row, objects, size)
    else:

        def weigh(row: np.ndarray) -> np.ndarray:
            return np.array([thing.measure(row) for thing in subjects])

    rows = explainer.batch_size or drise.ROWS
    return drise.saliency(run, picture, weigh, count=count, seed=seed, rows=rows, tell=tell)


def question_of(
    explainer: Explainer, subjects: Sequence[Thing], methods: Sequence[str], layer: Any, seed: int
) -> Question:
    """The question about all objects of one picture."""
    targets = Several([thing.target for thing in subjects])
    return explainer.question(rows=1, target=[targets], method=list(methods), layer=layer, seed=seed)
