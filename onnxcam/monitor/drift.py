"""Has what the model sees, says or looks at changed? Windows of records against a baseline, with bounded false alarms.

Each statistic compares one thing in the window with the baseline: a field's distribution, the class distribution, the
part of low-confidence predictions, a mean map. Records weigh one over their sampling probability, so that all of them
speak of the traffic and not of what was kept of it.

How large chance makes the statistics is bootstrapped from the baseline: a window and a second baseline, as large as the
real ones, are drawn from it with replacement many times, so that the baseline being a sample itself is counted in. Each
statistic is brought to zero mean and unit deviation there, and the threshold is the quantile of the largest of them:
the declared rate of false alarms is that of the whole family, for one window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from onnxcam.errors import InputError
from onnxcam.monitor.baseline import FEWEST, Baseline
from onnxcam.monitor.table import FIELDS, Configuration, Record, Rows

OK, DRIFT, UNKNOWN = "ok", "drift", "not enough data"
FALSE_ALARMS = 0.01
REPLICATES = 2000
_STEPS = 32  # of a field's values
# Classes are put into that many groups by their index alone. Groups made by frequency would be wrong: classes that are
# frequent in the baseline by chance are less so in every window.
_GROUPS = 32
_FEWEST_EFFECTIVE = 15  # a statistic of fewer rows, by Kish's effective size, is not computed
_CHUNK = 250


@dataclass(frozen=True)
class Statistic:
    """One comparison.

    Attributes:
        name: a field's name, "low_confidence", "zero_maps", "classes", "map", or "map/<class>".
        baseline, window: the mean or rate, None for distributions and maps.
        distance: 1-Wasserstein distance in standard deviations of the baseline (fields); absolute difference (rates);
            total variation, the part that lies elsewhere, 0 to 1 (classes and maps).
        score: the distance above what chance gives, in standard deviations of what chance gives; None where there are
            too few rows.
        drifted: the score is above the threshold.
    """

    name: str
    baseline: float | None
    window: float | None
    distance: float | None
    score: float | None
    drifted: bool


@dataclass(frozen=True)
class Verdict:
    """What is said about a window.

    Attributes:
        verdict: "ok", "drift" or "not enough data".
        records: in the window; effective: the size of an evenly weighted sample that is as precise.
        since, until: times of the first and of the last record.
        score, threshold: the largest score, and where drift begins.
        false_alarms: the declared rate for one window.
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

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


