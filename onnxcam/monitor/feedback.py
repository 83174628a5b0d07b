"""Feedback: the true classes of predictions, as they become known, beside the records; and what it says of the sets.

DIR/feedback/<UTC day>.jsonl    {"schema": 1, "ts": …, "id": of a record or request, "truth": index of the class}

A line is one write, so that no process tears another's; the last one of several about an id counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.documents import DocumentError, parse_json
from onnxcam.errors import InputError, LabelsError, OutputError, TargetError
from onnxcam.monitor import coverage as coverages
from onnxcam.monitor.coverage import Coverage
from onnxcam.monitor.schema import Record
from onnxcam.monitor.segments import open_regular
from onnxcam.monitor.timestamps import timestamp

FOLDER = "feedback"
SCHEMA = 1
MOST = 200_000  # newest lines that are read
_LONGEST = 1024  # bytes of a line
_IDENTITY = 256  # characters
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.jsonl")
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
_CHUNK = 1 << 16


def append(root: Path, pairs: Iterable[tuple[str, int]], now: float) -> int:
    """Append true classes of predictions; returns how many.

    Arguments:
        root: the monitor's folder.
        pairs: of an id, of a record or a request, and the index of the class.
        now: seconds since 1970.

    Raises:
        InputError: an id that is empty or longer than 256 characters, or no index; nothing is written.
        OutputError: the file cannot be written.
    """
    lines = []
    for identity, truth in pairs:
        if not isinstance(identity, str) or not 0 < len(identity) <= _IDENTITY:
            raise InputError(f"an id is {str(identity)[:60]!r}; expected 1 to {_IDENTITY} characters")
        if isinstance(truth, bool) or not isinstance(truth, (int, np.integer)) or not 0 <= truth < 2**31:
            raise InputError(f"the true class of {identity[:60]!r} is {str(truth)[:60]!r}; expected an index from 0")
        line = {"schema": SCHEMA, "ts": timestamp(now), "id": identity, "truth": int(truth)}
        # the line of a process that was killed in the middle ends here
        lines.append(b"\n" + json.dumps(line, separators=(",", ":")).encode() + b"\n")
    path = root / FOLDER / f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, _APPEND, 0o644)
        try:
            for line_bytes in lines:
                if os.write(handle, line_bytes) != len(line_bytes):
                    raise OSError("the disk is full")
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise OutputError(f"{str(path)!r} could not be written ({error.strerror or error})") from error
    return len(lines)


@dataclass
class Truths:
    """True classes by id, in the order in which they became known.

    Attributes:
        by_id: of each id.
        damaged: lines that are not feedback.
        older: lines that were not read, as there are more than `MOST` newer ones.
    """

    by_id: dict[str, int] = field(default_factory=dict)
    damaged: int = 0
    older: int = 0


def read(root: Path) -> Truths:
    """Read the feedback of a monitor's folder; empty where there is none."""
    truths = Truths()
    try:
        names = sorted(entry.name for entry in os.scandir(root / FOLDER) if _DAY.fullmatch(entry.name))
    except OSError:
        return truths
    for name in names:
        for line in _lines(root / FOLDER / name):
            pair = _pair(line)
            if pair is None:
                truths.damaged += 1
                continue
            truths.by_id[pair[0]] = pair[1]
            if len(truths.by_id) > MOST:
                truths.by_id.pop(next(iter(truths.by_id)))
                truths.older += 1
    return truths


def prune(root: Path, age: float, now: float) -> int:
    """Remove the days of feedback that are older than `age` seconds; returns how many."""
    limit = f"{datetime.fromtimestamp(max(0.0, now - age), UTC):%Y-%m-%d}.jsonl"
    removed = 0
    try:
        names = [entry.name for entry in os.scandir(root / FOLDER) if _DAY.fullmatch(entry.name)]
    except OSError:
        return 0
    for name in names:
        if name < limit:
            (root / FOLDER / name).unlink(missing_ok=True)
            removed += 1
    return removed


