"""Drift detection: windows of records are compared with a baseline, at a declared rate of false alarms.

Each statistic compares one aspect of the window with the baseline: a field's distribution, the class distribution, the
rate of low-confidence predictions, a mean map. Records are weighted by the inverse of their sampling probability, so
that the statistics estimate the traffic rather than the recorded sample of it.

The null distribution of the statistics is bootstrapped from the baseline: a window and a second baseline of the real
sizes are drawn from it with replacement many times, which accounts for the baseline being a sample itself. Each
statistic is standardized by its null distribution, and the threshold is a quantile of their maximum: the declared rate
of false alarms is that of the whole family of statistics, for one window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from onnxcam.errors import InputError
from onnxcam.monitor.baseline import FEWEST
from onnxcam.monitor.drift_statistics import Family
from onnxcam.monitor.normal import Baseline
from onnxcam.monitor.schema import Record
from onnxcam.monitor.spool import Spool
from onnxcam.monitor.table import Configuration, Rows
from onnxcam.monitor.timestamps import seconds

OK, DRIFT, UNKNOWN = "ok", "drift", "not enough data"
FALSE_ALARMS = 0.01
REPLICATES = 2000
RATES = ("low_confidence", "zero_maps")


@dataclass(frozen=True)
class Statistic:
    """One comparison.

    Attributes:
        name: a field's name, "low_confidence", "zero_maps", "classes", "map", or "map/<class>".
        baseline, window: the mean or rate, None for distributions and maps.
        distance: 1-Wasserstein distance in standard deviations of the baseline (fields); absolute difference (rates);
            total variation distance, the share that lies elsewhere, 0 to 1 (classes and maps).
        score: the distance minus its mean under the null distribution, in standard deviations of that distribution;
            None if there are too few rows.
        drifted: the score is above the threshold.
    """

    name: str
    baseline: float | None
    window: float | None
    distance: float | None
    score: float | None
    drifted: bool

    @property
    def kind(self) -> str:
        """The kind of comparison: "mean" of a field, "rate", or "share" that lies elsewhere (classes and maps)."""
        if self.name in RATES:
            return "rate"
        return "share" if self.name in ("classes", "map") or self.name.startswith("map/") else "mean"


@dataclass(frozen=True)
class Verdict:
    """The result of comparing a window with the baseline.

    Attributes:
        verdict: "ok", "drift" or "not enough data".
        records: number in the window; effective: Kish's effective sample size, of an evenly weighted sample as precise.
        since, until: times of the first and of the last record.
        score, threshold: the largest score, and the score above which a statistic has drifted.
        false_alarms: the declared rate per window.
        statistics: largest score first.
    """

    verdict: str
    records: int
    effective: float
    since: str | None
    until: str | None
    score: float | None
    threshold: float | None
    false_alarms: float
    statistics: list[Statistic]

    @property
    def drifted(self) -> list[Statistic]:
        """The statistics above the threshold, the largest score first."""
        return [statistic for statistic in self.statistics if statistic.drifted]

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self)


class Window:
    """A window of rows, as sums over them: its size does not matter to memory.

    Attributes:
        count: number of rows.
        since, until: times of the first and of the last row.
        sums: those of the statistics, `[columns]`.
    """

    def __init__(self, family: Family) -> None:
        self.count = 0
        self.since: str | None = None
        self.until: str | None = None
        self.sums = np.zeros_like(family.baseline_sums)
        self._family = family
        self._weight = self._square = 0.0

    @property
    def effective(self) -> float:
        """Kish's effective sample size."""
        return self._weight**2 / self._square if self._square else 0.0

    def add(self, rows: Rows, times: Sequence[str] = ()) -> None:
        """Add rows, with their times."""
        for begin in range(0, len(rows), FEWEST):
            self.sums += self._family.sums(rows.take(slice(begin, begin + FEWEST)))
        self.count += len(rows)
        self._weight += float(rows.weights.sum())
        self._square += float((rows.weights**2).sum())
        if times:
            self.since = min(self.since or times[0], *times)
            self.until = max(self.until or times[0], *times)


