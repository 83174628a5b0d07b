"""Baselines: a sample of normal records in one file, with which windows and single records are compared."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from onnxcam.documents import DocumentError, inflate, parse_json
from onnxcam.errors import InputError, SettingError
from onnxcam.files import FileError, read_bytes
from onnxcam.monitor.schema import Record
from onnxcam.monitor.table import FIELDS, GRID, LARGEST, Configuration, Rows, shares_of
from onnxcam.monitor.timestamps import seconds

FORMAT = 1
FEWEST = 500  # records: with fewer, drift statistics say more about chance than about the model
ROWS = 4000  # records in the file
MOST = 20000  # rows that a file may have
_FILE = 16 << 20  # bytes of a file
_MEMORY = 60 << 20  # bytes that its JSON may take
_CONFIGURATIONS = 8  # of which samples are drawn at a time
_CHUNK = 500
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


def distances(baseline: Baseline, record: Record) -> dict[str, Any]:
    """Return `baseline.distances(record)`."""
    return baseline.distances(record)


def check(baseline: Baseline, configuration: Configuration) -> None:
    """Check that a baseline can be compared with records of a configuration.

    Raises:
        SettingError: it is of another model, condition, method or layer.
    """
    pairs = (
        (f.name, getattr(baseline.configuration, f.name), getattr(configuration, f.name)) for f in fields(Configuration)
    )
    differ = [f"{name} {ours!r} instead of {theirs!r}" for name, ours, theirs in pairs if ours != theirs]
    if differ:
        raise SettingError(
            f"the baseline is not of what this monitor records: it has {'; '.join(differ)} (the sha256 of its file "
            "identifies a model); make one from this monitor's own records with `onnxcam monitor baseline DIR -o FILE`"
        )


def build(records: Iterable[Record], *, rows: int = ROWS, seed: int = 1234) -> tuple[dict[str, Any], list[str]]:
    """Build a baseline as JSON, and sentences about what was skipped.

    Arguments:
        records: of a normal period. Only those of the most frequent model, condition, method and layer are used.
        rows: how many records are stored, drawn at random.
        seed: fixes the draw.

    Raises:
        InputError: fewer than 500 records of one kind.
    """
    reservoir = _Reservoir(rows, seed)
    for record in records:
        reservoir.add(record)
    if not reservoir.counts:
        raise InputError(f"there are no records here; a baseline needs {FEWEST}")
    configuration, count = reservoir.counts.most_common(1)[0]
    if count < FEWEST:
        raise InputError(
            f"there are {count} records of one model, condition, method and layer; a baseline needs {FEWEST}: "
            "take a longer time, or raise the monitor's baseline_sample"
        )
    others = reservoir.counts.total() - count
    notes = [f"{others} records of another model, condition, method or layer were skipped"] if others else []
    lines = sorted(reservoir.rows[configuration], key=_time)
    table, labels = _tabulate(lines)
    mapped = table.mapped
    unmapped = int((~mapped & ~table.zero).sum())
    if unmapped:
        notes.append(f"{unmapped} records have no map of the shape {list(table.maps.shape[1:])}")
    # fractions of the largest cell in 16 bits: the rounding error is far below the variation between pictures
    top = np.where(mapped, np.nan_to_num(table.maps).max((1, 2)), 1.0)
    cells = np.round(np.nan_to_num(table.maps) / top[:, None, None] * 65535).astype("<u2")
    first, last = reservoir.span[configuration]
    document = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": (json.loads(lines[-1]).get("model") or {}).get("name"), "sha256": configuration.model},
        "when": configuration.when,
        "method": configuration.method,
        "layer": configuration.layer,
        "records": count,
        "since": first,
        "until": last,
        "labels": {str(index): label for index, label in sorted(labels.items())},
        "rows": {
            "weights": _floats(table.weights),
            "low": table.low.astype(int).tolist(),
            "zero": table.zero.astype(int).tolist(),
            "predicted": table.predicted.tolist(),
            "target": table.target.tolist(),
            "fields": {name: _floats(table.values[:, column]) for column, name in enumerate(FIELDS)},
            "maps": {
                "shape": list(table.maps.shape[1:]),
                "present": mapped.astype(int).tolist(),
                "uint16": base64.b64encode(zlib.compress(cells.tobytes(), 9)).decode(),
            },
        },
    }
    return document, notes


def load(path: str | Path) -> Baseline:
    """Load a baseline from a file that `onnxcam monitor baseline` wrote.

    Raises:
        InputError: no such file, or not a baseline.
    """
    try:
        data = read_bytes(path, _FILE)
        return parse(parse_json(data, memory=_MEMORY), identify(data))
    except FileError as error:
        raise InputError(f"the baseline {str(path)!r} {error}") from error
    except DocumentError as error:
        reason = str(error)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise InputError(
        f"{str(path)!r} is not a baseline ({reason}); make one with `onnxcam monitor baseline DIR -o baseline.json`"
    )


def identify(data: bytes) -> str:
    """Return the identity of a baseline's file."""
    return hashlib.sha256(data).hexdigest()[:12]


