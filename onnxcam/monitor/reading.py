"""Reads the folders of monitors, also while they are written: matching records in order of time."""

from __future__ import annotations

import contextlib
import heapq
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from onnxcam.errors import InputError, SettingError
from onnxcam.monitor import segments as writing
from onnxcam.monitor.schema import SCHEMA, Record
from onnxcam.monitor.segments import CLOSED, OPEN, complete_size
from onnxcam.monitor.timestamps import format_time
from onnxcam.monitor.units import parse_seconds

# a record has the time of its prediction, a segment's name that of its start: the row was queued in between
_SLACK = timedelta(days=1)


@dataclass
class Scan:
    """Counts of a pass over a folder.

    Attributes:
        segments: files read.
        records: complete records of a supported schema, matching or not.
        torn: incomplete last lines, of a process that was killed or is writing.
        damaged: complete lines that are not records.
        newer: records of a schema that this release does not support.
    """

    segments: int = 0
    records: int = 0
    torn: int = 0
    damaged: int = 0
    newer: int = 0

    def notes(self) -> list[str]:
        """Return sentences about what was skipped; an incomplete last line is normal."""
        notes = []
        if self.damaged:
            notes.append(f"{self.damaged} lines are not records and were skipped")
        if self.newer:
            notes.append(f"{self.newer} records are of a newer schema than {SCHEMA} and were skipped: upgrade onnxcam")
        return notes


@dataclass(frozen=True)
class Query:
    """Selects records; a field that is None does not restrict.

    Attributes:
        since, until: times with a time zone, the first inclusive, the second exclusive.
        label: part of the predicted or explained class's name, ignoring case.
        index: the predicted or explained class.
        reason: "condition" or "baseline".
        model: the beginning of the model's sha256, or its name.
        request: the request or trace id.
        identity: the beginning of the record's id.
        matches: any further predicate.
    """

    since: datetime | None = None
    until: datetime | None = None
    label: str | None = None
    index: int | None = None
    reason: str | None = None
    model: str | None = None
    request: str | None = None
    identity: str | None = None
    matches: Callable[[Record], bool] | None = None

    def __call__(self, record: Record) -> bool:
        prediction, model = record.get("prediction") or {}, record.get("model") or {}
        classes = [prediction.get("target") or {}, *(prediction.get("top") or [])[:1]]
        return (
            (self.since is None or str(record["ts"]) >= format_time(self.since))
            and (self.until is None or str(record["ts"]) < format_time(self.until))
            and (self.label is None or any(self.label.casefold() in _text(c.get("label")) for c in classes))
            and (self.index is None or any(c.get("index") == self.index for c in classes))
            and (self.reason is None or (record.get("trigger") or {}).get("reason") == self.reason)
            and (
                self.model is None
                or str(model.get("sha256") or "").startswith(self.model)
                or model.get("name") == self.model
            )
            and (self.request is None or self.request in (record.get("request"), record.get("trace")))
            and (self.identity is None or str(record.get("id")).startswith(self.identity))
            and (self.matches is None or self.matches(record))
        )


def records(folder: str | Path, query: Query | None = None, scan: Scan | None = None) -> Iterator[Record]:
    """Yield the matching records of a monitor's folder, the oldest first over all processes that wrote there.

    One segment per process is open at a time, so that memory is bounded whatever the size of the folder. Segments that
    retention removes meanwhile are skipped.

    Raises:
        InputError: not a monitor's folder.
    """
    query, scan = query or Query(), Scan() if scan is None else scan
    unread = sorted(_in_span(segments(folder), query), key=_start, reverse=True)
    heads: list[tuple[str, int, Record, Iterator[Record]]] = []
    order = 0
    while unread or heads:
        while unread and (not heads or _start(unread[-1]) <= heads[0][0]):
            order += 1
            _push(heads, order, _lines(unread.pop(), scan))
        if heads:
            _, number, record, rest = heapq.heappop(heads)
            _push(heads, number, rest)
            if query(record):
                yield record