class Detector:
    """Compares windows with a baseline.

    Arguments:
        baseline: the normal records.
        false_alarms: the probability that a window without any change is reported as drift, 0 to 1, exclusive.
        replicates: bootstrap replicates.
        seed: of the bootstrap.

    Raises:
        InputError: not a rate, or one too small to be estimated from the replicates.
    """

    def __init__(
        self,
        baseline: Baseline,
        *,
        false_alarms: float = FALSE_ALARMS,
        replicates: int = REPLICATES,
        seed: int = 1234,
    ) -> None:
        if not 0 < false_alarms < 1:
            raise InputError(f"the rate of false alarms is {false_alarms}, expected a number between 0 and 1")
        if false_alarms * replicates < 4:
            raise InputError(
                f"a rate of false alarms of {false_alarms} cannot be estimated from {replicates} replicates; "
                f"take at least {int(np.ceil(4 / false_alarms))}"
            )
        self.baseline = baseline
        self.false_alarms = false_alarms
        self.replicates = replicates
        self.seed = seed
        self._statistics = Family(baseline)
        self._nulls: dict[int, _NullDistribution] = {}
        self._baseline_draws: dict[bool, np.ndarray] = {}

    def assess(self, rows: Rows, since: str | None = None, until: str | None = None) -> Verdict:
        """Compare a window with the baseline; the verdict on fewer than 500 records is "not enough data"."""
        window = self.window()
        window.add(rows)
        window.since, window.until = since, until
        return self.judge(window)

    def window(self) -> Window:
        """Begin a window of any number of rows."""
        return Window(self._statistics)

    def judge(self, window: Window) -> Verdict:
        """Compare a window with the baseline, as `assess` does."""
        head = (window.count, round(window.effective, 1), window.since, window.until)
        if window.count < FEWEST:
            return Verdict(UNKNOWN, *head, None, None, self.false_alarms, [])
        family, null, sums = self._statistics, self._null(window.count), window.sums
        values, distance = family.compare(sums[None], family.baseline_sums[None])
        scores = (values[0] - null.mean) / null.deviation
        before, now = family.levels(family.baseline_sums), family.levels(sums)
        statistics = [
            Statistic(
                name,
                _rounded(before.get(name)),
                _rounded(now.get(name)),
                _rounded(distance[0, column]),
                _rounded(scores[column]),
                bool(scores[column] > null.threshold),
            )
            for column, name in enumerate(family.names)
        ]
        statistics.sort(key=lambda s: -np.inf if s.score is None else s.score, reverse=True)
        drifted = any(statistic.drifted for statistic in statistics)
        top = statistics[0].score
        return Verdict(DRIFT if drifted else OK, *head, top, round(null.threshold, 4), self.false_alarms, statistics)

    def _null(self, size: int) -> _NullDistribution:
        """Bootstrap the null distribution for windows of a size."""
        if size not in self._nulls:
            family = self._statistics
            scores = family.score(family.draws(self.replicates, size, self.seed), self._draw_baseline(nested=True))
            scores *= self._variance_correction(size, scores)
            self._nulls[size] = _NullDistribution.of(scores, family.floors, self.false_alarms)
        return self._nulls[size]

    def _variance_correction(self, size: int, scores: np.ndarray) -> np.ndarray:
        """Return the factors `[names]` that correct the statistics for both levels of resampling.

        Bootstrap samples underestimate variance, most in the tails and where few rows have most of the weight; each
        level of resampling loses about the same share. So the statistics of one level are compared with those of two,
        and the ratio is applied twice. Fields use the mean of their ratios: that of a single field is mostly noise.
        """
        family = self._statistics
        window = family.draws(self.replicates, size, self.seed, nested=False)
        once = family.score(window, self._draw_baseline(nested=False))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = _mean(once) / _mean(scores)
        ratio[: len(family.fields)] = np.mean(ratio[: len(family.fields)])
        ratio = np.where(np.isfinite(ratio), ratio, 1.0)
        return np.asarray(np.maximum(ratio, 1.0) ** 2)

    def _draw_baseline(self, nested: bool) -> np.ndarray:
        """Draw second baselines; the same ones for windows of every size."""
        if nested not in self._baseline_draws:
            count = len(self.baseline.rows)
            draws = self._statistics.draws(self.replicates, count, self.seed, second=True, nested=nested)
            self._baseline_draws[nested] = draws
        return self._baseline_draws[nested]


def _mean(scores: np.ndarray) -> np.ndarray:
    """Average the finite values of each column."""
    finite = np.isfinite(scores)
    return np.asarray(np.where(finite, scores, 0.0).sum(0) / np.maximum(finite.sum(0), 1))


