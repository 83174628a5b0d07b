"""Promise 30: signals, rotation, clock jumps, a full disk: no prediction changes, nothing hangs, books balance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.monitor import samples, soak_schedule
from tests.monitor.soak_files import Files
from tests.monitor.soak_schedule import Event, schedule

ROOT = Path(__file__).parent.parent.parent
SERVERS = pytest.mark.skipif(not hasattr(os, "fork"), reason="servers are sent POSIX signals")


@pytest.mark.slow
@SERVERS
@pytest.mark.parametrize(
    ("seconds", "servers", "threads"), [(4, 2, 8), pytest.param(600, 4, 8, marks=pytest.mark.soak)]
)
def test_servers_under_everything_at_once(tmp_path: Path, seconds: int, servers: int, threads: int) -> None:
    numbers = {"seconds": seconds, "servers": servers, "threads": threads}
    options = [f"--{name}={number}" for name, number in numbers.items()]
    command = [sys.executable, "-m", "tests.monitor.soak", *options, f"--keep={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 600, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    summary: dict[str, Any] = json.loads(done.stdout)
    assert summary["faults"] == []
    assert (summary["hangs"], summary["rows"]["changed"]) == (0, 0)
    # that it happened at all; how much depends on the machine
    rows, happened = summary["rows"], summary["done"]
    assert rows["explained"] > 2 * servers and rows["predictions"] > 100 * servers and rows["raised"] > servers
    assert summary["lives"] > servers, "servers were ended and began again"
    assert {"look", "predict", "close"} <= {kind for kind, count in happened.items() if count}
    assert sum(happened[kind] for kind in soak_schedule.FOLDERS) > 1


def test_the_schedule_follows_from_the_seed() -> None:
    events = schedule(7, 10.0, 3)
    assert events == schedule(7, 10.0, 3) != schedule(8, 10.0, 3)
    assert events == sorted(events, key=lambda event: event.at) and all(0 <= event.at < 10 for event in events)
    assert {(e.server, e.kind) for e in events} == {(n, kind) for n in range(3) for kind in soak_schedule.SERVERS} | {
        (None, kind) for kind in soak_schedule.FOLDERS
    }
    assert isinstance(events[0], Event)


@pytest.mark.parametrize("kind", sorted(set(soak_schedule.FOLDERS) - {"full", "in the way"}))
def test_the_audit_tells_destroyed_from_lost(tmp_path: Path, kind: str) -> None:
    """A writer that notices nothing goes on in the file it has; what it wrote afterwards is lost and found out."""
    root, archive = tmp_path / "cam", tmp_path / "archive"
    for folder in (root / "records", archive):
        folder.mkdir(parents=True)
    files = Files(root, archive)
    before, after = samples.make(), samples.make()
    with (root / "records" / "1.jsonl.open").open("a") as segment:
        segment.write(json.dumps(before) + "\n")
        segment.flush()
        assert files.disturb(kind, 0.5)
        segment.write(json.dumps(after) + "\n")
    written = files.identities()
    assert before["id"] in written | files.destroyed
    removed = kind in {"remove", "remove records", "unlink a segment"}
    assert files.after_removal() == removed
    # behind half a line a record is lost as well
    assert (after["id"] in written) == (not removed and kind != "cut a segment")
    assert after["id"] not in files.destroyed
