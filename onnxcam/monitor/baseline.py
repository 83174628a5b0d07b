"""Baselines: a sample of normal records in one file, with which windows and single records are compared.

Baselines of parts of a period merge into that of the whole: their samples are bottom-k sketches.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from onnxcam.documents import DocumentError, parse_json
from onnxcam.errors import InputError, SettingError
from onnxcam.files import FileError, read_bytes
from onnxcam.monitor.baseline_rows import StoredRows, check_numbers, column, energy_of, labels_of
from onnxcam.monitor.normal import Baseline
from onnxcam.monitor.schema import Record
from onnxcam.monitor.sketch import LARGEST_KEY, Part, Sketch, key_of, union
from onnxcam.monitor.table import FIELDS, Configuration, Rows
from onnxcam.monitor.timestamps import seconds

T = TypeVar("T")
FORMAT = 1
FEWEST = 500  # records: with fewer, drift statistics say more about chance than about the model
ROWS = 4000  # records in the file
SEED = 1234
MOST = 20000  # rows that a file may have
_FILE = 16 << 20  # bytes of a file
_MEMORY = 60 << 20  # bytes that its JSON may take
_CONFIGURATIONS = 8  # of which samples are drawn at a time


def distances(baseline: Baseline, record: Record) -> dict[str, Any]:
    """Return `baseline.distances(record)`."""
    return baseline.distances(record)


def check(baseline: Baseline, configuration: Configuration) -> None:
    """Check that a baseline can be compared with records of a configuration.

    Raises:
        SettingError: it is of another model, condition, method or layer.
    """
    differ = _differences(baseline.configuration, configuration)
    if differ:
        raise SettingError(
            f"the baseline is not of what this monitor records: it has {'; '.join(differ)} (the sha256 of its file "
            "identifies a model); make one from this monitor's own records with `onnxcam monitor baseline DIR -o FILE`"
        )


def _differences(ours: Configuration, theirs: Configuration) -> list[str]:
    """What differs between two configurations, one clause each."""
    pairs = ((one.name, getattr(ours, one.name), getattr(theirs, one.name)) for one in fields(Configuration))
    return [f"{name} {one!r} instead of {other!r}" for name, one, other in pairs if one != other]


class Candidate(NamedTuple):
    """A record that may be drawn, before it is made.

    Attributes:
        configuration: of the record.
        moment: its time.
        place: among the rows of the baseline, as microseconds since 1970; those of one place are in order of keys.
        identity: decides with the seed whether it is drawn.
        record: makes it.
    """

    configuration: Configuration
    moment: str
    place: int
    identity: str
    record: Callable[[], Record]

    @classmethod
    def of(cls, record: Record) -> Candidate:
        """The candidate of a record that is there already."""
        place = round(seconds(record["ts"]) * 1e6)
        return cls(Configuration.of(record), record["ts"], place, str(record.get("id")), lambda: record)


def build(
    records: Iterable[Record | Candidate], *, rows: int = ROWS, seed: int = SEED, fewest: int = FEWEST
) -> tuple[dict[str, Any], list[str]]:
    """Build a baseline as JSON, and sentences about what was skipped.

    The sample is a bottom-k sketch by the records' ids, so that baselines of the parts of a period `merge` into the one
    of the whole period.

    Arguments:
        records: of a normal period. Only those of the most frequent model, condition, method and layer are used.
        rows: how many records are stored, drawn at random.
        seed: fixes the draw.
        fewest: records that are needed; with less than 500 it is of use for merging alone.

    Raises:
        InputError: fewer records of one kind.
    """
    samples = _Samples(rows, seed)
    for record in records:
        samples.add(record if isinstance(record, Candidate) else Candidate.of(record))
    if not samples.counts:
        raise InputError(f"there are no records here; a baseline needs {fewest}")
    configuration, count = samples.counts.most_common(1)[0]
    if count < fewest:
        raise InputError(
            f"there are {count} records of one model, condition, method and layer; a baseline needs {fewest}: "
            "take a longer time, or raise the monitor's baseline_sample"
        )
    others = samples.counts.total() - count
    notes = [f"{others} records of another model, condition, method or layer were skipped"] if others else []
    if configuration in samples.restarted:
        notes.append(
            f"records of more than {_CONFIGURATIONS} models, conditions, methods and layers lie here: the sample lacks "
            "the first records of its own; give --since"
        )
    values = samples.sketches[configuration].values
    keys = sorted(values)
    lines = [values[key].line for key in keys]
    times = np.array([values[key].place for key in keys], np.int64)
    stored = StoredRows.of(lines, np.array(keys, np.uint64), times)
    first, last = samples.span[configuration]
    head = _Head(
        (json.loads(lines[0]).get("model") or {}).get("name"), configuration, count, first, last, labels_of(lines)
    )
    return _document(head, stored, rows, seed), notes + _unmapped(stored)


def merge(
    documents: Sequence[dict[str, Any]], *, rows: int | None = None, fewest: int = FEWEST
) -> tuple[dict[str, Any], list[str]]:
    """Merge baselines of parts of a period, in any order, into the one that `build` makes of the whole period.

    Arguments:
        documents: as `build` returns or `read` reads them.
        rows: how many records are stored at most; by default the largest number of the parts.
        fewest: as of `build`.

    Returns:
        the baseline as JSON, and sentences about what is doubtful.

    Raises:
        InputError: too few records, a part without the keys of its sample, parts with different seeds, or of different
            models, conditions, methods or layers.
    """
    parts = [_Merged.of(document) for document in documents]
    _check_alike(parts)
    size = max(part.size for part in parts) if rows is None else rows
    places, repeated = union([Part(part.stored.keys, part.size) for part in parts], size)
    stored = StoredRows.join([part.stored for part in parts]).take(places)
    if len(stored) < fewest:
        raise InputError(
            f"there are {len(stored)} records in these {len(parts)} baselines; a baseline needs {fewest}: add more"
        )
    # of each class the label of its smallest key, as `build` has it
    ordered = sorted(parts, key=lambda part: int(part.stored.keys.min(initial=LARGEST_KEY)))
    labels: dict[int, str] = {}
    present = set(np.concatenate(list(stored.classes.values())).tolist())
    for index in sorted(present):
        named = [part for part in ordered if index in part.head.labels]
        if named:
            labels[index] = min(named, key=lambda part: part.first_key(index)).head.labels[index]
    head = _Head(
        ordered[0].head.name,
        ordered[0].head.configuration,
        sum(part.head.records for part in parts),
        min(part.head.since for part in parts),
        max(part.head.until for part in parts),
        labels,
    )
    notes = _unmapped(stored)
    if repeated:
        notes.append(f"{repeated} sampled records are in several of the baselines: their parts overlap")
    return _document(head, stored, size, parts[0].seed), notes


class _Head(NamedTuple):
    """What a baseline says beside its rows."""

    name: str | None
    configuration: Configuration
    records: int
    since: str
    until: str
    labels: dict[int, str]


class _Merged(NamedTuple):
    """A baseline that is to be merged."""

    head: _Head
    stored: StoredRows
    size: int
    seed: int

    @classmethod
    def of(cls, document: dict[str, Any]) -> _Merged:
        if "sample" not in document:
            raise InputError(
                f"a baseline of {document['since']} to {document['until']} was made by an older release, without the "
                "keys that merging needs; make it again with `onnxcam monitor baseline DIR -o FILE`"
            )
        baseline = parse(document, fewest=0)
        sample = document["sample"]
        stored = StoredRows.from_json(document["rows"], sample)
        for name in ("rows", "seed"):
            if type(sample[name]) is not int or sample[name] < 0:
                raise ValueError(f"{name} of the sample is {sample[name]!r:.40}, expected a whole number")
        if len(stored) > sample["rows"] or sample["rows"] > MOST:
            raise ValueError(f"{len(stored):,} rows of a sample of {sample['rows']:,}")
        head = _Head(
            baseline.name,
            baseline.configuration,
            baseline.records,
            baseline.since,
            baseline.until,
            baseline.labels,
        )
        return cls(head, stored, sample["rows"], sample["seed"])

    def first_key(self, index: int) -> int:
        """The smallest key of a row of a class."""
        rows = np.logical_or.reduce([values == index for values in self.stored.classes.values()])
        return int(self.stored.keys[rows].min(initial=LARGEST_KEY))


def _check_alike(parts: Sequence[_Merged]) -> None:
    """Refuse parts that are not samples of one kind of record.

    Raises:
        InputError: the message says what differs.
    """
    first = parts[0]
    for part in parts[1:]:
        differ = _differences(first.head.configuration, part.head.configuration)
        if first.seed != part.seed:
            differ.append(f"seed {first.seed} instead of {part.seed}")
        if differ:
            raise InputError(
                f"baselines of different records cannot be merged: one has {'; '.join(differ)}; merge those of one "
                "model, condition, method, layer and --seed"
            )


def _document(head: _Head, stored: StoredRows, size: int, seed: int) -> dict[str, Any]:
    rows, sample = stored.in_order().to_json()
    return {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": head.name, "sha256": head.configuration.model},
        "when": head.configuration.when,
        "method": head.configuration.method,
        "layer": head.configuration.layer,
        "records": head.records,
        "since": head.since,
        "until": head.until,
        "labels": {str(index): label for index, label in sorted(head.labels.items())},
        "rows": rows,
        "sample": {"seed": seed, "rows": size, **sample},
    }


def _unmapped(stored: StoredRows) -> list[str]:
    shape = stored.shape
    present = stored.maps[shape][1] if shape in stored.maps else np.zeros(len(stored), bool)
    count = int((~present & ~stored.flags["zero"]).sum())
    return [f"{count} records have no map of the shape {list(shape)}"] if count else []


def load(path: str | Path) -> Baseline:
    """Load a baseline from a file that `onnxcam monitor baseline` wrote.

    Raises:
        InputError: no such file, or not a baseline.
    """

    def parsed(data: bytes) -> Baseline:
        return parse(parse_json(data, memory=_MEMORY), identify(data))

    return _read(path, parsed)


def read(path: str | Path) -> tuple[dict[str, Any], str]:
    """Read a baseline that is to be merged as JSON, and its identity; it may have fewer than 500 records.

    Raises:
        InputError: no such file, not a baseline, or one without the keys of its sample.
    """

    def checked(data: bytes) -> tuple[dict[str, Any], str]:
        document = parse_json(data, memory=_MEMORY)
        _Merged.of(document)
        return document, identify(data)

    return _read(path, checked)


def _read(path: str | Path, parsed: Callable[[bytes], T]) -> T:
    """Parse a baseline's file; every error becomes an InputError that names it."""
    try:
        return parsed(read_bytes(path, _FILE))
    except FileError as error:
        raise InputError(f"the baseline {str(path)!r} {error}") from error
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from error
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