@dataclass(frozen=True)
class Assessment:
    """The result of `assess`.

    Attributes:
        windows: the verdict on each window, oldest first.
        others: number of records of another model, condition, method or layer, which were skipped.
    """

    windows: list[Verdict]
    others: int

    @property
    def latest(self) -> Verdict:
        """The verdict on the newest window."""
        return self.windows[-1]

    @property
    def notes(self) -> list[str]:
        """Sentences about what was skipped."""
        what = "records of another model, condition, method or layer than the baseline's were skipped"
        return [f"{self.others} {what}"] if self.others else []


def assess(records: Iterable[Record], detector: Detector, window: int | timedelta = 1000) -> Assessment:
    """Compare records in time order with the baseline, window by window.

    Arguments:
        records: those of another model, condition, method or layer than the baseline's are skipped.
        window: its number of records (at least 500) or its duration; windows by duration start at multiples of it, in
            UTC.

    Raises:
        InputError: a window of fewer than 500 records.
    """
    if not isinstance(window, timedelta) and window < FEWEST:
        raise InputError(f"windows of {window} records are too small; expected at least {FEWEST}")
    compared = _Compared(records, detector.baseline)
    verdicts = [
        detector.judge(part)
        for part in (
            _windows_by_time(compared, detector, window)
            if isinstance(window, timedelta)
            else _windows_by_count(compared, detector, window)
        )
    ]
    return Assessment(verdicts or [detector.judge(detector.window())], compared.others)


class _Compared:
    """The records that can be compared with a baseline, as tables of some hundred rows with their times."""

    def __init__(self, records: Iterable[Record], baseline: Baseline) -> None:
        self.others = 0
        self._records = records
        self._baseline = baseline

    def __iter__(self) -> Iterator[tuple[Rows, list[str]]]:
        chunk: list[Record] = []
        for record in self._records:
            if Configuration.of(record) != self._baseline.configuration:
                self.others += 1
                continue
            chunk.append(record)
            if len(chunk) == FEWEST:
                yield self._table(chunk)
                chunk = []
        if chunk:
            yield self._table(chunk)

    def _table(self, records: list[Record]) -> tuple[Rows, list[str]]:
        return Rows.of(records, self._baseline.grid), [record["ts"] for record in records]


def _windows_by_time(compared: _Compared, detector: Detector, length: timedelta) -> Iterator[Window]:
    duration = max(1.0, length.total_seconds())
    window, last = detector.window(), None
    for rows, times in compared:
        numbers = [int(seconds(time) // duration) for time in times]
        befores = [last, *numbers[:-1]]
        begins = [
            row
            for row, (number, before) in enumerate(zip(numbers, befores, strict=True))
            if before is not None and number > before
        ]
        last = numbers[-1]
        cuts = sorted({0, *begins})
        for begin, end in zip(cuts, [*cuts[1:], len(times)], strict=True):
            if begin in begins:
                yield window
                window = detector.window()
            window.add(rows.take(slice(begin, end)), times[begin:end])
    if window.count:
        yield window


def _windows_by_count(compared: _Compared, detector: Detector, size: int) -> Iterator[Window]:
    # where the windows begin depends on the number of records
    with Spool(detector.baseline.grid) as spool:
        for rows, times in compared:
            spool.add(rows, times)
        for begin, end in windows(len(spool), size):
            window = detector.window()
            for rows, times in spool.read(begin, end):
                window.add(rows, times)
            yield window


def windows(count: int, size: int) -> list[tuple[int, int]]:
    """Divide `count` records in time order into windows of at least `size`; returns their begins and ends.

    The last window ends at the newest record; the first one takes the remainder.
    """
    number = max(1, count // size)
    first = count - (number - 1) * size
    return [(0, first), *((first + k * size, first + (k + 1) * size) for k in range(number - 1))] if count else []


@dataclass(frozen=True, eq=False)
class _NullDistribution:
    mean: np.ndarray
    deviation: np.ndarray
    threshold: float

    @classmethod
    def of(cls, scores: np.ndarray, floors: np.ndarray, false_alarms: float) -> _NullDistribution:
        finite = np.isfinite(scores)
        mean = _mean(scores)
        deviation = np.sqrt(_mean(np.where(finite, (scores - mean) ** 2, np.nan)))
        deviation = np.maximum(deviation, floors)
        largest = np.where(finite, (scores - mean) / deviation, -np.inf).max(1)
        return cls(mean, deviation, float(np.quantile(largest, 1 - false_alarms, method="higher")))


def format_number(value: float | None) -> str:
    """Format a mean for display."""
    return "?" if value is None else f"{value:.3f}"


def format_percent(value: float | None) -> str:
    """Format a rate for display."""
    return "?" if value is None else f"{100 * value:.1f} %"


def _rounded(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")
