"""The rows of a baseline's file: weights, classes, fields, small maps, and the keys and times that merging needs."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np

from onnxcam.documents import inflate
from onnxcam.monitor.schema import Record
from onnxcam.monitor.table import FIELDS, GRID, LARGEST, Rows, shares_of

_CHUNK = 500  # records that are parsed at a time
_FLAGS = ("low", "zero")
_CLASSES = ("predicted", "target")
_LEVELS = 65535  # of a map's cells, as fractions of the largest: the error is far below the variation between pictures
Shape = tuple[int, int]


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows as a file has them: numbers are rounded already, so that reading and writing them again changes nothing.

    Attributes:
        keys: uint64 `[n]`, of the sketch.
        times: int64 `[n]`, microseconds since 1970.
        flags: bool `[n]`, by name; classes: int64 `[n]`, by name.
        weights: float64 `[n]`; fields: float64 `[n]` by name, NaN for none.
        maps: uint16 `[n, h, w]` by shape, and which rows have such a map, bool `[n]`.
    """

    keys: np.ndarray
    times: np.ndarray
    flags: dict[str, np.ndarray]
    classes: dict[str, np.ndarray]
    weights: np.ndarray
    fields: dict[str, np.ndarray]
    maps: dict[Shape, tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def shape(self) -> Shape:
        """The most frequent shape of maps, the larger one of equally frequent ones."""
        counts = {shape: int(present.sum()) for shape, (_, present) in self.maps.items()}
        return max(counts, key=lambda shape: (counts[shape], shape), default=(1, 1))

    @classmethod
    def of(cls, lines: Sequence[str], keys: np.ndarray, times: np.ndarray) -> StoredRows:
        """The rows of records that are given as JSON, parsing few at a time."""
        shapes: Counter[Shape] = Counter()
        for line in lines:
            shares = shares_of(json.loads(line))
            if shares is not None:
                shapes[shares.shape[0], shares.shape[1]] += 1
        tables: dict[Shape, list[Rows]] = {shape: [] for shape in sorted(shapes) or [(1, 1)]}
        for begin in range(0, len(lines), _CHUNK):
            records = [json.loads(line) for line in lines[begin : begin + _CHUNK]]
            for shape, parts in tables.items():
                parts.append(Rows.of(records, shape))
        by_shape = {shape: Rows.join(parts) for shape, parts in tables.items()}
        table = next(iter(by_shape.values()))
        return cls(
            keys,
            times,
            {name: getattr(table, name) for name in _FLAGS},
            {name: getattr(table, name) for name in _CLASSES},
            _rounded(table.weights),
            {name: _rounded(table.values[:, column]) for column, name in enumerate(FIELDS)},
            {shape: (_levels(one.maps, one.mapped), one.mapped) for shape, one in by_shape.items() if shapes},
        )

    def take(self, places: np.ndarray) -> StoredRows:
        """Some of the rows, by their places."""
        return StoredRows(
            self.keys[places],
            self.times[places],
            {name: values[places] for name, values in self.flags.items()},
            {name: values[places] for name, values in self.classes.items()},
            self.weights[places],
            {name: values[places] for name, values in self.fields.items()},
            {
                shape: (cells[places], present[places])
                for shape, (cells, present) in self.maps.items()
                if present[places].any()
            },
        )

    @classmethod
    def join(cls, parts: Sequence[StoredRows]) -> StoredRows:
        """Concatenate rows."""
        maps = {}
        for shape in sorted({shape for part in parts for shape in part.maps}):
            pairs = [
                part.maps.get(shape, (np.zeros((len(part), *shape), np.uint16), np.zeros(len(part), bool)))
                for part in parts
            ]
            maps[shape] = (np.concatenate([cells for cells, _ in pairs]), np.concatenate([p for _, p in pairs]))
        return cls(
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.times for part in parts]),
            {name: np.concatenate([part.flags[name] for part in parts]) for name in _FLAGS},
            {name: np.concatenate([part.classes[name] for part in parts]) for name in _CLASSES},
            np.concatenate([part.weights for part in parts]),
            {name: np.concatenate([part.fields[name] for part in parts]) for name in FIELDS},
            maps,
        )

    def in_order(self) -> StoredRows:
        """The rows by time, and by key where times are the same."""
        return self.take(np.lexsort((self.keys, self.times)))

    def to_json(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The values of `rows` in the file, and those of `sample`."""
        shape = self.shape
        cells, present = self.maps.get(shape, (np.zeros((len(self), *shape), np.uint16), np.zeros(len(self), bool)))
        rows = {
            "weights": _json(self.weights),
            **{name: values.astype(int).tolist() for name, values in self.flags.items()},
            **{name: values.tolist() for name, values in self.classes.items()},
            "fields": {name: _json(values) for name, values in self.fields.items() if np.isfinite(values).any()},
            "maps": _packed(shape, cells, present),
        }
        others = [_packed(other, *maps) for other, maps in sorted(self.maps.items()) if other != shape]
        if others:
            rows["more_maps"] = others
        sample = {
            "keys": base64.b64encode(self.keys.astype("<u8").tobytes()).decode(),
            "times": base64.b64encode(zlib.compress(self.times.astype("<i8").tobytes(), 9)).decode(),
        }
        return rows, sample

    @classmethod
    def from_json(cls, rows: dict[str, Any], sample: dict[str, Any]) -> StoredRows:
        """The rows of a file that `parse` has accepted.

        Raises:
            ValueError, KeyError, TypeError: its keys, times or maps do not fit.
        """
        count = len(rows["weights"])
        keys = np.frombuffer(base64.b64decode(sample["keys"], validate=True), "<u8")
        times = np.frombuffer(inflate(base64.b64decode(sample["times"], validate=True), 8 * count), "<i8")
        if not len(keys) == len(times) == len(np.unique(keys)) == count:
            raise ValueError(f"{len(keys):,} keys and {len(times):,} times, expected a different one per row")
        more = rows.get("more_maps", [])
        if not isinstance(more, list) or len(more) > GRID**2:
            raise ValueError("more_maps is not a list of some shapes of maps")
        maps = {}
        for stored in [rows["maps"], *more]:
            present = column(stored["present"], "present", count, int).astype(bool)
            maps[tuple(stored["shape"])] = (cells_of(stored, count), present)
        return cls(
            keys,
            times,
            {name: column(rows[name], name, count, int).astype(bool) for name in _FLAGS},
            {name: column(rows[name], name, count, int) for name in _CLASSES},
            column(rows["weights"], "weights", count, float),
            {
                name: column(rows["fields"].get(name, [None] * count), name, count, float, optional=True)
                for name in FIELDS
            },
            {shape: pair for shape, pair in maps.items() if pair[1].any()},
        )


def labels_of(lines: Iterable[str]) -> dict[int, str]:
    """Names of the classes that records have as predicted or explained, each the first one that occurs."""
    labels: dict[int, str] = {}
    for line in lines:
        record: Record = json.loads(line)
        prediction = record.get("prediction") or {}
        for entry in (*(prediction.get("top") or [])[:1], prediction.get("target") or {}):
            if isinstance(entry.get("index"), int) and entry.get("label") is not None:
                labels.setdefault(entry["index"], str(entry["label"]))
    return labels


def column(stored: Any, name: str, count: int, kind: type, optional: bool = False) -> np.ndarray:
    """Check a list of numbers, and return it as int64 or float64; with `optional`, NaN for null.

    Raises:
        ValueError: not such a list.
    """
    if not isinstance(stored, list) or len(stored) != count:
        raise ValueError(f"{name} is not a list of {count:,} numbers, one per row")
    kinds = {int} if kind is int else {int, float}
    if not set(map(type, stored)) <= kinds | ({NoneType} if optional else set()):
        raise ValueError(f"{name} has something else than numbers")
    return np.array([np.nan if value is None else value for value in stored], np.int64 if kind is int else np.float64)


def cells_of(stored: Any, count: int) -> np.ndarray:
    """Decompress maps, uint16 `[count, h, w]`.

    Raises:
        ValueError, KeyError, TypeError: another shape or size.
    """
    height, width = stored["shape"]
    if not all(type(side) is int and 1 <= side <= GRID for side in (height, width)):
        raise ValueError(f"maps of shape {stored['shape']!r:.40}, expected at most {GRID} x {GRID}")
    size = count * height * width * 2
    data = inflate(base64.b64decode(stored["uint16"], validate=True), size)
    if len(data) != size:
        raise ValueError(f"maps of {len(data):,} bytes, expected {size:,}")
    return np.asarray(np.frombuffer(data, "<u2").reshape(count, height, width))


def energy_of(stored: Any, count: int) -> np.ndarray:
    """Decompress maps, as shares that add up to 1, float64 `[count, h, w]`; errors as of `cells_of`."""
    energy = cells_of(stored, count).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        energy /= energy.sum((1, 2), keepdims=True)
    return energy


def check_numbers(weights: np.ndarray, fields: np.ndarray) -> None:
    """Refuse numbers that no record has.

    Raises:
        ValueError: weights that are not above 0, or numbers whose squares could overflow.
    """
    if not ((weights > 0) & (weights <= LARGEST)).all():
        raise ValueError(f"weights are not all above 0 and at most {LARGEST:g}")
    for name, values in zip(FIELDS, fields.T, strict=True):
        if not (np.isnan(values) | (np.abs(values) <= LARGEST)).all():
            raise ValueError(f"{name} has numbers beyond {LARGEST:g}")


def _levels(maps: np.ndarray, mapped: np.ndarray) -> np.ndarray:
    top = np.where(mapped, np.nan_to_num(maps).max((1, 2)), 1.0)
    return np.asarray(np.round(np.nan_to_num(maps) / top[:, None, None] * _LEVELS), np.uint16)


def _packed(shape: Shape, cells: np.ndarray, present: np.ndarray) -> dict[str, Any]:
    return {
        "shape": list(shape),
        "present": present.astype(int).tolist(),
        "uint16": base64.b64encode(zlib.compress(cells.astype("<u2").tobytes(), 9)).decode(),
    }


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.array([float(f"{value:.6g}") for value in values.tolist()], np.float64)


def _json(values: np.ndarray) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
