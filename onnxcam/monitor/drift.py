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
from functools import cached_property
from typing import Any

import numpy as np

from onnxcam.errors import InputError
from onnxcam.monitor.baseline import FEWEST, Baseline
from onnxcam.monitor.schema import Record
from onnxcam.monitor.table import FIELDS, Configuration, Rows
from onnxcam.monitor.timestamps import seconds

OK, DRIFT, UNKNOWN = "ok", "drift", "not enough data"
FALSE_ALARMS = 0.01
REPLICATES = 2000
_STEPS = 32  # bins of a field's values
# Classes are put into this many groups by index. Groups by frequency would be biased: classes that are frequent in the
# baseline by chance are less frequent in every window.
_GROUPS = 32
_FEWEST_EFFECTIVE = 15  # a statistic of fewer rows, by Kish's effective sample size, is not computed
_CHUNK = 250  # replicates that are drawn at a time
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
        self._statistics = _Statistics(baseline)
        self._nulls: dict[int, _NullDistribution] = {}
        self._baseline_draws: dict[bool, np.ndarray] = {}

    def assess(self, rows: Rows, since: str | None = None, until: str | None = None) -> Verdict:
        """Compare a window with the baseline; the verdict on fewer than 500 records is "not enough data"."""
        square = float((rows.weights**2).sum())
        effective = float(rows.weights.sum()) ** 2 / square if square else 0.0
        window = (len(rows), round(effective, 1), since, until)
        if len(rows) < FEWEST:
            return Verdict(UNKNOWN, *window, None, None, self.false_alarms, [])
        family, null = self._statistics, self._null(len(rows))
        sums = family.sums(rows)
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
        return Verdict(DRIFT if drifted else OK, *window, top, round(null.threshold, 4), self.false_alarms, statistics)

    def _null(self, size: int) -> _NullDistribution:
        """Bootstrap the null distribution for windows of a size."""
        if size not in self._nulls:
            family = self._statistics
            scores, _ = family.compare(family.draws(self.replicates, size, self.seed), self._draw_baseline(nested=True))
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
        once, _ = family.compare(window, self._draw_baseline(nested=False))
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
    parts: list[Rows] = []
    times: list[str] = []
    chunk: list[Record] = []
    others = 0
    baseline = detector.baseline
    for record in records:
        if Configuration.of(record) != baseline.configuration:
            others += 1
            continue
        times.append(record["ts"])
        chunk.append(record)
        if len(chunk) == FEWEST:
            parts.append(Rows.of(chunk, baseline.grid))
            chunk.clear()
    rows = Rows.join([*parts, Rows.of(chunk, baseline.grid)])
    bounds = _by_time(times, window) if isinstance(window, timedelta) else windows(len(rows), window)
    verdicts = [
        detector.assess(rows.take(slice(begin, end)), min(times[begin:end]), max(times[begin:end]))
        for begin, end in bounds
    ]
    return Assessment(verdicts or [detector.assess(rows)], others)


