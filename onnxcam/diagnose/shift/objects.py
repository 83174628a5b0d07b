"""One picture of two models that are no classifiers: which boxes both report, and where each looks for the same thing.

Boxes of OLD are matched with NEW's by their overlap, of the same class first. The maps of a box that both report with
one class are compared; one that is lost, new or of another class is a flip. Of a segmentation both explain the class
with most cells in OLD, over the cells that it has there, as far as both models see them; of an embedding or a value
what the caller names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.diagnose.shift.augmentation import augment
from onnxcam.diagnose.shift.distance import distances, empty, shares
from onnxcam.diagnose.shift.gathering import TILES, tiles
from onnxcam.diagnose.shift.null import Augment, Null
from onnxcam.diagnose.shift.result import CLASS, LOST, NEW, SAME, ObjectShift, PictureShift, Prediction
from onnxcam.diagnose.shift.side import Side, SideRun, on_common_plane
from onnxcam.explain import task_answers
from onnxcam.explain.examination import Examination
from onnxcam.explain.maps import windows_of
from onnxcam.targets import boxes, regions
from onnxcam.targets.detections import iou, name_of
from onnxcam.targets.resolution import resolve
from onnxcam.targets.scalar_objectives import moves
from onnxcam.targets.scalars import Box, Region
from onnxcam.targets.tasks import Detect, Detection, Segment

OVERLAP = 0.5  # IoU of two boxes that are of one object


@dataclass(frozen=True, eq=False)
class Sight:
    """A model's run over one picture.

    Attributes:
        side: the model.
        examination: of the picture; geometry: how it lies on the model's input.
        name: of the picture, for messages.
    """

    side: Side
    examination: Examination
    geometry: image.Geometry
    name: str

    @classmethod
    def of(cls, side: Side, tensor: np.ndarray, geometry: image.Geometry, name: str) -> Sight:
        """Run the head over one prepared picture.

        Raises:
            ModelError: an output is not a number, so that nothing can be compared.
        """
        examination = task_answers.examine(side.explainer, side.subject_question, tensor, geometry)
        scores = examination.scores
        side.require_finite("scores", np.where(np.isneginf(scores), 0.0, scores), [name])  # a mask of candidates
        return cls(side, examination, geometry, name)

    @property
    def row(self) -> np.ndarray:
        """The scores, `[columns]`."""
        return np.asarray(self.examination.scores[0])

    @property
    def reported(self) -> list[Detection]:
        """The boxes that a detector reports, best first, in pixels of the picture."""
        return task_answers.reported_boxes(self.side.explainer, self.row, self.geometry)

    def maps(self, objectives: Sequence[Any]) -> list[SideRun]:
        """The map of each objective, as the run of a single row, at the layer that it comes from."""
        question, explainer = self.side.subject_question, self.side.explainer
        runs: dict[int, SideRun] = {}
        for group in task_answers.grouped(explainer, question, self.examination, objectives):
            (by_layer,) = self.examination.several(group.question, group.objectives)
            windows = windows_of(question.methods[0], explainer.windows(group.question.layers))
            self.side.require_finite("values in a map", by_layer[0][0].reshape(1, -1), [self.name])
            for k, place in enumerate(group.places):
                size = self.examination.input_size
                runs[place] = SideRun.of_map(by_layer[0][0, k], group.objectives[k], size, self.geometry, windows)
        return [runs[place] for place in range(len(objectives))]


@dataclass(frozen=True, eq=False)
class Compared:
    """One picture as two models, and those of the null, see it.

    Attributes:
        old, new: what they predict: the best box, the class with most cells, the cosine or the value.
        target: index of the class that is explained.
        subject: what both explain in place of a class, None of a detector.
        objects: the boxes of both, of a detector.
        areas: by class its share of the cells in OLD and in NEW, of a segmentation.
        maps: how many pairs of maps were compared.
        distance: their mean.
        empty: whether all maps of OLD, and all of NEW, are zero everywhere.
        apart: of OLD's maps from those of NEW and of the null's, `[1 + null]`; None where no map is in all of them.
        pairs: the same of all pairs of models, `[models, models]`; None likewise.
        tiles: of the models' maps (`gathering.tiles`), `[models, tiles]`; None likewise.
        runs: of OLD and NEW, where each has one map.
        gaps: how much the scores of each pair of models differ, `[models, models]`.
    """

    old: Prediction
    new: Prediction
    target: int
    subject: Any = None
    objects: tuple[ObjectShift, ...] = ()
    areas: dict[int, tuple[float, float]] | None = None
    maps: int = 0
    distance: float = 0.0
    empty: tuple[bool, bool] = (False, False)
    apart: np.ndarray | None = None
    pairs: np.ndarray | None = None
    tiles: np.ndarray | None = None
    runs: Sequence[SideRun] = ()
    gaps: np.ndarray = field(default_factory=lambda: np.zeros((1, 1)))

    def picture(self, name: str, source: Any) -> PictureShift:
        """The picture as the comparison lists it."""
        return PictureShift(
            name, source, self.target, self.old, self.new, self.distance, self.empty,
            maps=self.maps, objects=self.objects, areas=self.areas, subject=self.subject,
        )  # fmt: skip


def look(
    sides: Sequence[Side],
    prepared: Sequence[tuple[np.ndarray, image.Geometry, str]],
    chance: Null | None,
    seed: tuple[int, int],
) -> Compared:
    """Compare what two models see on a picture.

    Arguments:
        sides: OLD and NEW, then other trainings.
        prepared: of each the tensor `[1, …]`, how the picture lies on it, and its name.
        chance: the null, which may be small changes of the picture.
        seed: of these changes.

    Raises:
        ModelError: scores or maps that are not finite.
    """
    sights = [Sight.of(side, *one) for side, one in zip(sides, prepared, strict=True)]
    copies: list[Sight] = []
    if isinstance(chance, Augment):
        (tensor, geometry, name), explainer = prepared[0], sides[0].explainer
        tensors = augment(tensor, explainer.manifest["input"], explainer.preprocess, chance.count, seed)
        copies = [
            Sight.of(sides[0], tensors[k : k + 1], geometry, f"{name}, slightly changed") for k in range(len(tensors))
        ]  # fmt: skip
    task = sides[0].explainer.terms.readout.task
    compared = (_boxes if isinstance(task, Detect) else _cells if isinstance(task, Segment) else _numbers)(
        sights, copies
    )
    return replace(compared, gaps=_gaps([sight.row for sight in sights]))


def _gaps(rows: Sequence[np.ndarray]) -> np.ndarray:
    """How much the scores of each pair of models differ, relative to the largest of one; infinite for other columns."""
    gaps = np.zeros((len(rows), len(rows)))
    for i, one in enumerate(rows):
        for k, other in enumerate(rows):
            if one.shape != other.shape:
                gaps[i, k] = np.inf
            elif one.size:
                finite = np.isfinite(one) & np.isfinite(other)
                largest = max(float(np.abs(one[finite]).max(initial=0.0)), 1.0)
                gaps[i, k] = float(np.abs(one[finite] - other[finite]).max(initial=0.0)) / largest
    return gaps


def match(old: Sequence[Detection], new: Sequence[Detection]) -> list[tuple[Detection | None, Detection | None, float]]:
    """Which box of OLD is which of NEW: the two that overlap most first, those of one class before the others.

    Which of the models is OLD makes no difference.

    Returns:
        pairs with their IoU, in OLD's order, then those of NEW alone; None for a box that the other does not report.
    """
    others = np.array([one.box for one in new]).reshape(-1, 4)
    overlaps = np.array([iou(np.array(one.box), others) for one in old]).reshape(len(old), len(new))
    alike = np.array([[a.class_index == b.class_index for b in new] for a in old], bool).reshape(overlaps.shape)
    partners: dict[int, int] = {}
    for same_class in (True, False):
        among = overlaps >= OVERLAP
        among &= alike == same_class
        places = np.argwhere(among)
        for place, other in places[np.argsort(-overlaps[among], kind="stable")].tolist():
            if place not in partners and other not in partners.values():
                partners[place] = other
    pairs: list[tuple[Detection | None, Detection | None, float]] = [
        (one, new[partners[place]], float(overlaps[place, partners[place]])) if place in partners else (one, None, 0.0)
        for place, one in enumerate(old)
    ]
    return [*pairs, *((None, other, 0.0) for place, other in enumerate(new) if place not in partners.values())]


def _boxes(sights: Sequence[Sight], copies: Sequence[Sight]) -> Compared:
    reported = [sight.reported for sight in sights]
    pairs = match(reported[0], reported[1])
    same = [(a, b) for a, b, _ in pairs if a is not None and b is not None and a.class_index == b.class_index]
    gaps, blank = np.zeros(len(same)), np.zeros((2, len(same)), bool)
    ours: list[list[SideRun]] = []
    if same:
        ours = [
            sight.maps([_score(sight, one[which]) for one in same]) for which, sight in enumerate(sights[:2])
        ]  # fmt: skip
        for place, runs in enumerate(zip(*ours, strict=True)):
            planes = [shares(maps) for maps in on_common_plane(runs)]
            gaps[place] = distances(planes[0], planes[1])[0]
            blank[:, place] = [empty(plane)[0] for plane in planes]
    by_index = {a.index: place for place, (a, _) in enumerate(same)}
    objects = []
    for a, b, overlap in pairs:
        at = by_index.get(a.index) if a is not None and b is not None and a.class_index == b.class_index else None
        objects.append(
            ObjectShift(
                NEW if a is None else LOST if b is None else CLASS if at is None else SAME,
                None if a is None else _prediction(a),
                None if b is None else _prediction(b),
                (None if a is None else a.box, None if b is None else b.box),
                (None if a is None else a.index, None if b is None else b.index),
                overlap if a is not None and b is not None else None,
                None if at is None else float(gaps[at]),
                (False, False) if at is None else (bool(blank[0, at]), bool(blank[1, at])),
            )
        )
    old, new = (_prediction(one[0]) if one else Prediction(-1, "no box", 0.0) for one in reported[:2])
    apart, between, energy = _null_of_boxes(sights, copies, reported, same, ours, gaps)
    return Compared(
        old, new, old.index if old.index >= 0 else new.index, None, tuple(objects), None, len(same),
        float(gaps.mean()) if same else 0.0, (bool(same) and bool(blank[0].all()), bool(same) and bool(blank[1].all())),
        apart, between, energy,
    )  # fmt: skip


def _null_of_boxes(
    sights: Sequence[Sight],
    copies: Sequence[Sight],
    reported: Sequence[Sequence[Detection]],
    same: Sequence[tuple[Detection, Detection]],
    ours: Sequence[Sequence[SideRun]],
    gaps: np.ndarray,
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """`Compared.apart`, `pairs` and `tiles`: means over the boxes that OLD, NEW and all other trainings report."""
    if not same:
        return None, None, None
    if len(sights) == 2:
        rows = [float(gaps.mean())]
        for copy in copies:
            if copy.row.size:
                runs = copy.maps([_again(copy, sights[0], one) for one, _ in same])
            else:  # without a candidate it points nowhere
                runs = [replace(run, maps=np.zeros_like(run.maps)) for run in ours[0]]
            rows.append(float(np.mean([_far(*pair) for pair in zip(ours[0], runs, strict=True)])))
        return np.array(rows), None, None
    partners = []
    for other in reported[2:]:
        matched = ((a, b) for a, b, _ in match(reported[0], other) if a is not None and b is not None)
        partners.append({a.index: b for a, b in matched if a.class_index == b.class_index})
    common = [place for place, (one, _) in enumerate(same) if all(one.index in others for others in partners)]
    if not common:
        return None, None, None
    every = [[runs[place] for place in common] for runs in ours]
    for sight, others in zip(sights[2:], partners, strict=True):
        every.append(sight.maps([_score(sight, others[same[place][0].index]) for place in common]))
    return _of_pairs(every)


def _score(sight: Sight, one: Detection) -> Any:
    """The objective of a reported box's score of its class."""
    task = sight.side.explainer.terms.readout.task
    assert isinstance(task, Detect), "boxes are of a detector"
    return boxes.of_candidate(task, one.index, one.class_index, Box(one.index).part, sight.row, sight.geometry)


