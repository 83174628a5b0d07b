"""Folders of records, also damaged and while they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from onnxcam.errors import InputError
from onnxcam.monitor import counters, reading
from onnxcam.monitor.folder import Folder
from onnxcam.monitor.reading import Query, Scan
from onnxcam.monitor.retention import inspect_segment
from onnxcam.monitor.schema import problems
from onnxcam.monitor.segments import parse_name
from onnxcam.monitor.timestamps import format_time
from tests.monitor import synthetic


def test_what_the_tests_read_is_what_the_sink_writes(tmp_path: Path) -> None:
    record = synthetic.record(1)
    assert [p for p in problems(record) if ".id is" not in p] == []
    folder = Folder(tmp_path, min_free=0)
    folder.write(record, {})
    folder.close(1)
    assert list(reading.records(tmp_path)) == [record]


def test_segments_of_several_processes_come_in_time_order(tmp_path: Path) -> None:
    for pid in (7, 8, 9):
        synthetic.write(tmp_path, [synthetic.record(n) for n in range(pid, 300, 3)], pid=pid, open_=pid == 9)
    synthetic.write(tmp_path, [synthetic.record(n) for n in range(300, 320)], pid=7)
    scan = Scan()
    ids = [int(record["id"]) for record in reading.records(tmp_path, scan=scan)]
    assert ids == list(range(7, 320))
    assert (scan.segments, scan.records, scan.torn, scan.damaged) == (4, 313, 0, 0)


def test_torn_tails_and_damaged_lines_cost_themselves_only(tmp_path: Path) -> None:
    whole = json.dumps(synthetic.record(3)).encode()
    synthetic.write(tmp_path, [synthetic.record(0)], pid=7, open_=True, tail=whole[:200])
    middle = b'{"schema": 1, "ts"\n\xff\xfe\n[]\n3\n' + json.dumps({"schema": 2}).encode() + b"\n" + whole + b"\n"
    synthetic.write(tmp_path, [synthetic.record(1)], pid=8, tail=middle)
    scan = Scan()
    assert [int(r["id"]) for r in reading.records(tmp_path, scan=scan)] == [0, 1, 3]
    assert (scan.torn, scan.damaged, scan.newer) == (1, 4, 1)
    assert len(scan.notes()) == 2


def test_a_segment_closed_or_removed_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closing = synthetic.write(tmp_path, [synthetic.record(0)], pid=7, open_=True)
    removed = synthetic.write(tmp_path, [synthetic.record(1)], pid=8)
    listed = reading.segments(tmp_path)
    closing.rename(closing.with_name(closing.name.removesuffix(".open")))
    removed.unlink()
    monkeypatch.setattr(reading, "segments", lambda folder: listed)
    since = Query(since=synthetic.START - timedelta(days=1))
    assert [int(r["id"]) for r in reading.records(tmp_path, since)] == [0]


@pytest.mark.parametrize("read", [reading.records, reading.newest])
def test_a_file_takes_the_folders_place_while_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any
) -> None:
    for pid in (7, 8):
        synthetic.write(tmp_path, [synthetic.record(pid)], pid=pid)
    listed = reading.segments(tmp_path)
    (tmp_path / "records").rename(tmp_path / "moved")
    (tmp_path / "records").touch()
    monkeypatch.setattr(reading, "segments", lambda folder: listed)
    scan = Scan()
    assert list(read(tmp_path, Query(since=synthetic.START - timedelta(days=1)), scan)) == []
    assert scan.notes() == []


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
@pytest.mark.parametrize("read", [reading.records, reading.newest])
def test_a_segment_that_cannot_be_opened_costs_itself_only(tmp_path: Path, read: Any) -> None:
    path = synthetic.write(tmp_path, [synthetic.record(1)], pid=7)
    loop = path.with_name(path.name.replace("-7-", "-8-"))
    loop.symlink_to(loop.name)
    scan = Scan()
    assert [int(r["id"]) for r in read(tmp_path, Query(since=synthetic.START - timedelta(days=1)), scan)] == [1]
    assert scan.unreadable == 1 and "1 segments cannot be read" in scan.notes()[0]

    def sleep(seconds: float) -> None:
        synthetic.write(tmp_path, [synthetic.record(2)], pid=9, open_=True)

    assert int(next(reading.follow(tmp_path, sleep=sleep))["id"]) == 2


def test_a_folder_that_is_no_sink(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name the folder that is a Monitor's sink"):
        list(reading.records(tmp_path))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(since=synthetic.START + timedelta(minutes=3)), {3, 4, 5}),
        (Query(until=synthetic.START + timedelta(minutes=2)), {0, 1}),
        (Query(label="BEAG"), {1, 4}),
        (Query(index=2), {2}),
        (Query(reason="baseline"), {5}),
        (Query(model="cd"), {3}),
        (Query(model="tiny"), {0, 1, 2, 3, 4, 5}),
        (Query(request="r-4"), {4}),
        (Query(identity="000000000002"), {2}),
        (Query(matches=lambda record: record["prediction"]["confidence"] > 0.85), {5}),
    ],
)
def test_queries(tmp_path: Path, query: Query, expected: set[int]) -> None:
    records = [
        synthetic.record(n, index=index, confidence=0.9 if n == 5 else 0.3)
        for n, index in enumerate((0, 1, 2, 0, 1, 0))
    ]
    records[3]["model"]["sha256"] = "cd" * 32
    records[4]["trace"] = "r-4"
    synthetic.write(tmp_path, records)
    assert {int(record["id"]) for record in reading.records(tmp_path, query)} == expected


def test_old_segments_are_not_opened(tmp_path: Path) -> None:
    import os

    old = synthetic.write(tmp_path, [synthetic.record(0)], pid=7)
    long_ago = (synthetic.START - timedelta(days=9)).timestamp()
    os.utime(old, (long_ago, long_ago))
    synthetic.write(tmp_path, [synthetic.record(1)], pid=8)
    synthetic.write(tmp_path, [synthetic.record(9999)], pid=9)
    scan = Scan()
    until = synthetic.START + timedelta(hours=1)
    records = list(reading.records(tmp_path, Query(since=synthetic.START, until=until), scan))
    assert [int(r["id"]) for r in records] == [1]
    assert scan.segments == 1


def test_following_across_writes_tears_and_closing(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path, [synthetic.record(0)], open_=True)
    lines = [json.dumps(synthetic.record(n)).encode() + b"\n" for n in range(1, 5)]

    def append(data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    def close() -> None:
        path.rename(path.with_name(path.name.removesuffix(".open")))
        synthetic.write(tmp_path, [synthetic.record(5)], pid=8)

    steps = iter(
        [lambda: append(lines[0] + lines[1][:50]), lambda: append(lines[1][50:]), lambda: append(lines[2]), close]
    )

    def sleep(seconds: float) -> None:
        next(steps)()

    stream: Iterator[reading.Record] = reading.follow(tmp_path, sleep=sleep)
    assert [int(next(stream)["id"]) for _ in range(4)] == [1, 2, 3, 5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", "2026-11-25T11:58:30"),
        ("15min", "2026-11-25T11:45:00"),
        ("6h", "2026-11-25T06:00:00"),
        ("2w", "2026-11-11T12:00:00"),
        ("2026-11-02", "2026-11-02T00:00:00"),
        ("2026-11-02T08:00:00+02:00", "2026-11-02T06:00:00"),
        ("2026-11-02T08:00:00Z", "2026-11-02T08:00:00"),
    ],
)
def test_times_as_people_write_them(text: str, expected: str) -> None:
    now = datetime(2026, 11, 25, 12, tzinfo=UTC)
    assert reading.moment(text, now) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "7 parsecs", "1e999d", "-3h"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is not a time"):
        reading.moment(text)


def test_counters_of_processes_add_up(tmp_path: Path) -> None:
    one, two = counters.CountersFile(tmp_path), counters.CountersFile(tmp_path)
    one.write({"seen": 1, "pid": 3, "dropped": {"rate": 1}})
    one.write({"seen": 10, "pid": 3, "dropped": {"rate": 4}, "explained": 6})
    two.write({"seen": 5, "pid": 4, "dropped": {"rate": 1, "queue": 1}})
    (tmp_path / "stats" / "broken.json").write_text("{")
    totals = counters.total(tmp_path)
    assert totals == {"processes": 2, "seen": 15, "dropped": {"rate": 5, "queue": 1}, "explained": 6, "damaged": 1}
    assert counters.limited(totals) == 0.5
    assert "50 %" in counters.notes(totals)[0]
    assert counters.prune(tmp_path, 3600) == 0
    assert counters.prune(tmp_path, -1) == 3
    assert counters.total(tmp_path) == {"processes": 0}


def test_times_at_the_ends_of_the_calendar(tmp_path: Path) -> None:
    """Of records, of queries and of segments' names: read, in order, and no error."""
    ends = ("0001-01-01T00:00:00.000000Z", "0999-06-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z")
    synthetic.write(tmp_path, [synthetic.record(n, ts=ts) for n, ts in enumerate(ends)], pid=7)
    synthetic.write(tmp_path, [synthetic.record(3)], pid=8)
    first, last = reading.moment("0001-01-01"), reading.moment("9999-12-31T23:59:59.999999")
    for query in (Query(), Query(since=first), Query(until=last), Query(first, last)):
        expected = {"0", "1", "3"} | ({"2"} if query.until is None else set())
        assert {record["id"].lstrip("0") or "0" for record in reading.records(tmp_path, query)} == expected
    assert [int(record["id"]) for record in reading.newest(tmp_path)] == [2, 3, 1, 0]
    since = Query(since=datetime(500, 1, 1, tzinfo=UTC))
    assert {int(record["id"]) for record in reading.records(tmp_path, since)} == {1, 2, 3}
    inside = tmp_path / "records"
    (inside / "99999999T999999.999999Z-a-7-1.jsonl").write_bytes(b"")
    assert parse_name("99999999T999999.999999Z-a-7-1.jsonl") is None
    assert len(list(reading.records(tmp_path))) == 4
    assert inspect_segment(next(inside.glob("0001*"))).newest == pytest.approx(253402300800)  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["0001-01-01T00:00+14:00", "9999-12-31T23:59-12:00"])
def test_times_outside_of_the_calendar(text: str) -> None:
    with pytest.raises(InputError, match="is not a time in the years 1 to 9999"):
        reading.moment(text)


@pytest.mark.parametrize("time", [datetime(1, 1, 1), datetime(999, 12, 31, 1, 2, 3), datetime(9999, 12, 31, 23, 59)])
def test_times_are_of_one_width(time: datetime) -> None:
    text = format_time(time.replace(tzinfo=UTC))
    assert len(text) == 27 and datetime.fromisoformat(text) == time.replace(tzinfo=UTC)