def parse(document: dict[str, Any], identity: str = "unsaved") -> Baseline:
    """Parse a baseline from its JSON; its counts and sizes are checked before its maps are decompressed.

    Raises:
        ValueError, KeyError, TypeError: not a baseline.
    """
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, this release reads {FORMAT}")
    stored = document["rows"]
    count = len(stored["weights"])
    if not FEWEST <= count <= MOST:
        raise ValueError(f"{count:,} rows, expected {FEWEST} to {MOST:,}")
    whole = {name: _column(stored[name], name, count, int) for name in ("low", "zero", "predicted", "target")}
    whole["present"] = _column(stored["maps"]["present"], "present", count, int)
    for name in ("low", "zero", "present"):
        if not np.isin(whole[name], (0, 1)).all():
            raise ValueError(f"{name} is neither 0 nor 1 everywhere")
    weights = _column(stored["weights"], "weights", count, float)
    if not ((weights > 0) & (weights <= LARGEST)).all():
        raise ValueError(f"weights are not all above 0 and at most {LARGEST:g}")
    values = np.full((count, len(FIELDS)), np.nan)
    columns = dict(stored["fields"].items())
    for column, name in enumerate(FIELDS):
        if name in columns:
            values[:, column] = _column(columns[name], name, count, float, optional=True)
            if not (np.isnan(values[:, column]) | (np.abs(values[:, column]) <= LARGEST)).all():
                raise ValueError(f"{name} has numbers beyond {LARGEST:g}")
    energy = _maps(stored["maps"], count)
    energy[whole["present"] == 0] = np.nan
    rows = Rows(
        values,
        weights,
        whole["low"].astype(bool),
        whole["zero"].astype(bool),
        whole["predicted"],
        whole["target"],
        energy.astype(np.float32),
    )
    model = document["model"]
    configuration = Configuration(model["sha256"], document["when"], document["method"], document["layer"])
    for text in (*vars(configuration).values(), model.get("name")):
        if not isinstance(text, (str, NoneType)):
            raise ValueError(f"{text!r:.40} in place of a text")
    for time in (document["since"], document["until"]):
        seconds(time)
    return Baseline(
        identity,
        configuration,
        rows,
        {int(index): str(label) for index, label in document["labels"].items()},
        document["since"],
        document["until"],
        int(document["records"]),
        model.get("name"),
    )


def _column(stored: Any, name: str, count: int, kind: type, optional: bool = False) -> np.ndarray:
    """Check a list of numbers, and return it as int64 or float64; with `optional`, NaN for null."""
    if not isinstance(stored, list) or len(stored) != count:
        raise ValueError(f"{name} is not a list of {count:,} numbers, one per row")
    kinds = {int} if kind is int else {int, float}
    if not set(map(type, stored)) <= kinds | ({NoneType} if optional else set()):
        raise ValueError(f"{name} has something else than numbers")
    return np.array([np.nan if value is None else value for value in stored], np.int64 if kind is int else np.float64)