def parse(document: dict[str, Any], identity: str = "unsaved", *, fewest: int = FEWEST) -> Baseline:
    """Parse a baseline from its JSON; its counts and sizes are checked before its maps are decompressed.

    Raises:
        ValueError, KeyError, TypeError: not a baseline.
    """
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']!r}, this release reads {FORMAT}")
    stored = document["rows"]
    count = len(stored["weights"])
    if not fewest <= count <= MOST:
        raise ValueError(f"{count:,} rows, expected {fewest} to {MOST:,}")
    whole = {name: column(stored[name], name, count, int) for name in ("low", "zero", "predicted", "target")}
    whole["present"] = column(stored["maps"]["present"], "present", count, int)
    for name in ("low", "zero", "present"):
        if not np.isin(whole[name], (0, 1)).all():
            raise ValueError(f"{name} is neither 0 nor 1 everywhere")
    weights = column(stored["weights"], "weights", count, float)
    values = np.full((count, len(FIELDS)), np.nan)
    columns = dict(stored["fields"].items())
    for place, name in enumerate(FIELDS):
        if name in columns:
            values[:, place] = column(columns[name], name, count, float, optional=True)
    check_numbers(weights, values)
    energy = energy_of(stored["maps"], count)
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


class _Sampled(NamedTuple):
    """A record of a sample, as text: a fraction of the size of the parsed one."""

    line: str
    place: int