def follow(
    folder: str | Path,
    query: Query | None = None,
    *,
    poll: float = 0.5,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Record]:
    """Yield the matching records that are written from now on, without end.

    Raises:
        InputError: not a monitor's folder.
    """
    query = query or Query()
    positions: dict[str, int] = {_stem(path): _readable_size(path) for path in segments(folder)}
    while True:
        for path in segments(folder):
            position = positions.get(_stem(path), 0)
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    positions[_stem(path)] = position
                    record = _parse(line, Scan())
                    if record is not None and query(record):
                        yield record
        sleep(poll)


def segments(folder: str | Path) -> list[Path]:
    """Return the segments of a monitor's folder, closed and open, sorted by name.

    Raises:
        InputError: not a monitor's folder.
    """
    root = Path(folder)
    if not (root / writing.FOLDER).is_dir():
        raise InputError(
            f"{str(folder)!r} contains no records (there is no folder {str(root / writing.FOLDER)!r}); name the folder "
            "that is a Monitor's sink"
        )
    # a segment that has just been closed may be listed under both names: the final one counts
    by_stem = {_stem(path): path for path in (*writing.segments(root, OPEN), *writing.segments(root, CLOSED))}
    return [by_stem[stem] for stem in sorted(by_stem)]


def moment(text: str, now: datetime | None = None) -> datetime:
    """Parse a time: `90s`, `15min`, `6h`, `7d`, `2w` (that long ago), or an ISO 8601 date or time.

    A time without a time zone is in UTC, as records are.

    Raises:
        InputError: neither.
    """
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            return (now or datetime.now(UTC)) - timedelta(seconds=parse_seconds(text))
        except (SettingError, OverflowError):
            raise InputError(
                f"{text!r} is not a time; write 15min, 6h, 7d, 2026-11-25 or 2026-11-25T14:00:00Z"
            ) from None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _in_span(paths: Sequence[Path], query: Query) -> Iterator[Path]:
    """Skip the segments that ended before the query's first time, or started long after its last."""
    since = None if query.since is None else query.since.timestamp()
    until = None if query.until is None else format_time(query.until + _SLACK)
    for path in paths:
        try:
            ended = since is not None and not path.name.endswith(OPEN) and path.stat().st_mtime < since
        except FileNotFoundError:
            ended = False  # closed or removed since it was listed: reading it will show
        if not ended and (until is None or _start(path) < until):
            yield path


def _start(path: Path) -> str:
    """Return the time in a segment's name, formatted as in records; empty if there is none."""
    match = re.match(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\.(\d+)Z", path.name)
    return "" if match is None else "{}-{}-{}T{}:{}:{}.{}Z".format(*match.groups())


def _push(heads: list[tuple[str, int, Record, Iterator[Record]]], order: int, rest: Iterator[Record]) -> None:
    record = next(rest, None)
    if record is not None:
        heapq.heappush(heads, (record["ts"], order, record, rest))


def _lines(path: Path, scan: Scan) -> Iterator[Record]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        closed = path.with_name(_stem(path) + CLOSED)
        if not path.name.endswith(OPEN) or not closed.exists():
            return
        file = closed.open("rb")
    scan.segments += 1
    with file:
        for line in file:
            if not line.endswith(b"\n"):
                scan.torn += 1
                return
            record = _parse(line, scan)
            if record is not None:
                scan.records += 1
                yield record


def _parse(line: bytes, scan: Scan) -> Record | None:
    try:
        record = json.loads(line)
        schema = record["schema"]
        if isinstance(schema, int) and schema > SCHEMA:
            scan.newer += 1
            return None
        if isinstance(record["ts"], str) and isinstance(record["id"], str) and schema == SCHEMA:
            return dict(record)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    scan.damaged += 1
    return None


def _stem(path: Path) -> str:
    return path.name.removesuffix(OPEN).removesuffix(CLOSED)


def _readable_size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return complete_size(path)
    return 0


def _text(label: object) -> str:
    return "" if label is None else str(label).casefold()
