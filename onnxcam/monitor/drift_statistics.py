"""The family of statistics that drift detection compares, as functions of weighted sums over rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from onnxcam.monitor.normal import Baseline
from onnxcam.monitor.table import FIELDS, Rows

_STEPS = 32  # bins of a field's values
# Classes are put into this many groups by index. Groups by frequency would be biased: classes that are frequent in the
# baseline by chance are less frequent in every window.
_GROUPS = 32
_FEWEST_EFFECTIVE = 15  # a statistic of fewer rows, by Kish's effective sample size, is not computed
_CHUNK = 250  # replicates whose populations have one seed
_PART = 50  # replicates that are drawn at a time
_LARGE = 5000  # rows of a sample whose draws are counted rather than listed


class Family:
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
        """Return the sums of bootstrap samples, float32 `[replicates, columns]`; the seed fixes the populations.

        Each replicate has a population of its own, drawn from the baseline with replacement, so that the spread of the
        statistics includes the sampling error of the baseline. A window and a `second` baseline of the same replicate
        are drawn from the same population. Unless `nested`, that population is the baseline itself.
        """
        rng = np.random.default_rng([seed, size, int(second), int(nested)])
        count = len(self.baseline.rows)
        sums = []
        for begin in range(0, replicates, _CHUNK):
            number = min(_CHUNK, replicates - begin)
            if size > _LARGE:
                times = self._count_draws(rng, number, size, [seed, begin] if nested else None)
                sums.append(np.concatenate([times[:, rows] @ design for rows, design in self._design], axis=1))
                continue
            # independent of the size: window and second baseline have the same populations
            populations = np.random.default_rng([seed, begin])
            for part in range(0, number, _PART):
                rows = min(_PART, number - part)
                drawn = rng.integers(count, size=(rows, size))
                if nested:
                    drawn = np.take_along_axis(populations.integers(count, size=(rows, count)), drawn, axis=1)
                drawn += (np.arange(rows) * count)[:, None]
                times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float32)
                sums.append(np.concatenate([times[:, block] @ design for block, design in self._design], axis=1))
        return np.concatenate(sums)

    def _count_draws(
        self, rng: np.random.Generator, number: int, size: int, population: Sequence[int] | None
    ) -> np.ndarray:
        """Return how often each row is drawn in `number` samples of any size, float32 `[number, rows]`.

        The distribution is that of drawing one by one; the memory does not grow with the size.

        Arguments:
            population: the seed of the populations, drawn from the baseline; None for the baseline itself.
        """
        count = len(self.baseline.rows)
        times = np.empty((number, count), np.float32)
        rows = None if population is None else np.random.default_rng(population).integers(count, size=(number, count))
        for replicate in range(number):
            share = np.full(count, 1 / count) if rows is None else np.bincount(rows[replicate], minlength=count) / count
            times[replicate] = rng.multinomial(size, share)
        return times

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

    def score(self, window: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Return the statistics `[replicates, names]` of drawn sums, in parts, as all at once take memory."""
        parts = [slice(begin, begin + _CHUNK) for begin in range(0, len(window), _CHUNK)]
        return np.concatenate(
            [self.compare(window[part].astype(np.float64), base[part].astype(np.float64))[0] for part in parts]
        )

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