class _Samples:
    """Sketches of the records of each configuration, in one pass and bounded memory.

    The sketches of the rarest configurations are dropped where there are many, and begun again.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.counts: Counter[Configuration] = Counter()
        self.sketches: dict[Configuration, Sketch[_Sampled]] = {}
        self.span: dict[Configuration, tuple[str, str]] = {}
        self.restarted: set[Configuration] = set()

    def add(self, candidate: Candidate) -> None:
        configuration, moment = candidate.configuration, candidate.moment
        self.counts[configuration] += 1
        first, last = self.span.get(configuration, (moment, moment))
        self.span[configuration] = (min(first, moment), max(last, moment))
        if configuration not in self.sketches:
            if self.counts[configuration] > 1:
                self.restarted.add(configuration)
            if len(self.sketches) == _CONFIGURATIONS:
                del self.sketches[min(self.sketches, key=self.counts.__getitem__)]
            self.sketches[configuration] = Sketch(self.size)
        key = key_of(candidate.identity, self.seed)
        self.sketches[configuration].add(key, lambda: _Sampled(_compact(candidate.record()), candidate.place))


def _compact(record: Record) -> str:
    """Return what a baseline needs of a record."""
    needed = ("model", "trigger", "prediction", "attention", "map")
    return json.dumps({name: record[name] for name in needed if name in record}, separators=(",", ":"))
