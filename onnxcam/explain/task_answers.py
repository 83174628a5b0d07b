"""Answers about a model of another task than classification: one picture at a time, a map for each of its targets.

The head runs once. Which box or region a target means is settled on its scores; then every target's map is computed at
the layer that the user names, or at the one that its scores come from, all targets of a layer in one batched run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxcam import image
from onnxcam.cam.methods import GRAPH, Method
from onnxcam.errors import InputError
from onnxcam.explain import box_layers
from onnxcam.explain.batch_maps import BatchMaps
from onnxcam.explain.examination import Examination, join_rows
from onnxcam.explain.explanation import Explanation
from onnxcam.explain.features import Progress
from onnxcam.explain.preparation import Prepared
from onnxcam.explain.question import Question
from onnxcam.targets import boxes
from onnxcam.targets.detections import detections
from onnxcam.targets.difference import Difference
from onnxcam.targets.objectives import Objective
from onnxcam.targets.resolution import expand, resolve
from onnxcam.targets.scalar_objectives import BoxNumber, Subtraction, moves
from onnxcam.targets.scalars import Placement, Several, Similarity
from onnxcam.targets.tasks import Detect, Detection, Embed

if TYPE_CHECKING:
    from onnxcam.explain.explainer import Explainer


class Group(NamedTuple):
    """The targets of one picture whose maps are of one layer.

    Attributes:
        question: about the layer.
        places: of the targets, among all of the picture.
        objectives: theirs.
    """

    question: Question
    places: list[int]
    objectives: list[Objective]


def explanations(
    explainer: Explainer, question: Question, prepared: Sequence[Prepared], progress: Progress | None
) -> Iterator[Explanation]:
    """The explanation of each picture, see `Explainer.answer`."""
    for place, (picture, tensor, geometry) in enumerate(prepared):
        yield _explanation(explainer, question.of_rows(place, place + 1), picture, tensor, geometry, progress)


def examine(explainer: Explainer, question: Question, tensor: np.ndarray, geometry: image.Geometry) -> Examination:
    """Run the head over one picture, exposing what a question about it may need."""
    batch = explainer.check_batch(tensor)
    layers = exposed_layers(explainer, question)
    return explainer.examination(question, batch, layers=layers, placements=[geometry])


def groups_of(explainer: Explainer, question: Question, examination: Examination, placement: Placement) -> list[Group]:
    """The targets of a question about one picture, by the layers of their maps.

    Raises:
        TargetAbsent: the picture has no such box, or no cell of the class.
    """
    readout, labels = examination.readout, question.terms.labels
    targets = expand(question.targets[0], question.top, examination.scores[0], readout, labels, placement)
    default = question.default_class
    objectives = [resolve(target, examination.scores, readout, labels, default, [placement]) for target in targets]
    return grouped(explainer, question, examination, objectives)


def grouped(
    explainer: Explainer, question: Question, examination: Examination, objectives: Sequence[Objective]
) -> list[Group]:
    """Objectives of one picture by the layers of their maps: the question's, or where none was named each one's own."""
    groups: dict[tuple[str, ...], Group] = {}
    for place, objective in enumerate(objectives):
        layers = question.layers
        if not question.layer_named:
            layers = box_layers.choose(explainer.manifest, question.layers, examination, objective)
        group = groups.setdefault(layers, Group(question.about_layers(layers), [], []))
        group.places.append(place)
        group.objectives.append(objective)
    return list(groups.values())


def row_maps(explainer: Explainer, question: Question, examination: Examination, geometry: image.Geometry) -> BatchMaps:
    """Scores and the map of the only target of one picture, by the question's only method.

    Raises:
        TargetAbsent: as of `groups_of`.
    """
    (group,) = groups_of(explainer, question, examination, geometry)
    (maps,) = _batch_maps(explainer, group, examination, reported_boxes(explainer, examination.scores[0], geometry))
    return maps


def attribute(
    explainer: Explainer, question: Question, batch: np.ndarray, progress: Progress | None
) -> list[np.ndarray]:
    """Per method the maps `[N, H, W]` of a prepared batch, see `Explainer.attribute`.

    Raises:
        InputError: the layers that rows are explained at have maps of different sizes, and `size` is that of the layer.
    """
    if question.top is not None or any(isinstance(target, tuple) for target in question.targets):
        raise InputError("attribute() computes one map per row; ask explain() for several boxes, or repeat the row")
    rows = []
    for row in range(len(batch)):
        one = question.of_rows(row, row + 1)
        tensor = batch[row : row + 1]
        examination = explainer.examination(one, tensor, progress, layers=exposed_layers(explainer, one))
        (group,) = groups_of(explainer, one, examination, _whole(examination))
        rows.append(examination.fused(group.question, group.objectives[0]))
    return join_rows(rows, question)


def with_vectors(explainer: Explainer, target: Any) -> Any:
    """The target with each picture that an embedding is compared with replaced by its own embedding."""
    if isinstance(target, Several):
        return Several(with_vectors(explainer, one) for one in target)
    if isinstance(target, (list, tuple)):
        return [with_vectors(explainer, one) for one in target]
    if isinstance(target, Difference):
        return Difference(with_vectors(explainer, target.first), with_vectors(explainer, target.second))
    if isinstance(target, Similarity) and target.vector is None and isinstance(explainer.terms.readout.task, Embed):
        _, tensor, _ = explainer.prepare(target.other)
        return Similarity(explainer.batch_scores(tensor)[0])
    return target


def reported_boxes(explainer: Explainer, scores: np.ndarray, placement: Placement) -> list[Detection]:
    """The boxes that a detector reports on one picture, best first, in pixels of the picture."""
    task = explainer.terms.readout.task
    if not isinstance(task, Detect):
        return []
    labels = explainer.labels
    return [boxes.on_picture(one, placement) for one in detections(task, scores, placement.input_size, labels)]


def _explanation(
    explainer: Explainer,
    question: Question,
    picture: image.Picture,
    tensor: np.ndarray,
    geometry: image.Geometry,
    progress: Progress | None,
) -> Explanation:
    """The explanation of one picture: the maps of all its targets, in order."""
    batch = explainer.check_batch(tensor)
    layers = exposed_layers(explainer, question)
    examination = explainer.examination(question, batch, progress, layers=layers, placements=[geometry])
    reported = reported_boxes(explainer, examination.scores[0], geometry)
    parts: list[tuple[int, list[Explanation]]] = []
    for group in groups_of(explainer, question, examination, geometry):
        by_method = _batch_maps(explainer, group, examination, reported)
        for k, place in enumerate(group.places):
            parts.append((place, [maps.explanation(0, picture, geometry, of=k) for maps in by_method]))
    in_order = [by_method for _, by_method in sorted(parts, key=lambda part: part[0])]
    explained = [_joined([one[m] for one in in_order]) for m in range(len(question.methods))]
    first = explained[0]
    if question.side_by_side:
        first.per_layer.extend(_per_layer(explainer, question, examination, picture, geometry, reported))
    if len(explained) > 1:
        first.per_method.extend(explained)
    return first


def exposed_layers(explainer: Explainer, question: Question) -> tuple[str, ...]:
    """The layers that the head exposes: those of the question, or all among which each box has its own."""
    levels = box_layers.levels(explainer.manifest)
    if question.layer_named or not levels or not question.layers_read:
        return question.layers_read
    return tuple(dict.fromkeys([*(level.name for level in levels), *question.layers_read]))


def _whole(examination: Examination) -> Placement:
    return examination.placements[0]


def _batch_maps(
    explainer: Explainer, group: Group, examination: Examination, reported: Sequence[Detection]
) -> list[BatchMaps]:
    """Scores and maps of one group, method by method."""
    question, objectives = group.question, group.objectives
    classes = np.array([[int(objective.classes[0]) for objective in objectives]])
    by_method = examination.several(question, objectives)
    input_size = examination.input_size
    model = explainer.model
    misplaced = box_layers.doubts(explainer.manifest, question.layers_read, objectives)
    doubts = [*explainer.warnings, *_doubts(question, objectives), *misplaced]

    def examine(row: int, layers: Sequence[str]) -> Examination:
        return examination

    return [
        BatchMaps(
            question, method, examination.scores, examination.probabilities, classes, maps, input_size,
            [*doubts, *_matched(method, objectives)], model, None, explainer.windows(question.layers), examine,
            objectives, reported,
        )
        for method, maps in zip(question.methods, by_method, strict=True)
    ]  # fmt: skip


def _doubts(question: Question, objectives: Sequence[Objective]) -> list[str]:
    doubts = [getattr(getattr(objective, "subject", None), "doubt", None) for objective in objectives]
    return list(dict.fromkeys(doubt for doubt in doubts if doubt))


def _matched(method: Method, objectives: Sequence[Objective]) -> list[str]:
    """What to say of a method that changes the picture, where the candidates change with it."""
    if method.kind == GRAPH or not any(_moves(objective) for objective in objectives):
        return []
    return [
        f"{method.name} changes the picture, and the candidates of this model change with it: the box explained is the "
        "one with the highest score times overlap (IoU) with it, as in D-RISE"
    ]


def _moves(objective: Objective) -> bool:
    if isinstance(objective, Subtraction):
        return _moves(objective.first) or _moves(objective.second)
    return isinstance(objective, BoxNumber) and moves(objective.task)


def _joined(parts: Sequence[Explanation]) -> Explanation:
    """One explanation with the maps of all, in order."""
    first = parts[0]
    warnings = list(dict.fromkeys(text for part in parts for text in part.warnings))
    return replace(first, maps=[one for part in parts for one in part.maps], warnings=warnings)


def _per_layer(
    explainer: Explainer,
    question: Question,
    examination: Examination,
    picture: image.Picture,
    geometry: image.Geometry,
    reported: Sequence[Detection],
) -> list[Explanation]:
    """The explanation of the first target at each layer alone."""
    (group, *_) = groups_of(explainer, question, examination, geometry)
    (maps, *_) = _batch_maps(explainer, group, examination, reported)
    return [maps.explanation(0, picture, geometry, place, of=0) for place in range(len(question.layers))]