def _by_time(times: Sequence[str], length: timedelta) -> list[tuple[int, int]]:
    duration = max(1.0, length.total_seconds())
    numbers = [int(seconds(time) // duration) for time in times]
    begins = [row for row, number in enumerate(numbers) if row == 0 or number > numbers[row - 1]]
    return list(zip(begins, [*begins[1:], len(times)], strict=True))


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


class _Statistics:
    """The family of statistics, as functions of weighted sums over rows: a bootstrap draw is a row of a matrix product.

    A design matrix has, per row of a sample, the terms of the sums; `draws` multiplies it by the count of each row.
    """

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        mean, spread = baseline.scale
        self.fields = [name for column, name in enumerate(FIELDS) if np.isfinite(mean[column])]
        columns = [list(FIELDS).index(name) for name in self.fields]
        values = baseline.rows.values[:, columns]
        self.columns = columns
        # a constant field gets a unit too, so that one stray value is not an infinite distance
        self.unit = np.maximum(spread[columns], 0.02)
        low, high = np.nanmin(values, 0) - 2 * self.unit, np.nanmax(values, 0) + 2 * self.unit
        self.step = (high - low) / _STEPS
        self.edges = low + self.step * (np.arange(_STEPS) + 0.5)[:, None]
        self.classes = baseline.classes
        self.cells = baseline.grid[0] * baseline.grid[1]
        self.names = [
            *self.fields,
            "low_confidence",
            "zero_maps",
            "classes",
            "map",
            *(f"map/{baseline.label(c)}" for c in self.classes),
        ]
        self.baseline_sums = self.sums(baseline.rows)
        self.floors = self._floors()

    def blocks(self, rows: Rows) -> Iterator[tuple[np.ndarray | slice, np.ndarray]]:
        """Yield rows (all, or those of a class) and their block of the design matrix `[n, columns]`."""
        weights = rows.weights[:, None]
        values = rows.values[:, self.columns]
        valid = np.isfinite(values)
        valid_weights = weights * valid
        above = (np.nan_to_num(values)[:, None, :] > self.edges) * valid_weights[:, None, :]
        groups = (rows.predicted[:, None] % _GROUPS == np.arange(_GROUPS)) * weights
        mapped = rows.mapped
        cells = np.nan_to_num(rows.maps.reshape(len(rows), self.cells))
        map_weights = weights * mapped[:, None]
        yield (
            slice(None),
            np.concatenate(
                [
                    valid_weights,
                    valid_weights**2,
                    valid_weights * np.nan_to_num(values),
                    above.reshape(len(rows), -1),
                    weights,
                    weights**2,
                    weights * rows.low[:, None],
                    weights * rows.zero[:, None],
                    groups,
                    map_weights,
                    map_weights**2,
                    map_weights * cells,
                ],
                axis=1,
            ),
        )
        for index in self.classes:
            of_class = np.flatnonzero(mapped & (rows.target == index))
            map_weights = rows.weights[of_class, None]
            yield of_class, np.concatenate([map_weights, map_weights**2, map_weights * cells[of_class]], axis=1)

    @cached_property
    def _design(self) -> list[tuple[np.ndarray | slice, np.ndarray]]:
        """The blocks of the baseline's design matrix, float32."""
        return [(rows, design.astype(np.float32)) for rows, design in self.blocks(self.baseline.rows)]

    def sums(self, rows: Rows) -> np.ndarray:
        """Return the sums `[columns]` of a sample."""
        return np.concatenate([design.sum(0) for _, design in self.blocks(rows)])

    def draws(self, replicates: int, size: int, seed: int, *, second: bool = False, nested: bool = True) -> np.ndarray:
        """Return the sums `[replicates, columns]` of bootstrap samples; the seed fixes the series of populations.

        Each replicate has a population of its own, drawn from the baseline with replacement, so that the spread of the
        statistics includes the sampling error of the baseline. A window and a `second` baseline of the same replicate
        are drawn from the same population. Unless `nested`, that population is the baseline itself.
        """
        rng = np.random.default_rng([seed, size, int(second), int(nested)])
        count = len(self.baseline.rows)
        sums = []
        for begin in range(0, replicates, _CHUNK):
            number = min(_CHUNK, replicates - begin)
            drawn = rng.integers(count, size=(number, size))
            if nested:
                # independent of the size: window and second baseline have the same populations
                population = np.random.default_rng([seed, begin]).integers(count, size=(number, count))
                drawn = np.take_along_axis(population, drawn, axis=1)
            drawn += (np.arange(number) * count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=number * count).reshape(number, count).astype(np.float32)
            sums.append(np.concatenate([times[:, rows] @ design for rows, design in self._design], axis=1))
        return np.concatenate(sums).astype(np.float64)

    def compare(self, window: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return statistics `[r, names]` and distances `[r, names]` of sums `[r, columns]`.

        A statistic is the distance times the root of the effective size of the two samples, so that its null
        distribution hardly depends on the number of rows.
        """
        a, b = self._parts(window), self._parts(base)
        distances, sizes = [], []
        fields = np.abs(a["above"] - b["above"]).sum(1) * (self.step / self.unit)
        distances.append(fields)
        sizes.append(_size(a["field_size"], b["field_size"]))
        everything = _size(a["size"], b["size"])
        for name in ("low", "zero"):
            distances.append(np.abs(a[name] - b[name])[:, None])
            sizes.append(everything[:, None])
        distances.append(np.abs(a["groups"] - b["groups"]).sum(1, keepdims=True) / 2)
        sizes.append(everything[:, None])
        for index in ("map", *self.classes):
            distances.append(np.abs(a[index] - b[index]).sum(1, keepdims=True) / 2)
            sizes.append(_size(a[f"size of {index}"], b[f"size of {index}"])[:, None])
        distance = np.concatenate(distances, axis=1)
        return distance * np.concatenate(sizes, axis=1), distance

    def levels(self, sums: np.ndarray) -> dict[str, float]:
        """Return means and rates by name, for display."""
        parts = self._parts(sums[None])
        means = dict(zip(self.fields, parts["mean"][0].tolist(), strict=True))
        return means | {"low_confidence": float(parts["low"][0]), "zero_maps": float(parts["zero"][0])}

    def _parts(self, sums: np.ndarray) -> dict[Any, np.ndarray]:
        count = len(self.fields)
        place = 0

        def cut(width: int) -> np.ndarray:
            nonlocal place
            place += width
            return sums[:, place - width : place]

        parts: dict[Any, np.ndarray] = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            total = cut(count)
            parts["field_size"] = total**2 / cut(count)
            parts["mean"] = cut(count) / total
            parts["above"] = cut(count * _STEPS).reshape(-1, _STEPS, count) / total[:, None]
            total = cut(1)
            parts["size"] = (total**2 / cut(1))[:, 0]
            parts["low"], parts["zero"] = (cut(1) / total)[:, 0], (cut(1) / total)[:, 0]
            parts["groups"] = cut(_GROUPS) / total
            for index in ("map", *self.classes):
                total = cut(1)
                parts[f"size of {index}"] = (total**2 / cut(1))[:, 0]
                parts[index] = cut(self.cells) / total
        return parts

    def _floors(self) -> np.ndarray:
        """Return the smallest standard deviation that is assumed for each statistic.

        An event that is absent from a baseline of n rows may still have a rate of up to 3 / n (the rule of three); its
        bootstrap estimate would be zero.
        """
        rare = 3.0 / self._parts(self.baseline_sums[None])["size"][0]
        rate = np.sqrt(rare * max(0.0, 1 - rare))
        fields, maps = np.full(len(self.fields), 0.05), np.full(1 + len(self.classes), 0.005)
        return np.concatenate([fields, [rate, rate, 0.05], maps])


def _size(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the root of the effective size of a comparison of two samples; NaN if either is too small."""
    with np.errstate(invalid="ignore", divide="ignore"):
        enough = (a >= _FEWEST_EFFECTIVE) & (b >= _FEWEST_EFFECTIVE)
        return np.where(enough, np.sqrt(a * b / (a + b)), np.nan)


def format_number(value: float | None) -> str:
    """Format a mean for display."""
    return "?" if value is None else f"{value:.3f}"


def format_percent(value: float | None) -> str:
    """Format a rate for display."""
    return "?" if value is None else f"{100 * value:.1f} %"


def _rounded(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")
