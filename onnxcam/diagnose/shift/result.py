"""`Shift`: what changed between two models on the same pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam.errors import OnnxcamError
from onnxcam.targets.scalars import Box
from onnxcam.targets.tasks import DETECT, EMBED, REGRESS

if TYPE_CHECKING:
    from onnxcam.diagnose.shift.verdict import Verdict
    from onnxcam.explain.explainer import Explainer
    from onnxcam.explain.explanation import Explanation


# what became of a box
SAME, CLASS, LOST, NEW = "same", "class", "lost", "new"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's best class of a picture; of a detector its best box, of a segmentation the class with most cells, of
    an embedding or a regression the cosine or the value.

    Attributes:
        index: of the class; -1 where a detector reports no box.
        label: its name.
        probability: of the class, the box's score, the share of the cells; or the number itself.
    """

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class ObjectShift:
    """A box of a picture as two detectors see it.

    Attributes:
        change: `same`; `class`, which is another one in NEW; `lost`, which NEW does not report; `new`, which OLD does
            not.
        old, new: its class and score; None where it is not reported.
        boxes: x0, y0, x1, y1 in pixels of the picture, in OLD and in NEW.
        candidates: index in the output of OLD, and of NEW.
        overlap: IoU of the two.
        distance: of the two maps; None unless it is the same.
        empty: whether the map of OLD, and that of NEW, is zero everywhere.
    """

    change: str
    old: Prediction | None
    new: Prediction | None
    boxes: tuple[tuple[float, ...] | None, tuple[float, ...] | None]
    candidates: tuple[int | None, int | None]
    overlap: float | None = None
    distance: float | None = None
    empty: tuple[bool, bool] = (False, False)

    @property
    def flipped(self) -> bool:
        """Whether the models do not report the same box with one class."""
        return self.change != SAME


@dataclass(frozen=True, slots=True)
class ClassShift:
    """The pictures of one class.

    Attributes:
        index, label: the true class where the truth is known, else the class that OLD predicts; of a detector that of
            the box in OLD, of one that is new in NEW.
        pictures: how many; of a detector how many boxes.
        flipped: how many predictions changed.
        distance: mean distance of the maps; None where none were compared: every box is lost, new or of another class.
        accuracy: of OLD and NEW, None without the truth.
        areas: of a segmentation its mean share of all pictures in OLD and in NEW; None of other models.
    """

    index: int
    label: str
    pictures: int
    flipped: int
    distance: float | None
    accuracy: tuple[float, float] | None
    areas: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class RegionShift:
    """A named region over all pictures that have it.

    Attributes:
        name: of the region; empty for regions without a name.
        pictures: how many have it, and energy in OLD's map.
        old, new: mean share of the map's energy inside, 0 to 1; none of it is where NEW's map has no energy.
    """

    name: str
    pictures: int
    old: float
    new: float


@dataclass(frozen=True, slots=True)
class Preparation:
    """How the two files prepare the same pictures.

    Attributes:
        differing: of how many pictures the prepared tensors differ, by more than rounding.
        largest: their largest relative distance; infinite where sizes differ.
        sentence: what the difference is, empty without one.
    """

    differing: int
    largest: float
    sentence: str