def _maps(stored: Any, count: int) -> np.ndarray:
    """Decompress the maps, as shares that add up to 1, float64 `[count, h, w]`."""
    height, width = stored["shape"]
    if not all(type(side) is int and 1 <= side <= GRID for side in (height, width)):
        raise ValueError(f"maps of shape {stored['shape']!r:.40}, expected at most {GRID} x {GRID}")
    size = count * height * width * 2
    data = inflate(base64.b64decode(stored["uint16"], validate=True), size)
    if len(data) != size:
        raise ValueError(f"maps of {len(data):,} bytes, expected {size:,}")
    energy = np.frombuffer(data, "<u2").reshape(count, height, width).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        energy /= energy.sum((1, 2), keepdims=True)
    return energy


def mean_map(rows: Rows, target: int | None = None) -> np.ndarray | None:
    """Return the weighted mean energy `[h, w]` of one explained class or of all rows; None without a map."""
    mask = rows.mapped
    if target is not None:
        mask = mask & (rows.target == target)
    if not mask.any():
        return None
    weights = rows.weights[mask]
    return np.asarray(np.tensordot(weights / weights.sum(), rows.maps[mask].astype(float), 1))


class _Reservoir:
    """Reservoir sampling: a uniform sample of the records of each configuration, in one pass and bounded memory.

    Records are held as text, a fraction of the size of the parsed ones. The samples of the rarest configurations are
    dropped where there are many, and begun again.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.rng = np.random.default_rng(seed)
        self.counts: Counter[Configuration] = Counter()
        self.rows: dict[Configuration, list[str]] = {}
        self.span: dict[Configuration, tuple[str, str]] = {}

    def add(self, record: Record) -> None:
        configuration = Configuration.of(record)
        self.counts[configuration] += 1
        first, last = self.span.get(configuration, (record["ts"], record["ts"]))
        self.span[configuration] = (min(first, record["ts"]), max(last, record["ts"]))
        if configuration not in self.rows and len(self.rows) == _CONFIGURATIONS:
            del self.rows[min(self.rows, key=self.counts.__getitem__)]
        rows = self.rows.setdefault(configuration, [])
        if len(rows) < self.size:
            rows.append(_compact(record))
        else:
            place = int(self.rng.integers(self.counts[configuration]))
            if place < self.size:
                rows[place] = _compact(record)


def _compact(record: Record) -> str:
    """Return what a baseline needs of a record, its time first."""
    needed = ("ts", "model", "trigger", "prediction", "attention", "map")
    return json.dumps({name: record[name] for name in needed if name in record}, separators=(",", ":"))


def _time(line: str) -> str:
    return line[:40]


def _tabulate(lines: list[str]) -> tuple[Rows, dict[int, str]]:
    """Return the table of the sample and the names of its classes, parsing few records at a time."""
    parts: list[Rows] = []
    labels: dict[int, str] = {}
    grid = next((m.shape for m in (shares_of(json.loads(line).get("map")) for line in lines) if m is not None), (1, 1))
    for begin in range(0, len(lines), _CHUNK):
        records = [json.loads(line) for line in lines[begin : begin + _CHUNK]]
        parts.append(Rows.of(records, grid))
        for index, label in _labels(records).items():
            labels.setdefault(index, label)
    return Rows.join(parts), labels


def _labels(records: Iterable[Record]) -> dict[int, str]:
    labels: dict[int, str] = {}
    for record in records:
        prediction = record.get("prediction") or {}
        for entry in (*(prediction.get("top") or [])[:1], prediction.get("target") or {}):
            if isinstance(entry.get("index"), int) and entry.get("label") is not None:
                labels.setdefault(entry["index"], str(entry["label"]))
    return labels


def _floats(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]