def _again(copy: Sight, first: Sight, one: Detection) -> Any:
    """The objective of the same box on a slightly changed picture, whose candidates may be others."""
    task = copy.side.explainer.terms.readout.task
    assert isinstance(task, Detect), "boxes are of a detector"
    objective = _score(first, one)
    candidate = one.index
    if moves(task):
        candidate = boxes.likest(task, copy.row, one.class_index, objective.subject.box, copy.geometry.input_size)
    return boxes.of_candidate(task, candidate, one.class_index, Box(candidate).part, copy.row, copy.geometry)


def _prediction(one: Detection) -> Prediction:
    return Prediction(one.class_index, one.label, one.score)


def _cells(sights: Sequence[Sight], copies: Sequence[Sight]) -> Compared:
    task = sights[0].side.explainer.terms.readout.task
    assert isinstance(task, Segment), "cells are of a segmentation"
    labels = sights[0].side.explainer.labels
    areas, predictions = [], []
    for sight in sights[:2]:
        of_side = sight.side.explainer.terms.readout.task
        assert isinstance(of_side, Segment), "both are segmentations"
        areas.append(regions.areas(of_side, sight.row, sight.geometry))
        (index, *_) = regions.largest(of_side, sight.row, sight.geometry, labels)
        predictions.append(Prediction(index, name_of(index, labels), float(areas[-1][index])))
    by_class = {k: (float(a), float(b)) for k, (a, b) in enumerate(zip(*areas, strict=True)) if a or b}
    index, first = predictions[0].index, sights[0]
    cells = regions.members(task, first.row, first.geometry)[index]
    mask = first.geometry.to_picture(cells.astype(np.float32)) >= 0.5
    for sight in sights:  # what the crop of one leaves out, no model can be compared on
        mask &= sight.geometry.to_picture(np.ones(sight.geometry.input_size, np.float32)) > 0
    if not mask.any():  # nothing of a class of its own that all see, or thinner than a pixel
        return Compared(predictions[0], predictions[1], index, None, (), by_class)
    target = Region(index, mask)

    def objective(sight: Sight) -> Any:
        of_side = sight.side.explainer.terms.readout.task
        assert isinstance(of_side, Segment), "all are segmentations"
        return regions.objective(of_side, target, sight.row, sight.geometry, labels)

    runs = [sight.maps([objective(sight)])[0] for sight in sights]
    return _single(runs, [copy.maps([objective(copy)])[0] for copy in copies], predictions, index, target, by_class)


