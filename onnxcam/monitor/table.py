"""Records as a table of numbers: one row per record, for weighted sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from onnxcam.monitor.schema import Record

GRID = 8  # cells per side at most at which maps are compared: finer cells are noise between pictures
OWN_LAYER = "each box's own"  # of a detector whose boxes are explained at the level they come from
LARGEST = 1e9  # of a field or weight: squares of many stay finite

# the name of each column, and how its number is read from a record
FIELDS: dict[str, Callable[[Record, Record], Any]] = {
    "confidence": lambda prediction, statistics: prediction.get("confidence"),
    "margin": lambda prediction, statistics: prediction.get("margin"),
    "entropy": lambda prediction, statistics: prediction.get("entropy"),
    "boxes": lambda prediction, statistics: _length(prediction.get("boxes")),
    "attention.y": lambda prediction, statistics: (statistics.get("centroid") or (None, None))[0],
    "attention.x": lambda prediction, statistics: (statistics.get("centroid") or (None, None))[1],
    "attention.spread": lambda prediction, statistics: statistics.get("spread"),
    "attention.entropy": lambda prediction, statistics: statistics.get("entropy"),
    "attention.gini": lambda prediction, statistics: statistics.get("gini"),
    "attention.half_area": lambda prediction, statistics: statistics.get("half_area"),
    "attention.border": lambda prediction, statistics: statistics.get("border"),
    "attention.peaks": lambda prediction, statistics: statistics.get("peaks"),
    "attention.region": lambda prediction, statistics: statistics.get("region"),
}


@dataclass(frozen=True)
class Configuration:
    """The settings that records must share to be comparable.

    Attributes:
        layer: its name, or `OWN_LAYER`.
    """

    model: str | None
    when: str | None
    method: str | None
    layer: str | None

    @classmethod
    def of(cls, record: Record) -> Configuration:
        prediction = record.get("prediction") or {}
        layer = OWN_LAYER if prediction.get("own_layer") is True else prediction.get("layer")
        return cls(
            (record.get("model") or {}).get("sha256"),
            (record.get("trigger") or {}).get("when"),
            prediction.get("method"),
            layer if layer is None or isinstance(layer, str) else ", ".join(map(str, layer)),
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """A sample of records.

    Attributes:
        values: float64 `[n, len(FIELDS)]`, NaN where a record has no such number.
        weights: float64 `[n]`, how many predictions a record stands for: the inverse of its sampling probability.
        low: bool `[n]`, the row met the condition (the others are of the baseline's sample).
        zero: bool `[n]`, the map was zero everywhere.
        predicted, target: int64 `[n]`, the top-1 class and the explained one; -1 if unknown.
        maps: float32 `[n, h, w]`, each map's energy as shares that add up to 1; NaN for a row without a map.
    """

    values: np.ndarray
    weights: np.ndarray
    low: np.ndarray
    zero: np.ndarray
    predicted: np.ndarray
    target: np.ndarray
    maps: np.ndarray

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def mapped(self) -> np.ndarray:
        """bool `[n]`: the rows with a map."""
        return np.asarray(np.isfinite(self.maps[:, 0, 0]))

    def take(self, index: Any) -> Rows:
        """Some of the rows, by index, mask or slice."""
        return Rows(
            self.values[index],
            self.weights[index],
            self.low[index],
            self.zero[index],
            self.predicted[index],
            self.target[index],
            self.maps[index],
        )

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """Concatenate tables."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def of(cls, records: Iterable[Record], grid: tuple[int, int] | None = None) -> Rows:
        """Build the table of some records.

        Arguments:
            records: of one configuration.
            grid: the shape of the maps; that of the first map by default. Maps of another shape are skipped.
        """
        records = list(records)
        maps = [shares_of(record) for record in records]
        if grid is None:
            grid = next((m.shape for m in maps if m is not None), (1, 1))
        values = np.full((len(records), len(FIELDS)), np.nan)
        energy = np.full((len(records), *grid), np.nan, np.float32)
        for row, record in enumerate(records):
            prediction, statistics = record.get("prediction") or {}, record.get("attention") or {}
            numbers = [_number(read(prediction, statistics)) for read in FIELDS.values()]
            values[row] = [number if abs(number) <= LARGEST else np.nan for number in numbers]
            energies = maps[row]
            if energies is not None and energies.shape == grid:
                energy[row] = energies
        return cls(
            values,
            np.array([_weight(record) for record in records], np.float64),
            np.array([(record.get("trigger") or {}).get("reason") != "baseline" for record in records], bool),
            np.array([bool((record.get("attention") or {}).get("zero")) for record in records], bool),
            np.array(
                [_class(((record.get("prediction") or {}).get("top") or [None])[0]) for record in records], np.int64
            ),
            np.array([_class((record.get("prediction") or {}).get("target")) for record in records], np.int64),
            energy,
        )


def shares(values: np.ndarray, *, exactly: bool = False) -> np.ndarray | None:
    """Sum a map's energy into at most 8 x 8 cells, as shares that add up to 1; None if it is zero everywhere.

    Arguments:
        exactly: into 8 x 8 cells whatever the map's size, so that those of all levels of a pyramid compare.
    """
    energy = np.where(np.isfinite(values), np.maximum(values, 0.0), 0.0)
    for axis in (0, 1):
        if exactly or energy.shape[axis] > GRID:
            energy = _fold(energy, axis)
    total = energy.sum()
    return energy / total if total > 0 else None


def _fold(values: np.ndarray, axis: int) -> np.ndarray:
    """Sum values into `GRID` cells along an axis; a value that straddles two cells is split between them."""
    side = values.shape[axis]
    edges = np.arange(GRID + 1) * (side / GRID)
    low = np.arange(side)
    part = np.clip(np.minimum(low + 1, edges[1:, None]) - np.maximum(low, edges[:-1, None]), 0, None)
    return np.moveaxis(np.tensordot(part, values, (1, axis)), 0, axis)


def shares_of(record: Record) -> np.ndarray | None:
    """Return the shares of a record's map; None without a map, or for one that is zero everywhere."""
    stored: Any = record.get("map")
    try:
        height, width = stored["shape"]
        values = np.asarray(stored["values"], np.float64).reshape(height, width)
    except (TypeError, KeyError, ValueError):
        return None
    own_layer = (record.get("prediction") or {}).get("own_layer") is True
    return shares(values, exactly=own_layer) if values.size else None


def _weight(record: Record) -> float:
    sample = _number((record.get("trigger") or {}).get("sample"))
    return min(1.0 / sample, LARGEST) if 0 < sample <= 1 else 1.0


def _length(values: Any) -> int | None:
    return len(values) if isinstance(values, list) else None


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else float("nan")
    except OverflowError:
        return float("nan")


def _class(entry: Any) -> int:
    index = entry.get("index") if isinstance(entry, dict) else None
    return index if type(index) is int and 0 <= index < 1 << 62 else -1
