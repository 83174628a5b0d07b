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
from typing import Any, NamedTuple

import numpy as np

from onnxcam.documents import DocumentError, parse_json
from onnxcam.errors import InputError, LabelsError, OutputError, TargetError
from onnxcam.monitor import counters
from onnxcam.monitor import coverage as coverages
from onnxcam.monitor.coverage import Coverage
from onnxcam.monitor.schema import Record
from onnxcam.monitor.segments import open_regular
from onnxcam.monitor.timestamps import timestamp

FOLDER = "feedback"
SCHEMA = 1
MOST = 200_000  # newest lines that are read
_TOLERANCE = 0.02  # share of traffic that may be missing among records before these are no fair sample
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


class _Calibration(NamedTuple):
    """What sets depend on: sets of one calibration, behind one condition, are tested together."""

    model: str | None
    when: str | None
    alpha: float
    n: int
    never_empty: bool


class _Kind(NamedTuple):
    """Records that are equally likely to be there."""

    reason: str
    sample: float


class _Match(NamedTuple):
    """A record with feedback; without a set `calibration` is None."""

    calibration: _Calibration | None
    kind: _Kind
    record: str
    time: str
    right: bool
    missed: bool
    unnamed: bool


@dataclass
class Outcomes:
    """Compares feedback with records, which are added in one pass."""

    truths: Truths
    _matches: dict[str, _Match] = field(default_factory=dict)
    _bearers: Counter[str] = field(default_factory=Counter)  # records that an id is of
    _records: Counter[tuple[_Calibration, _Kind]] = field(default_factory=Counter)
    _last: _Calibration | None = None

    @property
    def matched(self) -> int:
        """The number of records with feedback."""
        return len(self._pairs())

    @property
    def right(self) -> int:
        """The number of those whose prediction was right."""
        return sum(match.right for match in self._pairs().values())

    @property
    def repeated(self) -> int:
        """The number of ids that several records have: which of them is meant cannot be known."""
        return sum(count > 1 for count in self._bearers.values())

    @property
    def calibrated(self) -> bool:
        """Whether any record has a prediction set."""
        return self._last is not None

    def _pairs(self) -> dict[str, _Match]:
        """The records with feedback, by the id that it was given for."""
        return {identity: match for identity, match in self._matches.items() if self._bearers[identity] == 1}

    def add(self, record: Record) -> None:
        """Take one record into account."""
        prediction, trigger = record["prediction"], record["trigger"]
        if prediction.get("task") is not None:  # true boxes and cells are no class
            return
        members, sample = prediction.get("set"), float(trigger.get("sample") or 0.0)
        kind, calibration = _Kind(trigger["reason"], sample), None
        if members and sample:
            model, never_empty = record["model"].get("sha256"), members.get("empty") == coverages.TOP
            calibration = _Calibration(model, trigger.get("when"), members["alpha"], members["n"], never_empty)
            self._last = calibration
            self._records[calibration, kind] += 1
        names = [name for name in dict.fromkeys((record["id"], record.get("request"))) if name in self.truths.by_id]
        self._bearers.update(names)
        if not names:
            return
        truth, top = self.truths.by_id[names[0]], prediction["top"]
        right = bool(top) and top[0]["index"] == truth
        missed = unnamed = False
        if calibration is not None:
            outside = truth not in members["classes"]
            unnamed = outside and prediction.get("set_size", 0) > len(members["classes"])
            missed = outside and not unnamed
        self._matches[names[0]] = _Match(calibration, kind, record["id"], record["ts"], right, missed, unnamed)

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        """Take records into account as they pass."""
        for record in records:
            self.add(record)
            yield record

    def coverage(self, counts: Mapping[str, Any] | None = None) -> tuple[Coverage | None, list[str]]:
        """Test the coverage of the newest calibration's sets; and sentences about what the test cannot tell.

        Records are no fair sample of traffic: uncertain predictions are recorded more often. So each record with
        feedback stays in with a probability that makes all predictions equally likely to be in, drawn from its id.
        Where that probability is unknown, as limits dropped rows, the coverage is not told.

        Arguments:
            counts: of the monitors, which say whether there were confident predictions, and what limits dropped.
        """
        notes = self._notes()
        calibration, totals = self._last, counts or {}
        if calibration is None:
            return None, notes
        pairs = self._pairs()
        # in the order of predictions: that in which true classes came may be uncertain ones first
        rows = sorted((match for match in pairs.values() if match.calibration == calibration), key=_moment)
        others = sum(match.calibration not in (None, calibration) for match in pairs.values())
        if others:
            notes.append(
                f"{others:,} pictures with feedback are of another model, condition or calibration than the newest "
                "record, and are left out of the coverage"
            )
        kinds = {kind: count for (other, kind), count in self._records.items() if other == calibration}
        with_feedback = Counter(match.kind for match in rows)
        doubt = _doubt(kinds, with_feedback, totals)
        if doubt:
            return None, [*notes, f"the coverage cannot be told: {doubt}"]
        shares = {kind: kind.sample * min(1.0, with_feedback[kind] / kinds[kind]) for kind in with_feedback}
        least = min(shares.values())
        inside = [match for match in rows if _draw(match.record) < least / shares[match.kind]]
        left = len(rows) - len(inside)
        if left:
            notes.append(
                f"{left:,} of {len(rows):,} pictures with feedback are left out of the coverage, drawn so that all "
                "predictions are equally likely to be in; with `baseline_sample` nearer to `sample` fewer would be"
            )
        if not inside:
            return None, [*notes, "the coverage cannot be told: not enough data, as none of these pictures is left"]
        unnamed = sum(match.unnamed for match in inside)
        if unnamed:
            notes.append(f"{unnamed:,} sets have more classes than records name, and count as containing the true one")
        missed = np.array([match.missed for match in inside], bool)
        _, _, alpha, n, never_empty = calibration
        return coverages.check(missed, float(alpha), int(n), at_least=never_empty), notes

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
        absent = len(self.truths.by_id) - len(self._bearers)
        if absent:
            notes.append(f"{absent:,} of {len(self.truths.by_id):,} ids with feedback have no record")
        return notes


