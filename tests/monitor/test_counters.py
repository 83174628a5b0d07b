"""The files of counts: sums stay right while the files of ended processes are merged into one."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxcam.errors import OutputError
from onnxcam.monitor import counters
from onnxcam.monitor.folder import Folder
from tests.monitor import kills, samples

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and locks")


def ended_process(root: Path, counts: dict[str, Any]) -> None:
    """A process that writes its counts and ends."""

    def act(acknowledge: Any) -> None:
        counters.CountersFile(root).write(counts)

    pid, reading = kills.child(act)
    os.close(reading)
    assert os.waitpid(pid, 0)[1] == 0


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "stats").glob("*.json"))


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[counters.CountersFile]:
    file = counters.CountersFile(tmp_path)
    file.write({"seen": 1000, "dropped": {"rate": 100}, "lost": 1})
    yield file
    file.close()


@pytest.mark.slow
@FORKS
def test_a_thousand_processes_leave_one_file(tmp_path: Path, alive: counters.CountersFile) -> None:
    count = 60
    for n in range(count):
        ended_process(tmp_path, {"seen": n + 1, "explained": 1, "dropped": {"rate": 2, "queue": n}, "pid": n})
        assert len(names(tmp_path)) <= 3, "the living one, the latest one and the sums"
    expected = {
        "processes": count + 1,
        "seen": 1000 + count * (count + 1) // 2,
        "explained": count,
        "dropped": {"rate": 100 + 2 * count, "queue": count * (count - 1) // 2},
        "lost": 1,
    }
    assert counters.total(tmp_path) == expected
    assert counters.merge(tmp_path) == 1
    assert counters.total(tmp_path) == expected
    alive.write({"seen": 1001, "dropped": {"rate": 100}, "lost": 1})
    assert counters.total(tmp_path)["seen"] == expected["seen"] + 1, "a living process is not merged"
    assert len(names(tmp_path)) == 2


@pytest.mark.slow
@FORKS
def test_a_death_in_the_middle_of_a_merge_counts_nothing_twice(tmp_path: Path) -> None:
    """After each change to the disk that a merge makes."""
    for operation in range(40):
        root = tmp_path / str(operation)
        for _ in range(3):
            (root / "stats").mkdir(parents=True, exist_ok=True)
            path = root / "stats" / f"host-1-{random.random()}.json"
            path.write_text(json.dumps({"seen": 10, "dropped": {"rate": 3}}))

        def act(acknowledge: Any, root: Path = root, operation: int = operation) -> None:
            kills.dying(operation)
            counters.merge(root)

        pid, reading = kills.child(act)
        os.close(reading)
        status = os.waitpid(pid, 0)[1]
        expected = {"processes": 3, "seen": 30, "dropped": {"rate": 9}}
        assert counters.total(root) == expected
        counters.merge(root)
        assert counters.total(root) == expected
        assert names(root) == ["ended.json"]
        if status == 0:
            assert operation > 5
            return
    raise AssertionError("the merge never ended")


@FORKS
def test_processes_that_merge_at_once_lose_nothing(tmp_path: Path) -> None:
    def act(acknowledge: Any) -> None:
        for n in range(20):
            file = counters.CountersFile(tmp_path)
            file.write({"seen": n + 1})
            file.write({"seen": n + 2})
            file.close()
            if n % 3 == 0:
                acknowledge(str(counters.total(tmp_path)["seen"]))

    children = [kills.child(act) for _ in range(3)]
    for pid, reading in children:
        counts = [int(line) for line in kills.collected(reading)]
        assert counts == sorted(counts), "sums only grow"
        assert os.waitpid(pid, 0)[1] == 0
    assert counters.total(tmp_path) == {"processes": 60, "seen": 3 * sum(range(2, 22))}


def test_a_file_written_again_after_it_was_merged_counts_once(tmp_path: Path) -> None:
    file = counters.CountersFile(tmp_path)
    file.write({"seen": 5})
    file.close()
    file.write({"seen": 6})
    file.close()
    assert counters.merge(tmp_path) == 1
    file.write({"seen": 7})
    assert counters.total(tmp_path) == {"processes": 1, "seen": 6}


@FORKS
def test_a_forked_child_leaves_its_parents_file_locked(tmp_path: Path) -> None:
    sink = Folder(tmp_path, min_free=0)
    sink.write(samples.make(), {})
    sink.note({"seen": 1})

    def act(acknowledge: Any) -> None:
        sink.note({"seen": 4})

    pid, reading = kills.child(act)
    os.close(reading)
    assert os.waitpid(pid, 0)[1] == 0
    assert counters.merge(tmp_path) == 1, "the child's"
    sink.note({"seen": 2})
    assert counters.total(tmp_path) == {"processes": 2, "seen": 6, "lost": 0}
    sink.close(1)
    assert counters.merge(tmp_path) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"3", b"null", b"[]", b'"text"', b"\xff\xfe", bytes(500), b"[" * 10_000 + b"]" * 10_000,
        b'{"seen": NaN}', b'{"seen": 1e999}', b'{"seen": 1' + b"0" * 400 + b"}", b'{"seen":' + b" " * (2 << 20) + b"1}",
        b"[" + b"{}," * 300_000 + b"1]",
    ],
    ids=lambda data: str(data[:12]),
)  # fmt: skip
def test_files_that_are_no_counts_are_skipped_and_told(data: bytes, tmp_path: Path) -> None:
    counters.CountersFile(tmp_path).write({"seen": 5})
    for name in ("x.json", "ended.json"):
        (tmp_path / "stats" / name).write_bytes(data)
    totals = counters.total(tmp_path)
    assert totals == {"processes": 1, "seen": 5, "damaged": 1}
    assert counters.notes(totals) == ["1 files of counters are damaged and were skipped"]


def test_values_that_are_no_counts_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "stats").mkdir()
    odd = {"seen": "many", "explained": True, "failed": -3, "dropped": {"rate": [1], "queue": 2, "\x1b[31m": 5}}
    odd |= {"failures": 7, "processes": 9, "\x1b]0;title\x07": 1, "running": None, "baseline": {"deep": {"er": 1}}}
    (tmp_path / "stats" / "a.json").write_text(json.dumps(odd))
    (tmp_path / "stats" / "b.json").write_text(json.dumps({"seen": 3, "failures": {"sink": 1}, "dropped": 4}))
    assert counters.total(tmp_path) == {
        "processes": 2, "dropped": {"queue": 2}, "failures": {"sink": 1}, "seen": 3
    }  # fmt: skip
    os.mkfifo(tmp_path / "stats" / "pipe.json")
    (tmp_path / "stats" / "folder.json").mkdir()
    assert counters.total(tmp_path)["damaged"] == 2


def test_counts_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "stats").write_text("a file")
    with pytest.raises(OutputError, match="could not be written"):
        counters.CountersFile(tmp_path).write({"seen": 1})
