"""The data of a report, collected from records in one pass and bounded memory."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from onnxcam.monitor.normal import Baseline
from onnxcam.monitor.schema import Record
from onnxcam.monitor.table import Configuration, Rows
from onnxcam.monitor.timestamps import from_seconds, seconds

_STEPS = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 7 * 86400)  # seconds per point of a chart
_POINTS = 48
_CHUNK = 128


@dataclass
class ClassSummary:
    """A summary of the records of one explained class.

    Attributes:
        index, label: of the class.
        count: number of records; low: of those that met the condition; traffic: of the predictions they stand for.
        map: mean energy `[h, w]`, shares that add up to 1; None if no record has a map.
        normal: the baseline's mean energy; None if the baseline has too few records of the class.
        moved: the share of the energy that lies elsewhere than in the baseline.
    """

    index: int
    label: str
    count: int
    low: int
    traffic: float
    map: np.ndarray | None
    normal: np.ndarray | None

    @property
    def moved(self) -> float | None:
        if self.map is None or self.normal is None:
            return None
        return float(np.abs(self.map - self.normal).sum() / 2)


@dataclass(frozen=True)
class TimeSeries:
    """Records over time.

    Attributes:
        begin: start of each point; seconds: its duration.
        low, confident: number of records that met the condition, and of the baseline's sample.
        rate: estimated share of predictions that met the condition.
        confidence: `[points, 3]`, the 10 %, 50 % and 90 % quantiles of the predictions; NaN without records.
    """

    begin: list[datetime]
    seconds: int
    low: np.ndarray
    confident: np.ndarray
    rate: np.ndarray
    confidence: np.ndarray


@dataclass
class Report:
    """Everything the page shows, except drift and counters.

    Attributes:
        count: number of records; first, last: their times.
        reasons: number of records of each reason and condition.
        models: number of records of each model, by name.
        configurations: number of records of each configuration.
        uncertain: the records of lowest confidence, each picture once.
        classes: the most frequent first; with a baseline, of the records that are compared with it: those of its model,
            condition, method and layer that are not of its own time.
        overall: all classes together.
    """

    count: int = 0
    first: str = ""
    last: str = ""
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    configurations: Counter[Configuration] = field(default_factory=Counter)
    uncertain: list[Record] = field(default_factory=list)
    classes: list[ClassSummary] = field(default_factory=list)
    overall: ClassSummary | None = None
    zero_maps: int = 0
    _times: array[float] = field(default_factory=lambda: array("d"), repr=False)
    _confidence: array[float] = field(default_factory=lambda: array("d"), repr=False)
    _weights: array[float] = field(default_factory=lambda: array("d"), repr=False)
    _low: array[int] = field(default_factory=lambda: array("b"), repr=False)

    @classmethod
    def of(cls, records: Iterable[Record], baseline: Baseline | None = None, top: int = 12) -> Report:
        """Collect the report on records in order of time.

        Arguments:
            baseline: with which mean maps are compared.
            top: the number of records of lowest confidence.
        """
        report, maps, least = cls(), _ClassMaps(baseline), _LeastConfident(top)
        chunk: list[Record] = []
        for record in records:
            report._add(record)
            least.add(record)
            chunk.append(record)
            if len(chunk) == _CHUNK:
                report._add_rows(maps.add(chunk))
                chunk.clear()
        report._add_rows(maps.add(chunk))
        report.uncertain = least.records()
        report.classes, report.overall = maps.summaries()
        return report

    def points(self) -> TimeSeries:
        """Return confidence and counts over time, at most 48 points and one."""
        times = np.frombuffer(self._times)
        span = float(times.max() - times.min()) if len(times) else 0.0
        seconds = next((step for step in _STEPS if span / step <= _POINTS), int(span / _POINTS) + 1)
        first = int(times.min() // seconds) if len(times) else 0
        bins = (times // seconds - first).astype(np.int32)
        count = int(bins.max()) + 1 if len(bins) else 0
        weights, confidence = np.frombuffer(self._weights), np.frombuffer(self._confidence)
        low = np.frombuffer(self._low, np.int8) != 0
        total = np.bincount(bins, weights, count)
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = np.bincount(bins, weights * low, count) / total
        levels = np.full((count, 3), np.nan)
        for point in range(count):
            mask = (bins == point) & np.isfinite(confidence)
            if mask.any():
                levels[point] = weighted_quantiles(confidence[mask], weights[mask], (0.1, 0.5, 0.9))
        begin = [from_seconds((first + point) * seconds) for point in range(count)]
        return TimeSeries(
            begin,
            seconds,
            np.bincount(bins[low], minlength=count),
            np.bincount(bins[~low], minlength=count),
            rate,
            levels,
        )

    @property
    def low_rate(self) -> float:
        """The estimated share of predictions that met the condition."""
        weights, low = np.frombuffer(self._weights), np.frombuffer(self._low, np.int8) != 0
        return float(weights[low].sum() / weights.sum()) if len(weights) else 0.0

    @property
    def low_count(self) -> int:
        """The number of records that met the condition."""
        return int(np.count_nonzero(np.frombuffer(self._low, np.int8)))

    def _add(self, record: Record) -> None:
        self.count += 1
        self.first = self.first or record["ts"]
        self.last = max(self.last, record["ts"])
        trigger, model = record.get("trigger") or {}, record.get("model") or {}
        self.reasons[str(trigger.get("reason")), str(trigger.get("when"))] += 1
        self.models[str(model.get("name") or (model.get("sha256") or "unknown")[:12])] += 1
        self.configurations[Configuration.of(record)] += 1
        self._times.append(seconds(record["ts"]))

    def _add_rows(self, rows: Rows) -> None:
        self._confidence.extend(rows.values[:, 0].tolist())
        self._weights.extend(rows.weights.tolist())
        self._low.extend(rows.low.astype(int).tolist())
        self.zero_maps += int(rows.zero.sum())


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, parts: tuple[float, ...]) -> np.ndarray:
    """Return weighted quantiles: the least values at or below which lie at least these parts of the weight."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    places = np.searchsorted(total, np.array(parts) * total[-1] * (1 - 1e-12))
    return np.asarray(values[order][np.minimum(places, len(values) - 1)])


