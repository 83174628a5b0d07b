"""The result of an evaluation: a number per method, metric and picture, and curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from onnxcam.errors import PictureError
from onnxcam.evaluation import sampling
from onnxcam.evaluation.metrics import Metric
from onnxcam.evaluation.sampling import Sample
from onnxcam.explain.explainer import Explainer

PASSES = ("pictures", "changed", "explained", "shared")


@dataclass(frozen=True)
class Example:
    """A picture for the report: its number, the picture and the map of each method over it, uint8 `[h, w, 3]`."""

    place: int
    picture: np.ndarray = field(repr=False)
    maps: dict[str, np.ndarray] = field(repr=False)


class _Sums(NamedTuple):
    """The sums of a method's curves over some pictures, by name."""

    method: str
    places: tuple[int, ...]
    curves: dict[str, np.ndarray]


@dataclass(eq=False)
class Evaluation:
    """Numbers per method, metric and picture.

    Attributes:
        methods, metrics: what was judged, and by what.
        labelled: whether the classes explained are labels; else they are the model's own top-1.
        places: numbers of the pictures that took part.
        names, classes, probabilities: name of each picture, class explained, and its probability.
        right: with labels, whether the model's top-1 is that class.
        values: by method and metric, float64 `[pictures]`, NaN where it does not apply or the picture is missing.
        curves: by method and name (`insertion`, `deletion`), the mean curve, its points equally far apart.
        stages: by method and metric, the cascade's numbers, float64 `[stages, pictures]`.
        parts: of the layers that each stage of the cascade has redrawn.
        failures: number and error of pictures that could not be read.
        examples: pictures for the report.
        objects: where objects are judged, each of which counts as a picture above: how many boxes were `drawn`, how
            many of them (or objects without any) were `detected`, and on how many `pictures`.
        details: of each object its `box` in the picture's pixels and, of a detector, its `candidate`.
        labels: names of the classes, if known.
        layers: where the maps were taken.
        samples: by method and metric, numbers of pictures and what their drawn points say, where points were left out.
        passes: rows that the model was run on: `pictures` as they are, `changed` ones, and those that were `explained`
            again; `shared` ones were run for another method or metric.
    """

    methods: list[str]
    metrics: list[Metric]
    labelled: bool
    values: dict[str, dict[str, np.ndarray]]
    stages: dict[str, dict[str, np.ndarray]]
    labels: Sequence[str] | None = None
    layers: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)
    failures: list[tuple[int, PictureError]] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    objects: dict[str, int] | None = None
    details: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, dict[str, list[tuple[np.ndarray, Sample]]]] = field(default_factory=dict, repr=False)
    passes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PASSES, 0))
    _sums: list[_Sums] = field(default_factory=list)

    @classmethod
    def empty(
        cls,
        explainer: Explainer,
        methods: Sequence[str],
        metrics: Sequence[Metric],
        count: int,
        labelled: bool,
        stages: int,
    ) -> Evaluation:
        """Make an evaluation without pictures yet."""
        values = {method: {metric.name: np.full(count, np.nan) for metric in metrics} for method in methods}
        cascade = {
            method: {metric.name: np.full((stages, count), np.nan) for metric in metrics if metric.redrawn}
            for method in methods
        }
        return cls(list(methods), list(metrics), labelled, values, cascade, explainer.labels)

    def add_pictures(
        self, places: Sequence[int], names: Sequence[str], classes: np.ndarray, whole: np.ndarray, best: np.ndarray
    ) -> None:
        """Add pictures to the evaluation."""
        self.places += places
        self.names += names
        self.classes += [int(index) for index in classes]
        self.probabilities += [float(p) for p in whole]
        self.right += [bool(r) for r in classes == best]

    def grow(self, count: int) -> int:
        """Make room for more rows; return the number of the first of them."""
        first = 0
        for by_metric in self.values.values():
            for name, values in by_metric.items():
                first = len(values)
                by_metric[name] = np.concatenate([values, np.full(count, np.nan)])
        return first

    def record(self, method: str, metric: str, places: Sequence[int], values: np.ndarray) -> None:
        """Record the numbers of some pictures."""
        self.values[method][metric][list(places)] = values

    def record_sample(self, method: str, metric: str, places: Sequence[int], sample: Sample) -> None:
        """Record what the drawn points of some pictures say of the error of the mean."""
        self.samples.setdefault(method, {}).setdefault(metric, []).append((np.asarray(places), sample))

    def record_stage(self, method: str, metric: str, stage: int, places: Sequence[int], values: np.ndarray) -> None:
        """Record the numbers of some pictures at a stage of the cascade."""
        self.stages[method][metric][stage, list(places)] = values

    def average_stages(self, method: str, metric: str) -> None:
        """Set a method's numbers to their mean over the stages of the cascade."""
        self.values[method][metric] = self.stages[method][metric].mean(axis=0)

    def add_curves(self, method: str, places: Sequence[int], curves: Mapping[str, np.ndarray]) -> None:
        """Add the curves of some pictures."""
        self._sums.append(_Sums(method, tuple(places), {name: values.sum(axis=0) for name, values in curves.items()}))

    def drop_after(self, count: int) -> None:
        """Leave out all pictures but the first `count`: those whose numbers are not complete.

        Curves are left out with all pictures that they were added with.
        """
        absent = self.places[count:]
        self._sums = [sums for sums in self._sums if not set(absent).intersection(sums.places)]
        self.examples = [example for example in self.examples if example.place not in absent]
        for by_metric in self.values.values():
            for values in by_metric.values():
                values[absent] = np.nan
        for rows in (self.places, self.names, self.classes, self.probabilities, self.right, self.details):
            del rows[count:]

    @property
    def curves(self) -> dict[str, dict[str, np.ndarray]]:
        """Mean curves by method and name."""
        totals: dict[str, dict[str, Any]] = {}
        counts: dict[str, int] = {}
        for method, places, of_pictures in self._sums:
            of_method = totals.setdefault(method, {})
            counts[method] = counts.get(method, 0) + len(places)
            for name, values in of_pictures.items():
                of_method[name] = of_method.get(name, 0.0) + values
        return {
            method: {name: total / counts[method] for name, total in by_name.items()}
            for method, by_name in totals.items()
        }

    @property
    def pictures(self) -> int:
        """How many pictures were judged, or those whose objects were."""
        return len(self.places) if self.objects is None else self.objects["pictures"]

    @property
    def accuracy(self) -> float | None:
        """With labels, the share of pictures whose class is the model's top-1."""
        return float(np.mean(self.right)) if self.labelled and self.right else None

    @property
    def estimated(self) -> dict[str, dict[str, Any]]:
        """Of metrics whose curves have points that were left out: `points`, those `computed`, and the `confidence`."""
        entries: dict[str, dict[str, Any]] = {}
        for by_metric in self.samples.values():
            for name, parts in by_metric.items():
                sample = parts[0][1]
                numbers = {"points": sample.points, "computed": sample.computed}
                entries.setdefault(name, numbers | {"confidence": sampling.CONFIDENCE})
        return entries

    def of(self, method: str, metric: str) -> np.ndarray:
        """The numbers that there are, float64 `[n]`."""
        values = self.values[method][metric]
        return np.asarray(values[np.isfinite(values)])

    def mean(self, method: str, metric: str) -> float:
        """The mean over pictures, NaN where there is no number."""
        values = self.of(method, metric)
        return float(values.mean()) if len(values) else float("nan")

    def error(self, method: str, metric: str) -> float:
        """The standard error of the mean, NaN for fewer than two pictures."""
        values = self.of(method, metric)
        return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")

    def bound(self, method: str, metric: str) -> float:
        """How far the mean may be from that of whole curves, at `sampling.CONFIDENCE`; 0 where no point is left out.

        See `onnxcam.evaluation.sampling`.
        """
        return sampling.bound(self._samples(method, metric))

    def _samples(self, method: str, metric: str) -> list[Sample]:
        """What drawn points say of the pictures whose numbers are complete."""
        values = self.values[method][metric]
        parts = self.samples.get(method, {}).get(metric, [])
        return [sample.rows(np.isfinite(values[places])) for places, sample in parts]

    def ranking(self, metric: str) -> list[str]:
        """The methods by a metric, best first; those without a number last."""
        entry = next(m for m in self.metrics if m.name == metric)
        sign = -1.0 if entry.better == "higher" else 1.0
        keys = {method: sign * self.mean(method, metric) for method in self.methods}
        return sorted(self.methods, key=lambda method: (np.isnan(keys[method]), keys[method]))

    def best(self, metric: str) -> set[str]:
        """The method with the best mean, or those that share it."""
        entry = next(m for m in self.metrics if m.name == metric)
        means = {method: self.mean(method, metric) for method in self.methods}
        top = entry.best(list(means.values()))
        return set() if top is None else {method for method, value in means.items() if abs(value - top) <= 1e-6}

    def to_dict(self) -> dict[str, Any]:
        """Return everything ready for JSON; NaN where there is no number."""
        counted: dict[str, Any] = {} if self.objects is None else {"objects": self.objects}
        details, estimated = self.details or [{} for _ in self.places], self.estimated
        return counted | {
            "pictures": self.pictures,
            "labelled": self.labelled,
            "accuracy": self.accuracy,
            "layers": self.layers,
            "metrics": {
                m.name: {"title": m.title, "better": m.better, "formula": m.formula, "ranking": self.ranking(m.name)}
                | estimated.get(m.name, {})
                for m in self.metrics
            },
            "methods": {
                method: {
                    m.name: {
                        "mean": self.mean(method, m.name),
                        "error": self.error(method, m.name),
                        "bound": self.bound(method, m.name),
                        "pictures": len(self.of(method, m.name)),
                        "best": method in self.best(m.name),
                    }
                    for m in self.metrics
                }
                for method in self.methods
            },
            "forward_passes": dict(self.passes),
            "curves": {
                method: {name: [round(float(v), 6) for v in values] for name, values in by_name.items()}
                for method, by_name in self.curves.items()
            },
            "cascade": {
                "redrawn": self.parts,
                "values": {
                    method: {name: [float(v) for v in _means(values)] for name, values in by_name.items()}
                    for method, by_name in self.stages.items()
                    if by_name
                },
            },
            "each": [
                {
                    "picture": name,
                    "class": index,
                    "label": self._label(index),
                    "probability": probability,
                    **detail,
                    "values": {
                        method: {m.name: float(self.values[method][m.name][place]) for m in self.metrics}
                        for method in self.methods
                    },
                }
                for place, name, index, probability, detail in zip(
                    self.places, self.names, self.classes, self.probabilities, details, strict=True
                )
            ],
        }

    def _label(self, index: int) -> str | None:
        return None if self.labels is None or index >= len(self.labels) else self.labels[index]

    def to_csv(self) -> str:
        """A line for each picture and method, and a line `mean` for each method; a line `bound` where points of curves
        were left out."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        box = [] if self.objects is None else ["x0", "y0", "x1", "y1"]
        writer.writerow(["picture", "class", "label", "probability", *box, "method", *(m.name for m in self.metrics)])
        details = self.details or [{} for _ in self.places]
        for method in self.methods:
            for place, name, index, probability, detail in zip(
                self.places, self.names, self.classes, self.probabilities, details, strict=True
            ):
                numbers = [_cell(float(self.values[method][m.name][place])) for m in self.metrics]
                edges = [f"{edge:g}" for edge in detail.get("box", ())] or [""] * len(box)
                edges = edges if box else []
                writer.writerow([name, index, self._label(index) or "", _cell(probability), *edges, method, *numbers])
        for method in self.methods:
            means = [_cell(self.mean(method, m.name)) for m in self.metrics]
            writer.writerow(["mean", "", "", "", *[""] * len(box), method, *means])
        if self.estimated:
            for method in self.methods:
                bounds = [_cell(self.bound(method, m.name)) for m in self.metrics]
                writer.writerow(["bound", "", "", "", *[""] * len(box), method, *bounds])
        return text.getvalue()


def _means(values: np.ndarray) -> np.ndarray:
    """The mean of each row over the numbers that there are."""
    finite = np.isfinite(values)
    return np.asarray(np.where(finite, values, 0).sum(axis=1) / np.maximum(1, finite.sum(axis=1)))


def _cell(value: float) -> str:
    return f"{value:.6g}" if np.isfinite(value) else ""
