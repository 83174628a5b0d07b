"""Promises 6 and 7: what was acknowledged is there, and every record's files are, however the writer ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxcam.errors import OutputError
from onnxcam.monitor.segments import recover, segments
from onnxcam.monitor.sinks import open_sink
from tests.monitor import kills, samples

ROOT = Path(__file__).parent.parent.parent
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forked and killed by SIGKILL")


def measured(*arguments: str) -> dict[str, Any]:
    """`python -m tests.monitor.kills …` in a process of its own, whose memory is not this one's."""
    command = [sys.executable, "-m", "tests.monitor.kills", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.slow
@FORKS
@pytest.mark.parametrize("kills", [40, pytest.param(200, marks=pytest.mark.soak)])
def test_random_kills_lose_and_tear_nothing(kills: int) -> None:
    counts = measured("random", str(kills))
    assert counts["kills"] == kills
    assert counts["acknowledged"] >= kills, "every writer lived to acknowledge a record"
    for fault in ("lost", "lost_by_mending", "twice", "invalid", "files", "open"):
        assert counts[fault] == [], fault
    assert counts["partial"] == 0


@pytest.mark.slow
@FORKS
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.soak)])
def test_death_at_every_step_leaves_no_record_without_its_files(every: int) -> None:
    counts = measured("steps", str(every))
    done = counts["changes"]
    assert {"write", "replace", "unlink", "open"} <= done.keys(), "segments were begun, filled, closed and removed"
    steps = sum(done.values()) + done["write"]
    assert counts["deaths"] == -(-steps // every)
    faults = ("lost", "faults", "unsealed", "unnamed", "partial")
    assert {name: counts[name] for name in faults} == dict.fromkeys(faults, 0)


# ---- errors instead of deaths


def failing(monkeypatch: pytest.MonkeyPatch, at: int, count: int, half: bool) -> list[str]:
    """The `at`-th change to the disk and `count - 1` more fail; a write may get half of its bytes out first."""
    calls: list[str] = []

    def around(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return call(*arguments, **keywords)
            calls.append(name)
            if at <= len(calls) - 1 < at + count:
                if half and name == "write":
                    return call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise OSError(28, "No space left on device")
            return None if name in ("fsync", "fdatasync") else call(*arguments, **keywords)

        return wrapped

    for name in kills.CHANGES:
        monkeypatch.setattr(os, name, around(getattr(os, name), name))
    return calls


def survive(root: Path, monkeypatch: pytest.MonkeyPatch, at: int, count: int, half: bool) -> list[str]:
    """Write with failures, and check what is left; returns the changes made."""
    written, refused = [], []
    with monkeypatch.context() as patch:
        calls = failing(patch, at, count, half)
        sink = kills.small(root)
        for k in range(5):
            record = samples.make(request=str(k))
            try:
                sink.write(record, kills.files(k))
            except OutputError as error:
                assert "No space left" in str(error) or "bytes fitted" in str(error), "the reason is told"
                assert str(root) in str(error)
                refused.append(record["id"])
            else:
                written.append(record["id"])
        sink.close(1)
    there = [record["id"] for record in samples.records_in(root)] if (root / "records").exists() else []
    assert set(written[-3:]) <= set(there), "what was acknowledged is there"
    if count == 1:
        assert not set(refused) & set(there), "what was refused is not"
        assert len(refused) <= 1
        if refused and not calls[at].startswith(("unlink", "rmdir")):
            named = (
                {entry["name"] for record in samples.records_in(root) for entry in record["files"]} if there else set()
            )
            stored = {path.relative_to(root).as_posix() for path in (root / "files").rglob("*") if path.is_file()}
            assert stored == named, "and neither are its pictures"
    assert len(there) == len(set(there))
    if there:
        assert samples.faults(root) == []
        recover(root)
        assert samples.faults(root) == []
        assert [record["id"] for record in samples.records_in(root)] == there
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4, 1000])
def test_an_error_at_every_step_costs_one_record_and_tears_none(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = survive(tmp_path / "none", monkeypatch, -1, 0, False)
    assert names.count("write") > 8
    for at in range(0, len(names), 1 if count == 1 else 3):
        for half in (False, True) if names[at] == "write" else (False,):
            survive(tmp_path / f"{at}-{half}", monkeypatch, at, count, half)


def test_a_half_line_that_cannot_be_taken_back_ends_its_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = open_sink(tmp_path, min_free=0)
    first, second, third = (samples.make(request=str(k)) for k in range(3))
    sink.write(first, kills.files(0))
    (path,) = segments(tmp_path)
    real = os.write

    def half(handle: int, data: Any) -> int:
        if os.path.samestat(os.fstat(handle), path.stat()):
            return real(handle, bytes(data)[:100])
        return real(handle, data)

    def stuck(handle: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", stuck)
        with pytest.raises(OutputError, match="bytes fitted"):
            sink.write(second, kills.files(1))
    assert not path.read_bytes().endswith(b"\n")
    sink.write(third, kills.files(2))
    sink.close(1)
    assert [record["id"] for record in samples.records_in(tmp_path)] == [first["id"], third["id"]]
    recover(tmp_path)
    assert all(one.read_bytes().endswith(b"\n") and one.suffix == ".jsonl" for one in segments(tmp_path))
    assert [record["id"] for record in samples.records_in(tmp_path)] == [first["id"], third["id"]]
    assert samples.faults(tmp_path) == []