class Detector:
    """Compares windows with a baseline.

    Arguments:
        baseline: what is normal.
        false_alarms: how often a window in which nothing changed may be called drift, 0 to 1, exclusive.
        replicates: bootstrap draws.
        seed: fixes them.

    Raises:
        InputError: a rate that is none, or so small that the replicates cannot tell it.
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
                f"a rate of false alarms of {false_alarms} cannot be told from {replicates} replicates; "
                f"take at least {int(np.ceil(4 / false_alarms))}"
            )
        self.baseline = baseline
        self.false_alarms = false_alarms
        self.replicates = replicates
        self.seed = seed
        self._family = _Family(baseline)
        self._nulls: dict[int, _Null] = {}
        self._second: np.ndarray | None = None

    def assess(self, rows: Rows, since: str | None = None, until: str | None = None) -> Verdict:
        """The verdict on a window; below 500 records it is "not enough data"."""
        square = float((rows.weights**2).sum())
        effective = float(rows.weights.sum()) ** 2 / square if square else 0.0
        about = (len(rows), round(effective, 1), since, until)
        if len(rows) < FEWEST:
            return Verdict(UNKNOWN, *about, None, None, self.false_alarms, [])
        family, null = self._family, self._null(len(rows))
        sums = family.sums(rows)
        found, distance = family.compare(sums[None], family.own[None])
        scores = (found[0] - null.mean) / null.deviation
        before, now = family.levels(family.own), family.levels(sums)
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
        return Verdict(DRIFT if drifted else OK, *about, top, round(null.threshold, 4), self.false_alarms, statistics)

    def _null(self, size: int) -> _Null:
        """What chance gives for windows of a size."""
        if size not in self._nulls:
            family = self._family
            if self._second is None:
                self._second = family.draws(self.replicates, len(self.baseline.rows), self.seed, second=True)
            scores, _ = family.compare(family.draws(self.replicates, size, self.seed), self._second)
            scores *= self._shrinkage(size, scores)
            self._nulls[size] = _Null.of(scores, family.floors, self.false_alarms)
        return self._nulls[size]

    def _shrinkage(self, size: int, scores: np.ndarray) -> np.ndarray:
        """What the statistics have to be multiplied by, `[names]`.

        A sample drawn from a sample varies less than its original does, most in the tails and where few rows carry the
        weight; each level of drawing loses about the same part. So one level is compared with the two of `draws`, and
        both are given back. The fields share their mean: one field's own ratio is mostly chance.
        """
        family = self._family
        window, base = (
            family.draws(self.replicates, n, self.seed, second=second, nested=False)
            for n, second in ((size, False), (len(self.baseline.rows), True))
        )
        once, _ = family.compare(window, base)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = _mean(once) / _mean(scores)
        ratio[: len(family.fields)] = np.mean(ratio[: len(family.fields)])
        ratio = np.where(np.isfinite(ratio), ratio, 1.0)
        return np.asarray(np.maximum(ratio, 1.0) ** 2)


def _mean(scores: np.ndarray) -> np.ndarray:
    """Over the known ones of each column."""
    known = np.isfinite(scores)
    return np.asarray(np.where(known, scores, 0.0).sum(0) / np.maximum(known.sum(0), 1))


@dataclass(frozen=True)
class Assessment:
    """What `judge` found.

    Attributes:
        windows: the verdict on each window, oldest first.
        others: records of another model, condition, method or layer, which were left out.
    """

    windows: list[Verdict]
    others: int

    @property
    def latest(self) -> Verdict:
        """The verdict on the newest window."""
        return self.windows[-1]

    @property
    def notes(self) -> list[str]:
        """Sentences about what was left out."""
        what = "records of another model, condition, method or layer than the baseline's were left out"
        return [f"{self.others} {what}"] if self.others else []


def assess(records: Iterable[Record], detector: Detector, window: int | timedelta = 1000) -> Assessment:
    """Verdicts on records in time order, window by window.

    Arguments:
        records: those of another model, condition, method or layer than the baseline's are left out.
        window: how many records make one (at least 500), or how long it is; windows by time begin at multiples of their
            length, in UTC.

    Raises:
        InputError: a window of fewer than 500 records.
    """
    if not isinstance(window, timedelta) and window < FEWEST:
        raise InputError(f"windows of {window} records are too small; expected at least {FEWEST}")
    parts: list[Rows] = []
    times: list[str] = []
    waiting: list[Record] = []
    others = 0
    baseline = detector.baseline
    for record in records:
        if Configuration.of(record) != baseline.configuration:
            others += 1
            continue
        times.append(record["ts"])
        waiting.append(record)
        if len(waiting) == FEWEST:
            parts.append(Rows.of(waiting, baseline.grid))
            waiting.clear()
    rows = Rows.join([*parts, Rows.of(waiting, baseline.grid)])
    bounds = _by_time(times, window) if isinstance(window, timedelta) else windows(len(rows), window)
    verdicts = [
        detector.assess(rows.take(slice(begin, end)), min(times[begin:end]), max(times[begin:end]))
        for begin, end in bounds
    ]
    return Assessment(verdicts or [detector.assess(rows)], others)


def _by_time(times: Sequence[str], length: timedelta) -> list[tuple[int, int]]:
    seconds = max(1.0, length.total_seconds())
    numbers = [int(datetime.fromisoformat(time).timestamp() // seconds) for time in times]
    begins = [row for row, number in enumerate(numbers) if row == 0 or number > numbers[row - 1]]
    return list(zip(begins, [*begins[1:], len(times)], strict=True))


def windows(count: int, size: int) -> list[tuple[int, int]]:
    """Where windows of at least `size` of `count` records in time order begin and end.

    The last one ends at the newest record. What is left over at the old end goes into the first one.
    """
    number = max(1, count // size)
    first = count - (number - 1) * size
    return [(0, first), *((first + k * size, first + (k + 1) * size) for k in range(number - 1))] if count else []


@dataclass(frozen=True, eq=False)
class _Null:
    mean: np.ndarray
    deviation: np.ndarray
    threshold: float

    @classmethod
    def of(cls, scores: np.ndarray, floors: np.ndarray, false_alarms: float) -> _Null:
        known = np.isfinite(scores)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, scores, 0.0).sum(0) / count
        deviation = np.sqrt(np.where(known, (scores - mean) ** 2, 0.0).sum(0) / count)
        deviation = np.maximum(deviation, floors)
        largest = np.where(known, (scores - mean) / deviation, -np.inf).max(1)
        return cls(mean, deviation, float(np.quantile(largest, 1 - false_alarms, method="higher")))


class _Family:
    """The statistics, as functions of weighted sums over rows: a bootstrap draw is then one row of a product.

    A design matrix holds, per row of a sample, what is summed; `draws` multiplies it by how often each row was drawn.
    """

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        mean, spread = baseline.scale
        self.fields = [name for column, name in enumerate(FIELDS) if np.isfinite(mean[column])]
        columns = [list(FIELDS).index(name) for name in self.fields]
        values = baseline.rows.values[:, columns]
        self.columns = columns
        # a field that is the same everywhere still has a unit, so that one stray value is no infinite distance
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
        self.own = self.sums(baseline.rows)
        self.floors = self._floors()

    def blocks(self, rows: Rows) -> Iterator[tuple[np.ndarray | slice, np.ndarray]]:
        """Rows (all, or those of a class) and their part of the design matrix `[n, columns]`."""
        weights = rows.weights[:, None]
        values = rows.values[:, self.columns]
        valid = np.isfinite(values)
        held = weights * valid
        above = (np.nan_to_num(values)[:, None, :] > self.edges) * held[:, None, :]
        groups = (rows.predicted[:, None] % _GROUPS == np.arange(_GROUPS)) * weights
        mapped = rows.mapped
        cells = np.nan_to_num(rows.maps.reshape(len(rows), self.cells))
        own = weights * mapped[:, None]
        yield (
            slice(None),
            np.concatenate(
                [
                    held,
                    held**2,
                    held * np.nan_to_num(values),
                    above.reshape(len(rows), -1),
                    weights,
                    weights**2,
                    weights * rows.low[:, None],
                    weights * rows.zero[:, None],
                    groups,
                    own,
                    own**2,
                    own * cells,
                ],
                axis=1,
            ),
        )
        for index in self.classes:
            part = np.flatnonzero(mapped & (rows.target == index))
            own = rows.weights[part, None]
            yield part, np.concatenate([own, own**2, own * cells[part]], axis=1)

    def sums(self, rows: Rows) -> np.ndarray:
        """`[columns]` of a sample."""
        return np.concatenate([design.sum(0) for _, design in self.blocks(rows)])

    def draws(self, replicates: int, size: int, seed: int, *, second: bool = False, nested: bool = True) -> np.ndarray:
        """`[replicates, columns]` of samples of a size; one seed gives one series of populations.

        Each replicate has a population of its own, drawn from the baseline with replacement: how far the baseline may
        be from what it was drawn from is then in the spread of the statistics too. A window and a `second` baseline of
        the same replicate are drawn from the same population. Not `nested`, that population is the baseline itself.
        """
        rng = np.random.default_rng([seed, size, int(second), int(nested)])
        count = len(self.baseline.rows)
        blocks = [(rows, design.astype(np.float32)) for rows, design in self.blocks(self.baseline.rows)]
        found = []
        for begin in range(0, replicates, _CHUNK):
            number = min(_CHUNK, replicates - begin)
            # the same populations for window and second baseline, whatever their sizes
            population = np.random.default_rng([seed, begin]).integers(count, size=(number, count))
            drawn = rng.integers(count, size=(number, size))
            if nested:
                drawn = np.take_along_axis(population, drawn, axis=1)
            drawn += (np.arange(number) * count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=number * count).reshape(number, count).astype(np.float32)
            found.append(np.concatenate([times[:, rows] @ design for rows, design in blocks], axis=1))
        return np.concatenate(found).astype(np.float64)

    def compare(self, window: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Statistics `[r, names]` and plain distances `[r, names]` of sums `[r, columns]`.

        A statistic is the distance times the root of the effective size of the two samples: what chance makes of it
        then hardly depends on how many rows there are.
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
        """Means and rates, by name, for people to read."""
        parts = self._parts(sums[None])
        found = dict(zip(self.fields, parts["mean"][0].tolist(), strict=True))
        return found | {"low_confidence": float(parts["low"][0]), "zero_maps": float(parts["zero"][0])}

    def _parts(self, sums: np.ndarray) -> dict[Any, np.ndarray]:
        count = len(self.fields)
        place = 0

        def cut(width: int) -> np.ndarray:
            nonlocal place
            place += width
            return sums[:, place - width : place]

        found: dict[Any, np.ndarray] = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            total = cut(count)
            found["field_size"] = total**2 / cut(count)
            found["mean"] = cut(count) / total
            found["above"] = cut(count * _STEPS).reshape(-1, _STEPS, count) / total[:, None]
            total = cut(1)
            found["size"] = (total**2 / cut(1))[:, 0]
            found["low"], found["zero"] = (cut(1) / total)[:, 0], (cut(1) / total)[:, 0]
            found["groups"] = cut(_GROUPS) / total
            for index in ("map", *self.classes):
                total = cut(1)
                found[f"size of {index}"] = (total**2 / cut(1))[:, 0]
                found[index] = cut(self.cells) / total
        return found

    def _floors(self) -> np.ndarray:
        """The least deviation of each statistic.

        What never happened in a baseline of n rows may still happen at a rate of 3 / n (the rule of three); a bootstrap
        of it says that it never does.
        """
        rare = 3.0 / self._parts(self.own[None])["size"][0]
        rate = np.sqrt(rare * max(0.0, 1 - rare))
        fields, maps = np.full(len(self.fields), 0.05), np.full(1 + len(self.classes), 0.005)
        return np.concatenate([fields, [rate, rate, 0.05], maps])


def _size(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The root of the effective size of a comparison of two samples; NaN where either is too small."""
    with np.errstate(invalid="ignore", divide="ignore"):
        enough = (a >= _FEWEST_EFFECTIVE) & (b >= _FEWEST_EFFECTIVE)
        return np.where(enough, np.sqrt(a * b / (a + b)), np.nan)


def _rounded(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def moved(verdict: Verdict, most: int = 5) -> Sequence[Statistic]:
    """The statistics above the threshold, the clearest first."""
    return [statistic for statistic in verdict.statistics if statistic.drifted][:most]
