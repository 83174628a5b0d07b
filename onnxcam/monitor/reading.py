"""Reads the folders that monitors write, also meanwhile: segments in time order, matching records."""

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
from typing import Any

from onnxcam.errors import InputError, SettingError
from onnxcam.monitor import segments as writing
from onnxcam.monitor.schema import SCHEMA
from onnxcam.monitor.segments import CLOSED, OPEN
from onnxcam.monitor.units import parse_seconds

# a record is of the time of its prediction, a segment's name of the time it was begun: a row may have queued in between
_SLACK = timedelta(days=1)

Record = dict[str, Any]


@dataclass
class Scan:
    """What a pass over a folder met.

    Attributes:
        segments: files read.
        records: whole records of a known schema, whether they matched or not.
        torn: unfinished last lines, of a process that was killed or is just writing.
        damaged: whole lines that are no record.
        newer: records of a schema this release does not know.
    """

    segments: int = 0
    records: int = 0
    torn: int = 0
    damaged: int = 0
    newer: int = 0

    def notes(self) -> list[str]:
        """Sentences about what was left out; an unfinished last line is no news."""
        found = []
        if self.damaged:
            found.append(f"{self.damaged} lines are no records and were left out")
        if self.newer:
            found.append(f"{self.newer} records are of a newer schema than {SCHEMA} and were left out: upgrade onnxcam")
        return found


@dataclass(frozen=True)
class Query:
    """Which records are wanted; what is None does not restrict.

    Attributes:
        since, until: times with a zone, the first inclusive, the second not.
        label: part of the predicted or explained class's name, case ignored.
        index: the predicted or explained class.
        reason: "condition" or "baseline".
        model: the beginning of the model's sha256, or its name.
        request: the request or trace id.
        identity: the beginning of the record's id.
        matches: any further test.
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
            (self.since is None or str(record["ts"]) >= stamp(self.since))
            and (self.until is None or str(record["ts"]) < stamp(self.until))
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
    """The records of a monitor's folder that match, oldest first over all processes that wrote there.

    One segment per process is open at a time, so that memory stays flat however much the folder holds. Segments that
    retention takes away meanwhile are passed over.

    Raises:
        InputError: no folder of a monitor.
    """
    query, scan = query or Query(), Scan() if scan is None else scan
    waiting = sorted(_wanted(segments(folder), query), key=_begun, reverse=True)
    heads: list[tuple[str, int, Record, Iterator[Record]]] = []
    order = 0
    while waiting or heads:
        while waiting and (not heads or _begun(waiting[-1]) <= heads[0][0]):
            order += 1
            _push(heads, order, _lines(waiting.pop(), scan))
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
    """The matching records that are written from now on, without end.

    Raises:
        InputError: no folder of a monitor.
    """
    query = query or Query()
    read: dict[str, int] = {_stem(path): _whole(path) for path in segments(folder)}
    while True:
        for path in segments(folder):
            position = read.get(_stem(path), 0)
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    read[_stem(path)] = position
                    record = _parse(line, Scan())
                    if record is not None and query(record):
                        yield record
        sleep(poll)


def segments(folder: str | Path) -> list[Path]:
    """The segments of a monitor's folder, closed and open, by name.

    Raises:
        InputError: no folder of a monitor.
    """
    root = Path(folder)
    if not (root / writing.FOLDER).is_dir():
        raise InputError(
            f"{str(folder)!r} holds no records (there is no folder {str(root / writing.FOLDER)!r}); name the folder "
            "that is a Monitor's sink"
        )
    # one that was just closed may have been met under both its names: the final one counts
    found = {_stem(path): path for path in (*writing.segments(root, OPEN), *writing.segments(root, CLOSED))}
    return [found[name] for name in sorted(found)]


def moment(text: str, now: datetime | None = None) -> datetime:
    """A time as people write it: `90s`, `15min`, `6h`, `7d`, `2w` (that long ago), or a date or time of ISO 8601.

    A time without a zone is in UTC, as records are.

    Raises:
        InputError: neither.
    """
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            return (now or datetime.now(UTC)) - timedelta(seconds=parse_seconds(text))
        except (SettingError, OverflowError):
            raise InputError(f"{text!r} is no time; write 15min, 6h, 7d, 2026-11-25 or 2026-11-25T14:00:00Z") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def stamp(when: datetime) -> str:
    """A time as records write it, so that times compare as texts do."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def time_of(record: Record) -> datetime:
    """When the prediction was made."""
    return datetime.fromisoformat(record["ts"])


def _wanted(paths: Sequence[Path], query: Query) -> Iterator[Path]:
    """Without the segments that were over before the first time, or begun long after the last."""
    since = None if query.since is None else query.since.timestamp()
    until = None if query.until is None else stamp(query.until + _SLACK)
    for path in paths:
        try:
            over = since is not None and not path.name.endswith(OPEN) and path.stat().st_mtime < since
        except FileNotFoundError:
            over = False  # closed or taken away since it was listed: reading it finds out
        if not over and (until is None or _begun(path) < until):
            yield path


def _begun(path: Path) -> str:
    """The time in a segment's name, as records write times; empty where the name is another's."""
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


def _whole(path: Path) -> int:
    """The length of a segment up to its last whole line."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes().rfind(b"\n") + 1
    return 0


def _text(label: object) -> str:
    return "" if label is None else str(label).casefold()