@dataclass
class Outcomes:
    """Compares feedback with records, which are added in one pass.

    Attributes:
        matched, right: records with feedback, and those whose prediction was right.
        repeated: ids that several records have.
    """

    truths: Truths
    matched: int = 0
    right: int = 0
    repeated: int = 0
    _order: dict[str, int] = field(default_factory=dict)
    _rows: dict[str, tuple[tuple[Any, ...], str, float, bool, str] | None] = field(default_factory=dict)
    _records: Counter[tuple[tuple[Any, ...], str]] = field(default_factory=Counter)
    _samples: dict[tuple[tuple[Any, ...], str], float] = field(default_factory=dict)
    _last: tuple[Any, ...] | None = None
    _unnamed: int = 0

    def __post_init__(self) -> None:
        self._order = {identity: number for number, identity in enumerate(self.truths.by_id)}

    def add(self, record: Record) -> None:
        """Take one record into account."""
        prediction, trigger = record["prediction"], record["trigger"]
        members, sample = prediction.get("set"), trigger.get("sample")
        key: tuple[Any, ...] | None = None
        if members and sample:
            key = (record["model"].get("sha256"), members["alpha"], members["n"])
            self._last = key
            self._records[key, trigger["reason"]] += 1
            self._samples[key, trigger["reason"]] = float(sample)
        identity = next((name for name in (record["id"], record.get("request")) if name in self.truths.by_id), None)
        if identity is None:
            return
        if identity in self._rows:
            self.repeated += self._rows[identity] is not None
            self._rows[identity] = None
            return
        truth = self.truths.by_id[identity]
        top = prediction["top"]
        self.matched += 1
        self.right += bool(top) and top[0]["index"] == truth
        if key is None:
            return
        missed = truth not in members["classes"]
        if missed and prediction.get("set_size", 0) > len(members["classes"]):
            self._unnamed, missed = self._unnamed + 1, False
        self._rows[identity] = (key, trigger["reason"], float(sample), missed, record["id"])

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """Take records into account as they pass."""
        for record in records:
            self.add(record)
            yield record

    def coverage(self, counts: Mapping[str, Any] | None = None) -> tuple[Coverage | None, list[str]]:
        """Test the coverage of the newest calibration's sets; and sentences about what the test cannot tell.

        Records are no fair sample of traffic: uncertain predictions are recorded more often. So each record with
        feedback stays in with a probability that makes all predictions equally likely to be in, drawn from its id.

        Arguments:
            counts: of the monitors, which say whether there were confident predictions.
        """
        notes = self._notes()
        key = self._last
        if key is None:
            return None, notes
        rows = sorted(
            (self._order[identity], row) for identity, row in self._rows.items() if row is not None and row[0] == key
        )
        with_feedback = Counter(row[1] for _, row in rows)
        reasons = [reason for other, reason in self._records if other == key]
        if "baseline" not in reasons and (counts or {}).get("confident"):
            return None, [
                *notes,
                "the coverage cannot be told: only uncertain predictions were recorded, and their sets are no fair "
                "sample; set `baseline_sample` above 0",
            ]
        without = [reason for reason in reasons if not with_feedback[reason]]
        if not rows or without:
            if rows:
                kind = "of the baseline's sample" if "baseline" in without else "that met the condition"
                notes.append(
                    f"the coverage cannot be told: no record {kind} has feedback, and the others' sets are no fair "
                    "sample of traffic; give true classes of both"
                )
            return None, notes
        shares = {
            reason: self._samples[key, reason] * min(1.0, with_feedback[reason] / self._records[key, reason])
            for reason in reasons
        }
        least = min(shares.values())
        missed = [row[3] for _, row in rows if _draw(row[4]) < least / shares[row[1]]]
        left = len(rows) - len(missed)
        if left:
            notes.append(
                f"{left:,} of {len(rows):,} pictures with feedback are left out of the coverage, drawn so that all "
                "predictions are equally likely to be in; with `baseline_sample` nearer to `sample` fewer would be"
            )
        return coverages.check(np.array(missed, bool), float(key[1]), int(key[2])), notes

    def describe(self, coverage: Coverage | None) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "ids": len(self.truths.by_id),
            "matched": self.matched,
            "right": self.right,
            "coverage": None if coverage is None else coverage.describe(),
        }

    def lines(self, coverage: Coverage | None) -> list[str]:
        """The numbers, in words."""
        lines = [
            f"feedback   {len(self.truths.by_id):,} ids, {self.matched:,} with a record, {self.right:,} of them right"
        ]
        return lines if coverage is None else [*lines, f"           {coverage.sentence()}"]

    def _notes(self) -> list[str]:
        notes = []
        if self.truths.damaged:
            notes.append(f"{self.truths.damaged} lines are not feedback and were skipped")
        if self.truths.older:
            notes.append(f"{self.truths.older:,} older lines of feedback were not read: {MOST:,} are")
        if self.repeated:
            notes.append(f"{self.repeated:,} ids are of several records, and were left out: give the records' own ids")
        if self._unnamed:
            notes.append(
                f"{self._unnamed:,} sets have more classes than records name, and count as containing the true one"
            )
        absent = len(self.truths.by_id) - len(self._rows.keys() & self.truths.by_id.keys())
        if absent and self.matched:
            notes.append(f"{absent:,} of {len(self.truths.by_id):,} ids with feedback have no record with a set")
        return notes


def read_table(path: Path, labels: Sequence[str] | None) -> list[tuple[str, int]]:
    """Ids and true classes of a table `id,truth`.

    Arguments:
        labels: class names by index, where the table names classes.

    Raises:
        LabelsError: it cannot be read, or has something else than classes.
    """
    from onnxcam.targets import truth

    pairs = []
    for number, identity, text in truth.rows(path, ("id", "request", "record")):
        index = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else _index_of(text, labels)
        if index is None or (labels is not None and index >= len(labels)):
            hint = f"expected 0 to {len(labels) - 1} or a label" if labels else "write indices, or give --labels"
            raise LabelsError(f"{text[:60]!r} in line {number} of {str(path)!r} is no class; {hint}")
        pairs.append((identity, index))
    return pairs


def _index_of(text: str, labels: Sequence[str] | None) -> int | None:
    from onnxcam.targets.classes import find_label

    if labels is None:
        return None
    try:
        return int(find_label(text, labels))
    except TargetError:
        return None


def _draw(identity: str) -> float:
    """A number from 0 to 1 that depends on an id alone."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, in bounded memory; one that is too long is empty."""
    try:
        file = open_regular(path)
    except OSError:
        return
    if file is None:
        return
    with file:
        rest, skipping = b"", False
        while chunk := file.read(_CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if skipping or len(line) > _LONGEST:
                    skipping = False
                    yield b"?"
                elif line:
                    yield line
            if len(rest) > _LONGEST:
                rest, skipping = b"", True


def _pair(line: bytes) -> tuple[str, int] | None:
    try:
        document: Any = parse_json(line)
    except (DocumentError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return None
    identity, truth = document.get("id"), document.get("truth")
    if not isinstance(identity, str) or not 0 < len(identity) <= _IDENTITY:
        return None
    return (identity, truth) if type(truth) is int and 0 <= truth < 2**31 else None