def _numbers(sights: Sequence[Sight], copies: Sequence[Sight]) -> Compared:
    def objective(sight: Sight) -> Any:
        question, terms = sight.side.subject_question, sight.side.explainer.terms
        return resolve(
            question.targets[0], sight.examination.scores, terms.readout, terms.labels, question.default_class,
            [sight.geometry],
        )  # fmt: skip

    subjects = [objective(sight) for sight in sights]
    predictions = [
        Prediction(
            one.subject.index, one.subject.label or name_of(one.subject.index, sight.side.explainer.labels),
            float(one.subject.number),
        )
        for one, sight in zip(subjects[:2], sights, strict=False)
    ]  # fmt: skip
    predictions[1] = replace(predictions[1], index=predictions[0].index)  # wherever the file has the number
    runs = [sight.maps([one])[0] for sight, one in zip(sights, subjects, strict=True)]
    again = [copy.maps([objective(copy)])[0] for copy in copies]
    return _single(runs, again, predictions, predictions[0].index, sights[0].side.target)


def _single(
    runs: Sequence[SideRun],
    again: Sequence[SideRun],
    predictions: Sequence[Prediction],
    index: int,
    target: Any,
    areas: dict[int, tuple[float, float]] | None = None,
) -> Compared:
    """A picture with one map of each model."""
    planes = [shares(maps) for maps in on_common_plane(runs[:2])]
    distance = float(distances(planes[0], planes[1])[0])
    apart = np.array([distance, *(_far(runs[0], run) for run in again)])
    pairs = energy = None
    if len(runs) > 2:
        apart, pairs, energy = _of_pairs([[run] for run in runs])
    blank = bool(empty(planes[0])[0]), bool(empty(planes[1])[0])
    return Compared(
        predictions[0],
        predictions[1],
        index,
        target,
        (),
        areas,
        1,
        distance,
        blank,
        apart,
        pairs,
        energy,
        runs[:2],
    )


def _of_pairs(every: Sequence[Sequence[SideRun]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over maps of the same things: of OLD's distances from the others, of those of all pairs, and of tiles."""
    count = len(every)
    sums, energy = np.zeros((count, count)), np.zeros((count, TILES * TILES))
    for runs in zip(*every, strict=True):
        planes = [shares(maps) for maps in on_common_plane(runs)]
        energy += np.concatenate([tiles(plane) for plane in planes])
        for one in range(count):
            for other in range(one + 1, count):
                sums[one, other] += distances(planes[one], planes[other])[0]
    means = (sums + sums.T) / len(every[0])
    return means[0, 1:], means, energy / len(every[0])


def _far(one: SideRun, other: SideRun) -> float:
    planes = [shares(maps) for maps in on_common_plane([one, other])]
    return float(distances(planes[0], planes[1])[0])
