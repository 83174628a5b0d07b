"""`Shift`: what changed between two models on the same pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam.errors import OnnxcamError

if TYPE_CHECKING:
    from onnxcam.diagnose.shift.verdict import Verdict
    from onnxcam.explain.explainer import Explainer
    from onnxcam.explain.explanation import Explanation


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's best class of a picture."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class ClassShift:
    """The pictures of one class.

    Attributes:
        index, label: the true class where the truth is known, else the class that OLD predicts.
        pictures: how many.
        flipped: how many predictions changed.
        distance: mean distance of the maps.
        accuracy: of OLD and NEW, None without the truth.
    """

    index: int
    label: str
    pictures: int
    flipped: int
    distance: float
    accuracy: tuple[float, float] | None


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
        distance: of the two maps, from 0 (equal), in parts of the picture's side.
        empty: whether the map of OLD, and that of NEW, is zero everywhere.
        truth: the true class, if known.
        regions: by name the share of the map's energy inside, of OLD and of NEW; None for a map without energy.
        p: how likely the null gives a distance as large for this picture alone; None without a null.
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

    @property
    def flipped(self) -> bool:
        """Whether the models predict different classes."""
        return self.old.index != self.new.index

    def to_dict(self) -> dict[str, Any]:
        """Return the picture ready for JSON."""
        return {
            "picture": self.name,
            "target": self.target,
            "old": asdict(self.old),
            "new": asdict(self.new),
            "flipped": self.flipped,
            "distance": self.distance,
            "empty": list(self.empty),
            "truth": self.truth,
            "regions": {name: list(pair) for name, pair in self.regions.items()},
            "p": self.p,
        }


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
        """The share of pictures whose prediction changed."""
        return len(self.flipped) / len(self.pictures)

    @property
    def distance(self) -> float:
        """The mean distance of the maps."""
        return float(np.mean([picture.distance for picture in self.pictures]))

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
        by_class: dict[int, list[PictureShift]] = {}
        for picture in self.pictures:
            by_class.setdefault(picture.old.index if picture.truth is None else picture.truth, []).append(picture)
        classes = [
            ClassShift(
                index,
                self.old.label(index),
                len(some),
                sum(picture.flipped for picture in some),
                float(np.mean([picture.distance for picture in some])),
                _accuracy(some),
            )
            for index, some in by_class.items()
        ]
        return sorted(classes, key=lambda one: (-one.distance, one.index))

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
        old, new = (
            explainer.explain(picture.source, picture.target, self.method, layer)
            for explainer, layer in ((self.old, self.layers[0]), (self.new, self.layers[1]))
        )
        return old, new

    def to_dict(self) -> dict[str, Any]:
        """Return everything ready for JSON."""
        stayed, flipped = self.stayed, self.flipped
        return {
            "pictures": len(self.pictures),
            "target": self.target,
            "method": self.method,
            "rows": self.new.sessions.rows,
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
                "distance": _mean_distance(flipped),
            },
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


def _by_distance(pictures: Any) -> list[PictureShift]:
    return sorted(pictures, key=lambda picture: -picture.distance)


def _mean_distance(pictures: Sequence[PictureShift]) -> float | None:
    return float(np.mean([picture.distance for picture in pictures])) if pictures else None


def _accuracy(pictures: Sequence[PictureShift]) -> tuple[float, float] | None:
    hits = [(p.old.index == p.truth, p.new.index == p.truth) for p in pictures if p.truth is not None]
    if not hits:
        return None
    old, new = np.mean(hits, axis=0).tolist()
    return old, new