def _moment(match: _Match) -> tuple[str, str]:
    return match.time, match.record


def _doubt(kinds: Mapping[_Kind, int], with_feedback: Mapping[_Kind, int], counts: Mapping[str, Any]) -> str | None:
    """Why records with feedback cannot be made a fair sample of traffic; None if they can.

    Arguments:
        kinds: records of each kind.
        with_feedback: those with feedback.
        counts: of the monitors.
    """
    if not any(with_feedback.values()):
        return "not enough data, as no record with a set has feedback"
    dropped = counters.limited(counts)
    if dropped > _TOLERANCE:
        return (
            f"rate, budget or queue dropped {100 * dropped:.1f} % of the rows worth explaining, uncertain ones more "
            f"often than others, so that the records are no fair sample (up to {100 * _TOLERANCE:g} % may be dropped); "
            "raise `rate` and `daily_budget` or lower `sample`, and record into a new folder"
        )
    reasons = {kind.reason for kind in kinds}
    if "baseline" not in reasons and counts.get("confident"):
        return (
            "only uncertain predictions were recorded, and their sets are no fair sample; set `baseline_sample` above 0"
        )
    traffic = sum(count / kind.sample for kind, count in kinds.items())
    without = [kind for kind in kinds if not with_feedback.get(kind)]
    if sum(kinds[kind] / kind.sample for kind in without) <= _TOLERANCE * traffic:
        return None
    kind = max(without, key=lambda kind: kinds[kind] / kind.sample)
    what = "of the baseline's sample" if kind.reason == "baseline" else "that met the condition"
    several = sum(other.reason == kind.reason for other in kinds) > 1
    sampled = f" and was sampled at {kind.sample:g}" if several else ""
    return (
        f"no record {what}{sampled} has feedback, and the others' sets are no fair sample of traffic; give true "
        "classes of both"
    )


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
        index = _index_of(text, labels)
        if index is None or index < 0 or (labels is not None and index >= len(labels)):
            hint = f"expected 0 to {len(labels) - 1} or a label" if labels else "write indices, or give --labels"
            raise LabelsError(f"{text[:60]!r} in line {number} of {str(path)!r} is no class; {hint}")
        pairs.append((identity, index))
    return pairs


def _index_of(text: str, labels: Sequence[str] | None) -> int | None:
    """The class that a text means: a label first, as everywhere, so that labels may be numbers."""
    from onnxcam.targets.classes import by_text, find_label

    try:
        meaning = by_text(text, labels)
        if isinstance(meaning, int):
            return meaning if meaning < 2**31 else None
        return None if labels is None else int(find_label(meaning, labels))
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
