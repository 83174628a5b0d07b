"""A clock that is wrong for a while: nothing is removed before its time, and segments still close."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from onnxcam.monitor import retention
from onnxcam.monitor.folder import Folder
from onnxcam.monitor.retention import remove_unreferenced
from onnxcam.monitor.segments import Writer, segments
from onnxcam.monitor.timestamps import CautiousClock
from tests.monitor import samples

HOUR, DAY = 3600.0, 86400.0
MOMENT = 1_795_615_620.0


class Clocks:
    """A wall clock that may be wrong, and a monotonic one."""

    def __init__(self) -> None:
        self.passed, self.wrong = 0.0, 0.0

    def wall(self) -> float:
        return MOMENT + self.passed + self.wrong

    def monotonic(self) -> float:
        return 1000.0 + self.passed


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """The system's clocks, set by hand."""
    clocks = Clocks()
    monkeypatch.setattr(time, "time", clocks.wall)
    monkeypatch.setattr(time, "monotonic", clocks.monotonic)
    return clocks


def test_a_jump_ahead_is_believed_after_a_day(clocks: Clocks) -> None:
    clock = CautiousClock(clocks.wall, clocks.monotonic)
    clocks.passed += 10 * HOUR
    assert clock() == clocks.wall()
    clocks.wrong = 400 * DAY
    for _ in range(23):
        assert clock() == MOMENT + clocks.passed
        clocks.passed += HOUR
    clocks.passed += HOUR
    assert clock() == clocks.wall(), "what lasts is right: this machine began in 1970"


@pytest.mark.parametrize("wrong", [-400 * DAY, -HOUR, 0.0, HOUR / 2])
def test_a_clock_that_is_behind_or_drifts_is_believed(clocks: Clocks, wrong: float) -> None:
    clock = CautiousClock(clocks.wall, clocks.monotonic)
    clocks.wrong = wrong
    assert clock() == clocks.wall()


def test_a_clock_ahead_again_and_again_is_never_believed(clocks: Clocks) -> None:
    clock = CautiousClock(clocks.wall, clocks.monotonic)
    for _ in range(100):
        clocks.wrong = 400 * DAY
        assert clock() == MOMENT + clocks.passed
        clocks.passed += 20 * HOUR
        clocks.wrong = 0.0
        assert clock() == clocks.wall()
        clocks.passed += HOUR


def test_a_clock_set_by_hand_is_its_own_measure(clocks: Clocks) -> None:
    clock = CautiousClock(clocks.wall)
    clocks.wrong = 400 * DAY
    assert clock() == clocks.wall()


def test_retention_outlives_a_clock_that_was_ahead(tmp_path: Path, clocks: Clocks) -> None:
    """One record every hour for three days; for one hour of them the clock is a year ahead."""
    sink = Folder(tmp_path, retain_age="30d", segment_age="30min", min_free=0, sync=False, clock=time.time)
    identities = []
    for hour in range(72):
        clocks.wrong = 365 * DAY if hour == 40 else 0.0
        record = samples.make(observed=clocks.wall())
        sink.write(record, {})
        identities.append(record["id"])
        clocks.passed += HOUR
    sink.close(1)
    assert {record["id"] for record in samples.records_in(tmp_path)} == set(identities)
    # what is older than 30 days still goes
    clocks.passed += 31 * DAY
    sink = Folder(tmp_path, retain_age="30d", min_free=0, sync=False, clock=time.time)
    sink.write(record := samples.make(observed=clocks.wall()), {})
    sink.close(1)
    assert {one["id"] for one in samples.records_in(tmp_path)} == {identities[40], record["id"]}


def test_a_segment_closes_though_the_clock_went_back(tmp_path: Path, clocks: Clocks) -> None:
    writer = Writer(tmp_path, seconds=600.0, sync=False, clock=clocks.wall)
    writer.append(b"{}\n", 3)
    clocks.wrong = -365 * DAY
    writer.tick()
    assert writer.path is None and [path.suffix for path in segments(tmp_path)] == [".jsonl"]


def test_a_picture_whose_record_is_written_during_a_search_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the process that searches is ahead, so that the picture of a moment ago looks old."""
    sink = Folder(tmp_path, min_free=0, sync=False)
    sink.write(samples.make(), {"heatmap": b"x"})
    real: Any = retention._files

    def searched(root: Path) -> Any:
        sink.write(samples.make(), {"heatmap": b"y"})
        for path in (root / "files").rglob("*.png"):
            os.utime(path, (0, 0))
        return real(root)

    monkeypatch.setattr(retention, "_files", searched)
    (tmp_path / ".swept").unlink(missing_ok=True)
    left = tmp_path / "files" / "20261125" / "14" / "01890000-0000-7000-8000-000000000000-heatmap.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"nobody's")
    assert remove_unreferenced(tmp_path) == 1 and not left.exists()
    assert samples.faults(tmp_path) == [] and len(samples.records_in(tmp_path)) == 2
