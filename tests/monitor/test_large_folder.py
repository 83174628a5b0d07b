"""Reading many records takes bounded memory, and the newest come first at once."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from onnxcam.monitor import reading, retention
from onnxcam.monitor.report import Report
from tests.monitor import large, synthetic

MIB = 1 << 20
# bytes a record: its key and place, and an order of them
SORTED = 45


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, Path]]:
    """A folder, and one of four times as many records."""
    paths = []
    for count in (200, 800):
        root = tmp_path_factory.mktemp("large") / str(count)
        large.folder(root, count)
        paths.append((count, root))
    return paths


def consume(records: Any) -> int:
    return sum(1 for _ in records)


def peak(call: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


READERS: dict[str, tuple[Callable[[Path], Any], float]] = {
    "records": (lambda root: consume(reading.records(root)), 0),
    "newest": (lambda root: consume(reading.newest(root)), 0),
    "last": (lambda root: consume(reading.last(root, 10**9)), SORTED),
    "ordered": (lambda root: consume(reading.ordered(root, lambda r: -r["prediction"]["confidence"])), SORTED),
    "report": (lambda root: Report.of(reading.records(root)), 30),
    "retention": (lambda root: retention.Retention(root, retention.Limits()).enforce(0), 0),
    "sweep": (retention.remove_unreferenced, 10),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", READERS)
def test_memory_does_not_grow_with_the_records(name: str, folders: list[tuple[int, Path]]) -> None:
    """From 200 to 800 records, which would be 6 MB: 1 MB at most, and the bytes a record that the reader says."""
    (few, small), (many, big) = folders
    read, each = READERS[name]
    read(small)
    grown = peak(lambda: read(big)) - peak(lambda: read(small))
    assert grown < MIB + each * (many - few)


def test_order_and_contents_from_both_ends(folders: list[tuple[int, Path]]) -> None:
    count, root = folders[0]
    ahead = [record["id"] for record in reading.records(root)]
    assert ahead == [f"{n:012d}" for n in range(count)]
    assert [record["id"] for record in reading.newest(root)] == ahead[::-1]
    assert [record["id"] for record in reading.last(root, 7)] == ahead[-7:]
    confidence = [record["prediction"]["confidence"] for record in reading.records(root)]
    expected = [ahead[n] for n in sorted(range(count), key=lambda n: (confidence[n], n))]
    for limit in (None, 5):
        ordered = reading.ordered(root, lambda record: record["prediction"]["confidence"], limit=limit)
        assert [record["id"] for record in ordered] == expected[:limit]


def test_the_newest_are_read_from_the_ends(folders: list[tuple[int, Path]]) -> None:
    scan = reading.Scan()
    newest = [record["id"] for record in islice(reading.newest(folders[1][1], scan=scan), 3)]
    assert newest == ["000000000799", "000000000798", "000000000797"]
    assert scan.records < 20, "of 800"


def test_records_that_are_removed_while_they_are_sorted(tmp_path: Path) -> None:
    for pid in (7, 8):
        synthetic.write(tmp_path, [synthetic.record(n) for n in range(pid, 40, 2)], pid=pid)
    scan = reading.Scan()
    ordered = reading.ordered(tmp_path, lambda record: -record["prediction"]["confidence"], scan=scan)
    first = next(ordered)
    segment = reading.segments(tmp_path)[0]
    ids = {record["id"] for record in reading.records(tmp_path)}
    segment.unlink()
    left = {record["id"] for record in ordered} | {first["id"]}
    # a file that was opened before is read to its end
    assert len(left) + scan.removed == len(ids)


SAMPLE = ("help", "tail -n 3", "stats", "query --sort confidence")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("count", "names"),
    [pytest.param(3000, SAMPLE, marks=pytest.mark.slow), pytest.param(10**6, None, marks=pytest.mark.soak)],
)
def test_every_command_in_128_mib(count: int, names: tuple[str, ...] | None, tmp_path: Path) -> None:
    large.folder(tmp_path / "cam", count)
    results = large.every_command(tmp_path / "cam", tmp_path, count, names)
    for name, result in results.items():
        assert result["MiB"] <= 128, name
    start = results["help"]["first"]
    for name in {"tail -n 3", "query --sort newest --limit 1"} & results.keys():
        assert results[name]["last"] == f"{count - 1:012d}"
        # on a noisy machine; starting the program is not reading
        assert count < 10**6 or results[name]["first"] - start <= 1, name
    assert results["query --sort confidence"]["lines"] == count