class _LeastConfident:
    """The records of lowest confidence, each picture once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.heap: list[tuple[float, int, str | None, Record]] = []
        self.order = 0

    def add(self, record: Record) -> None:
        prediction = record.get("prediction") or {}
        confidence = prediction.get("confidence")
        if confidence is None or not self.size or (len(self.heap) == self.size and -confidence <= self.heap[0][0]):
            return
        picture = (record.get("picture") or {}).get("sha256")
        if picture is not None and any(other == picture for _, _, other, _ in self.heap):
            return
        self.order -= 1
        entry = (-float(confidence), self.order, picture, record)
        (heapq.heappush if len(self.heap) < self.size else heapq.heappushpop)(self.heap, entry)

    def records(self) -> list[Record]:
        return [record for _, _, _, record in sorted(self.heap, key=lambda entry: (-entry[0], -entry[1]))]


class _ClassMaps:
    """Weighted sums of maps and counts, by class."""

    def __init__(self, baseline: Baseline | None) -> None:
        self.baseline = baseline
        self.grid = baseline.grid if baseline else None
        self.labels: dict[int, str] = {}
        self.sums: dict[int, list[float]] = {}  # count, low, traffic
        self.maps: dict[int, tuple[float, np.ndarray]] = {}

    def add(self, records: list[Record]) -> Rows:
        rows = Rows.of(records, self.grid)
        if records and self.grid is None and rows.mapped.any():
            self.grid = (rows.maps.shape[1], rows.maps.shape[2])
        for record in records:
            target = (record.get("prediction") or {}).get("target") or {}
            if isinstance(target.get("index"), int):
                self.labels.setdefault(target["index"], str(target.get("label", target["index"])))
        compared = np.array([self.baseline is None or self.baseline.is_later(record) for record in records], bool)
        mapped = rows.mapped
        for index in np.unique(rows.target[compared]).tolist():
            mask = compared & (rows.target == index)
            sums = self.sums.setdefault(index, [0, 0, 0.0])
            sums[0] += int(mask.sum())
            sums[1] += int((mask & rows.low).sum())
            sums[2] += float(rows.weights[mask].sum())
            mask &= mapped
            if mask.any() and rows.maps.shape[1:] == self.grid:
                weight, total = self.maps.get(index, (0.0, np.zeros(self.grid)))
                more = np.tensordot(rows.weights[mask], rows.maps[mask].astype(float), 1)
                self.maps[index] = (weight + float(rows.weights[mask].sum()), total + more)
        return rows

    def summaries(self) -> tuple[list[ClassSummary], ClassSummary | None]:
        normal = self.baseline.mean_maps if self.baseline else {}
        classes = [
            ClassSummary(
                index,
                self.labels.get(index, str(index)),
                int(count),
                int(low),
                traffic,
                None if index not in self.maps else self.maps[index][1] / self.maps[index][0],
                normal.get(index),
            )
            for index, (count, low, traffic) in self.sums.items()
        ]
        classes.sort(key=lambda summary: (-summary.count, summary.index))
        if not self.maps:
            return classes, None
        total_weight = sum(weight for weight, _ in self.maps.values())
        whole = np.sum([total for _, total in self.maps.values()], axis=0) / total_weight
        count, low, traffic = map(sum, zip(*self.sums.values(), strict=True))
        return classes, ClassSummary(-1, "all classes", int(count), int(low), traffic, whole, normal.get(None))
