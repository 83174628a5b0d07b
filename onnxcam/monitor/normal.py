"""The numbers of a baseline: scales of its fields, mean maps, and how far single records are from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from onnxcam.monitor.schema import Record
from onnxcam.monitor.table import FIELDS, Configuration, Rows

CLASSES = 10  # the most frequent classes, which get mean maps of their own
PER_CLASS = 40  # records that such a class needs


@dataclass(frozen=True, eq=False)
class Baseline:
    """A sample of normal records.

    Attributes:
        identity: the first characters of the file's sha256, which records refer to.
        configuration: the model, condition, method and layer of the records.
        rows: the sample, at most ROWS records.
        labels: names of the classes in the sample.
        since, until: times of the first and of the last record.
        records: how many records the sample was drawn from.
        name: the model's name.
    """

    identity: str
    configuration: Configuration
    rows: Rows
    labels: dict[int, str] = field(repr=False)
    since: str
    until: str
    records: int
    name: str | None = None

    @cached_property
    def grid(self) -> tuple[int, int]:
        """The shape of the maps."""
        _, height, width = self.rows.maps.shape
        return height, width

    @cached_property
    def mapped(self) -> np.ndarray:
        """bool `[n]`: the rows with a map."""
        return self.rows.mapped

    @cached_property
    def classes(self) -> list[int]:
        """The most frequent classes with enough maps for a mean of their own, by index."""
        counts = Counter(self.rows.target[self.mapped].tolist())
        return sorted(c for c, n in counts.most_common(CLASSES) if n >= PER_CLASS and c >= 0)

    def label(self, index: int) -> str:
        """Return a class's name, with its index if other classes have the same name."""
        name = self.labels.get(index, str(index))
        return name if list(self.labels.values()).count(name) < 2 else f"{name} ({index})"

    @cached_property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Weighted mean and standard deviation of each field; NaN for one that no record has."""
        valid = np.isfinite(self.rows.values)
        weights = np.where(valid, self.rows.weights[:, None], 0.0)
        total = weights.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (weights * np.nan_to_num(self.rows.values)).sum(0) / total
            spread = np.sqrt((weights * np.nan_to_num(self.rows.values - mean) ** 2).sum(0) / total)
        return mean, spread

    @cached_property
    def mean_maps(self) -> dict[int | None, np.ndarray]:
        """Weighted mean energy `[h, w]` of each of `classes`, and under None that of all records."""
        maps = {index: mean_map(self.rows, index) for index in (None, *self.classes)}
        return {index: mean for index, mean in maps.items() if mean is not None}

    @cached_property
    def _map_distances(self) -> dict[int | None, np.ndarray]:
        """Sorted distances of the sample's maps from their mean, by class."""
        distances = {}
        for index, mean in self.mean_maps.items():
            of_class = self.mapped if index is None else self.mapped & (self.rows.target == index)
            distances[index] = np.sort(np.abs(self.rows.maps[of_class] - mean).sum((1, 2)) / 2)
        return distances

    def is_later(self, record: Record) -> bool:
        """Return whether a record can be compared with the baseline and is not of its own time."""
        inside = self.since <= record["ts"] <= self.until
        return not inside and Configuration.of(record) == self.configuration

    def distances(self, record: Record) -> dict[str, Any]:
        """Measure how far one record is from the baseline.

        Returns:
            `baseline`: the identity of the baseline.
            `comparable`: False for a record of another model, condition, method or layer; the rest is None then.
            `attention`: root mean square of the deviations of the map's statistics, in standard deviations.
            `furthest`: the field that deviates most, of the prediction or the map, and `deviation`, by how many
            standard deviations (signed).
            `map`: the share of the energy that lies elsewhere than in the class's mean map (or the mean of all, if the
            baseline has too few records of the class), 0 to 1.
            `rank`: the share of the baseline's own records whose map is nearer to that mean.
        """
        result: dict[str, Any] = {
            "baseline": self.identity,
            "comparable": Configuration.of(record) == self.configuration,
        }
        result |= dict.fromkeys(("attention", "furthest", "deviation", "map", "rank"))
        if not result["comparable"]:
            return result
        row = Rows.of([record], self.grid)
        mean, spread = self.scale
        names = list(FIELDS)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviations = (row.values[0] - mean) / np.maximum(spread, 1e-3)
        present = np.isfinite(deviations)
        if present.any():
            furthest = int(np.argmax(np.where(present, np.abs(deviations), -1.0)))
            result |= {"furthest": names[furthest], "deviation": round(float(deviations[furthest]), 4)}
            of_map = deviations[present & np.array([name.startswith("attention.") for name in names])]
            if of_map.size:
                result["attention"] = round(float(np.sqrt((of_map**2).mean())), 4)
        index = int(row.target[0]) if int(row.target[0]) in self.mean_maps else None
        if row.mapped[0] and index in self.mean_maps:
            distance = float(np.abs(row.maps[0] - self.mean_maps[index]).sum() / 2)
            distances = self._map_distances[index]
            rank = float(np.searchsorted(distances, distance) / len(distances))
            result |= {"map": round(distance, 4), "rank": round(rank, 4)}
        return result


def mean_map(rows: Rows, target: int | None = None) -> np.ndarray | None:
    """Return the weighted mean energy `[h, w]` of one explained class or of all rows; None without a map."""
    mask = rows.mapped
    if target is not None:
        mask = mask & (rows.target == target)
    if not mask.any():
        return None
    weights = rows.weights[mask]
    return np.asarray(np.tensordot(weights / weights.sum(), rows.maps[mask].astype(float), 1))
