"""Reads the folders of monitors, also while they are written: matching records in order of time."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from onnxcam.errors import InputError, SettingError
from onnxcam.monitor import segments as writing
from onnxcam.monitor.lines import Scan, backwards, forwards, open_segment, parse
from onnxcam.monitor.places import Entry, Places
from onnxcam.monitor.schema import Record
from onnxcam.monitor.segments import CLOSED, OPEN, complete_size
from onnxcam.monitor.timestamps import format_time, seconds, shift
from onnxcam.monitor.units import parse_seconds

__all__ = ["Query", "Scan", "follow", "last", "moment", "newest", "ordered", "records", "segments"]
# a record has the time of its prediction, a segment's name that of its start: the row was queued in between
_SLACK = timedelta(days=1)


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
    for _, _, record in _oldest(folder, query or Query(), Scan() if scan is None else scan):
        yield record


def newest(folder: str | Path, query: Query | None = None, scan: Scan | None = None) -> Iterator[Record]:
    """Yield the matching records of a monitor's folder, the newest first over all processes that wrote there.

    Segments are read from their ends, so that the first records come at once whatever the size of the folder; those
    that are not reached are not read.

    Raises:
        InputError: not a monitor's folder.
    """
    for _, _, record in _newest(folder, query or Query(), Scan() if scan is None else scan):
        yield record


def last(folder: str | Path, count: int, query: Query | None = None, scan: Scan | None = None) -> Iterator[Record]:
    """Yield the newest `count` matching records, the oldest of them first.

    Raises:
        InputError: not a monitor's folder.
    """
    scan = Scan() if scan is None else scan
    places = Places()
    for path, offset, record in islice(_newest(folder, query or Query(), scan), count):
        places.add(path, offset, seconds(record["ts"]))
    # of equal times the one that was met later, reading backwards, is the older one
    yield from places.read(reversed(places.order(descending=True)), scan)


def ordered(
    folder: str | Path,
    key: Callable[[Record], float],
    query: Query | None = None,
    scan: Scan | None = None,
    limit: int | None = None,
) -> Iterator[Record]:
    """Yield the matching records by ascending key, those of equal keys in order of time.

    The keys and places of all matching records are held, 20 bytes each; the records are read again one by one.

    Raises:
        InputError: not a monitor's folder.
    """
    scan = Scan() if scan is None else scan
    places = Places()
    for path, offset, record in _oldest(folder, query or Query(), scan):
        places.add(path, offset, key(record))
    yield from places.read(places.order()[:limit], scan)


def follow(
    folder: str | Path,
    query: Query | None = None,
    scan: Scan | None = None,
    *,
    poll: float = 0.5,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Record]:
    """Yield the matching records that are written from now on, without end, also after the folder was made anew.

    Raises:
        InputError: not a monitor's folder.
    """
    query, scan = query or Query(), Scan() if scan is None else scan
    positions: dict[str, int] = {_stem(path): _readable_size(path) for path in segments(folder)}
    while True:
        try:
            paths = segments(folder)
        except InputError:  # removed; a monitor makes it anew
            paths = []
        positions = {stem: positions[stem] for stem in map(_stem, paths) if stem in positions}
        for path in paths:
            # an incomplete last line is read again when it is complete
            for offset, line in _lines(path, Scan(), positions.get(_stem(path), 0)):
                positions[_stem(path)] = offset + len(line)
                record = parse(line, scan)
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
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError:
        raise InputError(f"{text!r} is not a time in the years 1 to 9999 in UTC; write it with Z") from None


def _in_span(paths: Sequence[Path], query: Query) -> Iterator[Path]:
    """Skip the segments that ended before the query's first time, or started long after its last."""
    since = None if query.since is None else query.since.timestamp()
    until = None if query.until is None else format_time(shift(query.until, _SLACK))
    for path in paths:
        try:
            ended = since is not None and not path.name.endswith(OPEN) and path.stat().st_mtime < since
        except OSError:
            ended = False  # closed or removed since it was listed, or not to be read: reading it will show
        if not ended and (until is None or _start(path) < until):
            yield path


def _start(path: Path) -> str:
    """Return the time in a segment's name, formatted as in records; empty if there is none."""
    match = re.match(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\.(\d+)Z", path.name)
    return "" if match is None else "{}-{}-{}T{}:{}:{}.{}Z".format(*match.groups())


def _oldest(folder: str | Path, query: Query, scan: Scan) -> Iterator[Entry]:
    """Yield the matching records with their places, the oldest first."""
    unread = sorted(_in_span(segments(folder), query), key=_start, reverse=True)
    heads: list[tuple[str, int, Entry, Iterator[Entry]]] = []
    order = 0
    while unread or heads:
        while unread and (not heads or _start(unread[-1]) <= heads[0][0]):
            order += 1
            _push(heads, order, _entries(unread.pop(), scan))
        if heads:
            _, number, entry, rest = heapq.heappop(heads)
            _push(heads, number, rest)
            if query(entry[2]):
                yield entry


def _push(heads: list[tuple[str, int, Entry, Iterator[Entry]]], order: int, rest: Iterator[Entry]) -> None:
    entry = next(rest, None)
    if entry is not None:
        heapq.heappush(heads, (entry[2]["ts"], order, entry, rest))


def _newest(folder: str | Path, query: Query, scan: Scan) -> Iterator[Entry]:
    """Yield the matching records with their places, the newest first."""
    ends = []
    for path in _in_span(segments(folder), query):
        # only the time of the last record: buffers of all segments would take memory
        peek = Scan()
        entry = next(_entries(path, peek, ascending=False), None)
        scan.irregular += peek.irregular
        scan.unreadable += peek.unreadable
        if entry is not None:
            ends.append((entry[2]["ts"], path))
    ends.sort()
    heads: list[tuple[float, int, Entry, Iterator[Entry]]] = []
    order = 0

    def push(number: int, rest: Iterator[Entry]) -> None:
        entry = next(rest, None)
        if entry is not None:
            heapq.heappush(heads, (-seconds(entry[2]["ts"]), number, entry, rest))

    # records of a segment are nearly in order of time: each was queued for a while
    oldest = None if query.since is None else -(query.since.timestamp() - _SLACK.total_seconds())
    while ends or heads:
        while ends and (not heads or -seconds(ends[-1][0]) <= heads[0][0]):
            order += 1
            push(order, _entries(ends.pop()[1], scan, ascending=False))
        if heads:
            when, number, entry, rest = heapq.heappop(heads)
            if oldest is not None and when > oldest:
                return
            push(number, rest)
            if query(entry[2]):
                yield entry


def _entries(path: Path, scan: Scan, ascending: bool = True) -> Iterator[Entry]:
    """Yield the records of a segment with their places."""
    for number, (offset, line) in enumerate(_lines(path, scan, 0 if ascending else None)):
        scan.segments += number == 0
        record = parse(line, scan)
        if record is not None:
            yield path, offset, record


def _lines(path: Path, scan: Scan, begin: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a segment from an offset on, or backwards from its end, each with its offset."""
    file = open_segment(path, scan)
    if file is None:
        return
    with file:
        if begin is None:
            yield from backwards(file, scan)
            return
        if begin <= os.fstat(file.fileno()).st_size:  # else others have truncated it: it is read anew
            file.seek(begin)
        yield from forwards(file, scan)


def _stem(path: Path) -> str:
    return path.name.removesuffix(OPEN).removesuffix(CLOSED)


def _readable_size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return complete_size(path)
    return 0


def _text(label: object) -> str:
    return "" if label is None else str(label).casefold()