@dataclass(slots=True)
class PictureShift:
    """One picture as both models see it.

    Attributes:
        name: of the picture.
        source: what `Explainer.explain` takes: a path, encoded bytes or an array.
        target: the class whose maps are compared, the same in both models.
        old, new: the predictions.
        distance: of the two maps, from 0 (equal), in parts of the picture's side; of a detector the mean of its boxes.
        empty: whether the map of OLD, and that of NEW, is zero everywhere.
        truth: the true class, if known.
        regions: by name the share of the map's energy inside, of OLD and of NEW; None for a map without energy.
        p: how likely the null gives a distance as large for this picture alone; None without a null.
        maps: how many maps of each model were compared: one, or one of each box that both report; 0 without any.
        objects: of detectors, the boxes of both.
        areas: of segmentations, by class its share of the cells in OLD and in NEW.
        subject: what both explain in place of the class `target`; None of classifiers and detectors.
    """

    name: str
    source: Any = field(repr=False)
    target: int
    old: Prediction
    new: Prediction
    distance: float
    empty: tuple[bool, bool] = (False, False)
    truth: int | None = None
    regions: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    p: float | None = None
    maps: int = 1
    objects: tuple[ObjectShift, ...] = ()
    areas: dict[int, tuple[float, float]] | None = None
    subject: Any = field(default=None, repr=False)

    @property
    def flipped(self) -> bool:
        """Whether the models predict different classes, or do not report the same boxes."""
        return any(one.flipped for one in self.objects) if self.objects else self.old.index != self.new.index

    def to_dict(self) -> dict[str, Any]:
        """Return the picture ready for JSON."""
        of_task: dict[str, Any] = {}
        if self.objects:
            of_task["objects"] = [asdict(one) for one in self.objects]
        if self.areas is not None:
            of_task["areas"] = {str(index): list(pair) for index, pair in self.areas.items()}
        return {
            "picture": self.name,
            "target": self.target,
            "old": asdict(self.old),
            "new": asdict(self.new),
            "flipped": self.flipped,
            "distance": self.distance if self.maps else None,
            "empty": list(self.empty),
            "truth": self.truth,
            "regions": {name: list(pair) for name, pair in self.regions.items()},
            "p": self.p,
            **of_task,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """What reports list: a picture, or one box of it.

    Attributes:
        picture: the picture.
        box: of a detector.
    """

    picture: PictureShift
    box: ObjectShift | None = None

    @property
    def old(self) -> Prediction | None:
        """What OLD predicts; None where it reports no such box."""
        return self.picture.old if self.box is None else self.box.old

    @property
    def new(self) -> Prediction | None:
        """What NEW predicts; None where it reports no such box."""
        return self.picture.new if self.box is None else self.box.new

    @property
    def distance(self) -> float | None:
        """The distance of the maps, None where none were compared."""
        if self.box is not None:
            return self.box.distance
        return self.picture.distance if self.picture.maps else None

    @property
    def flipped(self) -> bool:
        """Whether the prediction changed."""
        return self.picture.flipped if self.box is None else self.box.flipped


@dataclass(frozen=True, eq=False)
class Shift:
    """The shift between two models on the same pictures.

    Attributes:
        old, new: explainers of the two models.
        pictures: one entry per picture that could be read, in order.
        layers: the target layer in OLD and in NEW.
        method: the CAM method of the maps.
        target: which class is explained in both: `old` (OLD's top-1) or `truth`.
        statistic: name of the distance of two maps.
        seed: of whatever was random.
        failures: name and error of pictures that could not be read.
        notes: sentences about what is doubtful in the comparison.
        blame: by depth, where that was determined.
        verdict: whether the attention moved more than the null; None without one.
        undecided: why there is no verdict although a null was named; empty otherwise.
        layers_named: whether the target layers were named; else each box of a detector has its own.
        preparation: whether the two files prepare the pictures alike, measured.
    """

    old: Explainer = field(repr=False)
    new: Explainer = field(repr=False)
    pictures: list[PictureShift]
    layers: tuple[str, str]
    method: str
    target: str
    statistic: str
    seed: int
    failures: list[tuple[str, OnnxcamError]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    blame: Any = None
    verdict: Verdict | None = None
    preparation: Preparation = Preparation(0, 0.0, "")
    undecided: str = ""
    layers_named: tuple[bool, bool] = (True, True)

    @property
    def task(self) -> str | None:
        """What models do that are no classifiers, one of `onnxcam.targets.tasks.TASKS`."""
        return self.old.terms.readout.task_name

    @property
    def predicts_classes(self) -> bool:
        """Whether a prediction can flip: it is a class or a box, and no number."""
        return self.task not in (EMBED, REGRESS)

    @property
    def objects(self) -> list[ObjectShift]:
        """The boxes of all pictures, of detectors."""
        return [one for picture in self.pictures for one in picture.objects]

    def changes(self, *, flipped: bool) -> list[Change]:
        """The pictures, or the boxes of detectors, that flipped or that stayed, the largest distance first."""
        if self.task == DETECT:
            listed = [Change(picture, one) for picture in self.pictures for one in picture.objects]
        else:
            listed = [Change(picture) for picture in self.pictures]
        return sorted((one for one in listed if one.flipped == flipped), key=lambda one: -(one.distance or 0.0))

    @property
    def labels(self) -> Sequence[str] | None:
        """Names of the classes, if known."""
        return self.old.labels if self.old.labels is not None else self.new.labels

    @property
    def flipped(self) -> list[PictureShift]:
        """The pictures whose prediction changed, the largest distance first."""
        return _by_distance(picture for picture in self.pictures if picture.flipped)

    @property
    def stayed(self) -> list[PictureShift]:
        """The pictures whose prediction stayed, the largest distance first."""
        return _by_distance(picture for picture in self.pictures if not picture.flipped)

    @property
    def flipped_share(self) -> float:
        """The share of pictures whose prediction changed; of detectors that of all boxes of either."""
        if self.task == DETECT:
            return sum(one.flipped for one in self.objects) / max(len(self.objects), 1)
        return len(self.flipped) / len(self.pictures)

    @property
    def mapped(self) -> list[PictureShift]:
        """The pictures of which maps were compared: all, but for those without a box that both detectors report."""
        return [picture for picture in self.pictures if picture.maps]

    @property
    def distance(self) -> float:
        """The mean distance of the maps; 0 where none could be compared (`mapped`)."""
        return float(np.mean([picture.distance for picture in self.mapped])) if self.mapped else 0.0

    @property
    def accuracy(self) -> tuple[float, float] | None:
        """Accuracy of OLD and NEW over the pictures whose truth is known; None where it is of none."""
        return _accuracy(self.pictures)

    @property
    def truths(self) -> int:
        """Of how many pictures the true class is known."""
        return sum(picture.truth is not None for picture in self.pictures)

    @property
    def classes(self) -> list[ClassShift]:
        """Per class, the largest mean distance first: the true class, or OLD's prediction where it is not known."""
        if self.task == DETECT:
            return self._classes_of_boxes()
        if not self.predicts_classes:
            return []
        by_class: dict[int, list[PictureShift]] = {}
        for picture in self.pictures:
            by_class.setdefault(picture.old.index if picture.truth is None else picture.truth, []).append(picture)
        classes = [
            ClassShift(
                index,
                self.old.label(index),
                len(some),
                sum(picture.flipped for picture in some),
                _mean_distance(some),
                _accuracy(some),
                self._areas(index),
            )
            for index, some in by_class.items()
        ]
        present = {index for picture in self.pictures for index in picture.areas or ()} - set(by_class)
        classes += [ClassShift(index, self.old.label(index), 0, 0, None, None, self._areas(index)) for index in present]
        return sorted(classes, key=lambda one: (-(one.distance or 0.0), one.index))

    def _areas(self, index: int) -> tuple[float, float] | None:
        """A class's mean share of the cells over all pictures, in OLD and in NEW."""
        areas = [picture.areas for picture in self.pictures]
        if any(one is None for one in areas):
            return None
        old, new = np.mean([(one or {}).get(index, (0.0, 0.0)) for one in areas], axis=0).tolist()
        return old, new

    def _classes_of_boxes(self) -> list[ClassShift]:
        """Per class of the boxes, see `classes`."""
        by_class: dict[tuple[int, str], list[ObjectShift]] = {}
        for one in self.objects:
            prediction = one.old or one.new
            if prediction is not None:
                by_class.setdefault((prediction.index, prediction.label), []).append(one)
        classes = []
        for (index, label), some in by_class.items():
            gaps = [one.distance for one in some if one.distance is not None]
            flips = sum(one.flipped for one in some)
            classes.append(ClassShift(index, label, len(some), flips, float(np.mean(gaps)) if gaps else None, None))
        return sorted(classes, key=lambda one: (-(one.distance or 0.0), one.index))

    @property
    def regions(self) -> list[RegionShift]:
        """Per named region, the largest change first."""
        pairs: dict[str, list[tuple[float, float]]] = {}
        for picture in self.pictures:
            for name, (old, new) in picture.regions.items():
                if old is not None:
                    pairs.setdefault(name, []).append((old, 0.0 if new is None else new))
        regions = []
        for name, some in pairs.items():
            old, new = np.mean(some, axis=0).tolist()
            regions.append(RegionShift(name, len(some), old, new))
        return sorted(regions, key=lambda one: -abs(one.new - one.old))

    def explain(self, picture: PictureShift) -> tuple[Explanation, Explanation]:
        """Explain one of the pictures by both models: the same class, layers and method as compared."""
        target = picture.target if picture.subject is None else picture.subject
        old, new = (self._explain(which, picture, target) for which in (0, 1))
        return old, new

    def explain_change(self, change: Change) -> tuple[Explanation | None, Explanation | None]:
        """Explain what a report lists by both models; None where one reports no such box, or there is nothing."""
        if change.box is None:
            return self.explain(change.picture) if change.picture.maps else (None, None)
        old, new = (
            None if index is None else self._explain(which, change.picture, Box(index))
            for which, index in enumerate(change.box.candidates)
        )
        return old, new

    def _explain(self, which: int, picture: PictureShift, target: Any) -> Explanation:
        explainer = (self.old, self.new)[which]
        layer = self.layers[which] if self.layers_named[which] else None
        explanation: Explanation = explainer.explain(picture.source, target, self.method, layer)
        return explanation

    def to_dict(self) -> dict[str, Any]:
        """Return everything ready for JSON."""
        stayed, flipped = self.stayed, self.flipped
        return {
            "task": self.task,
            "pictures": len(self.pictures),
            "target": self.target,
            "method": self.method,
            "rows": self.new.sessions.rows or self.new.batch_size or 1,
            "layers": {"old": self.layers[0], "new": self.layers[1]},
            "statistic": self.statistic,
            "seed": self.seed,
            "distance": self.distance,
            "verdict": None if self.verdict is None else self.verdict.to_dict(),
            "undecided": self.undecided,
            "stayed": {"pictures": len(stayed), "distance": _mean_distance(stayed)},
            "flipped": {
                "pictures": len(flipped),
                "share": self.flipped_share,
                "share_of": "boxes" if self.task == DETECT else "pictures",
                "distance": _mean_distance(flipped),
            },
            **self._counts(),
            "accuracy": None if self.accuracy is None else dict(zip(("old", "new"), self.accuracy, strict=True)),
            "classes": [asdict(one) for one in self.classes],
            "regions": [asdict(one) for one in self.regions],
            "notes": self.notes,
            "preparation": {
                "differing": self.preparation.differing,
                "largest": self.preparation.largest if math.isfinite(self.preparation.largest) else None,
                "sentence": self.preparation.sentence,
            },
            "blame": None if self.blame is None else self.blame.describe(),
            "failed": [str(error) for _, error in self.failures],
            "each": [picture.to_dict() for picture in self.pictures],
        }

    def _counts(self) -> dict[str, Any]:
        """Of detectors how many boxes stayed, changed class, are lost, and are new."""
        if self.task != DETECT:
            return {}
        counts = Counter(one.change for one in self.objects)
        return {"objects": {change: counts[change] for change in (SAME, CLASS, LOST, NEW)}}


def _by_distance(pictures: Any) -> list[PictureShift]:
    return sorted(pictures, key=lambda picture: -picture.distance)


def _mean_distance(pictures: Sequence[PictureShift]) -> float | None:
    gaps = [picture.distance for picture in pictures if picture.maps]
    return float(np.mean(gaps)) if gaps else None


def _accuracy(pictures: Sequence[PictureShift]) -> tuple[float, float] | None:
    hits = [(p.old.index == p.truth, p.new.index == p.truth) for p in pictures if p.truth is not None]
    if not hits:
        return None
    old, new = np.mean(hits, axis=0).tolist()
    return old, new
