"""What a report tells, gathered from records in one pass and bounded memory."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from onnxcam.monitor.baseline import Baseline
from onnxcam.monitor.table import Configuration, Record, Rows

_STEPS = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400, 7 * 86400)  # seconds of a point in a chart
_POINTS = 48
_CHUNK = 512


@dataclass
class ClassSummary:
    """One explained class.

    Attributes:
        index, label: which.
        count: records; low: those that met the condition; traffic: predictions they stand for.
        map: mean energy `[h, w]`, shares that add up to 1; None without one.
        normal: the same in the baseline; None where it has too few records of the class.
        moved: the part of the energy that lies elsewhere than in the baseline.
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
    """Records by time.

    Attributes:
        begin: when each point begins; seconds: how long it is.
        low, confident: records that met the condition, and of the always-on sample.
        rate: the estimated part of predictions that met the condition.
        confidence: `[points, 3]`: what a tenth, half and nine tenths of the predictions are below; NaN without records.
    """

    begin: list[datetime]
    seconds: int
    low: np.ndarray
    confident: np.ndarray
    rate: np.ndarray
    confidence: np.ndarray


@dataclass
class Report:
    """Everything the page shows, but for drift and the counters.

    Attributes:
        count: records; first, last: their times.
        reasons: how many were kept for each condition and reason.
        models: how many are of each model, by name.
        configuration, others: what most records are of, and how many are not.
        uncertain: the least sure, each picture once.
        classes: the most frequent first.
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
        """The report on some records in time order.

        Arguments:
            baseline: what mean maps are compared with.
            top: how many of the least sure are kept.
        """
        report, maps, least = cls(), _Maps(baseline), _Least(top)
        waiting: list[Record] = []
        for record in records:
            report._add(record)
            least.add(record)
            waiting.append(record)
            if len(waiting) == _CHUNK:
                report._rows(maps.add(waiting))
                waiting.clear()
        report._rows(maps.add(waiting))
        report.uncertain = least.found()
        report.classes, report.overall = maps.found()
        return report

    def points(self) -> TimeSeries:
        """Confidence and counts over time, at most 48 points."""
        times = np.array(self._times)
        span = float(times.max() - times.min()) if len(times) else 0.0
        seconds = next((step for step in _STEPS if span / step <= _POINTS), int(span / _POINTS) + 1)
        first = int(times.min() // seconds) if len(times) else 0
        bins = (times // seconds).astype(int) - first
        count = int(bins.max()) + 1 if len(bins) else 0
        weights, confidence, low = np.array(self._weights), np.array(self._confidence), np.array(self._low, bool)
        total = np.bincount(bins, weights, count)
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = np.bincount(bins, weights * low, count) / total
        levels = np.full((count, 3), np.nan)
        for point in range(count):
            own = (bins == point) & np.isfinite(confidence)
            if own.any():
                levels[point] = weighted_quantiles(confidence[own], weights[own], (0.1, 0.5, 0.9))
        begin = [datetime.fromtimestamp((first + point) * seconds, UTC) for point in range(count)]
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
        """The estimated part of all predictions that met the condition."""
        weights, low = np.array(self._weights), np.array(self._low, bool)
        return float(weights[low].sum() / weights.sum()) if len(weights) else 0.0

    @property
    def low_count(self) -> int:
        """Records that met the condition."""
        return int(np.array(self._low, bool).sum())

    def _add(self, record: Record) -> None:
        self.count += 1
        self.first = self.first or record["ts"]
        self.last = max(self.last, record["ts"])
        trigger, model = record.get("trigger") or {}, record.get("model") or {}
        self.reasons[str(trigger.get("reason")), str(trigger.get("when"))] += 1
        self.models[str(model.get("name") or (model.get("sha256") or "unknown")[:12])] += 1
        self.configurations[Configuration.of(record)] += 1
        self._times.append(datetime.fromisoformat(record["ts"]).timestamp())

    def _rows(self, rows: Rows) -> None:
        self._confidence.extend(rows.values[:, 0].tolist())
        self._weights.extend(rows.weights.tolist())
        self._low.extend(rows.low.astype(int).tolist())
        self.zero_maps += int(rows.zero.sum())


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, parts: tuple[float, ...]) -> np.ndarray:
    """The least values that at least these parts of the weight are at or below."""
    order = np.argsort(values)
    held = np.cumsum(weights[order])
    places = np.searchsorted(held, np.array(parts) * held[-1] * (1 - 1e-12))
    return np.asarray(values[order][np.minimum(places, len(values) - 1)])


class _Least:
    """The least sure records, each picture once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.heap: list[tuple[float, int, str | None, Record]] = []
        self.order = 0

    def add(self, record: Record) -> None:
        prediction = record.get("prediction") or {}
        confidence = prediction.get("confidence")
        if confidence is None or not self.most or (len(self.heap) == self.most and -confidence <= self.heap[0][0]):
            return
        picture = (record.get("picture") or {}).get("sha256")
        if picture is not None and any(held == picture for _, _, held, _ in self.heap):
            return
        self.order -= 1
        entry = (-float(confidence), self.order, picture, record)
        (heapq.heappush if len(self.heap) < self.most else heapq.heappushpop)(self.heap, entry)

    def found(self) -> list[Record]:
        return [record for _, _, _, record in sorted(self.heap, key=lambda entry: (-entry[0], -entry[1]))]


class _Maps:
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
        mapped = rows.mapped
        for index in np.unique(rows.target).tolist():
            own = rows.target == index
            held = self.sums.setdefault(index, [0, 0, 0.0])
            held[0] += int(own.sum())
            held[1] += int((own & rows.low).sum())
            held[2] += float(rows.weights[own].sum())
            own &= mapped
            if own.any() and rows.maps.shape[1:] == self.grid:
                weight, total = self.maps.get(index, (0.0, np.zeros(self.grid)))
                more = np.tensordot(rows.weights[own], rows.maps[own].astype(float), 1)
                self.maps[index] = (weight + float(rows.weights[own].sum()), total + more)
        return rows

    def found(self) -> tuple[list[ClassSummary], ClassSummary | None]:
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
        classes.sort(key=lambda seen: (-seen.count, seen.index))
        if not self.maps:
            return classes, None
        weight = sum(held[0] for held in self.maps.values())
        whole = np.sum([held[1] for held in self.maps.values()], axis=0) / weight
        count, low, traffic = (sum(held[k] for held in self.sums.values()) for k in range(3))
        return classes, ClassSummary(-1, "all classes", int(count), int(low), traffic, whole, normal.get(None))
