"""Promise 8: a full, read-only or stalled disk costs explanations, which are counted, and never a prediction."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from onnxcam.errors import OutputError
from onnxcam.monitor import artefacts
from onnxcam.monitor.folder import Folder
from onnxcam.monitor.hook import Monitor
from tests.monitor import kills, samples
from tests.monitor.monitoring import ALWAYS, SMALL, SMALL_PLAIN, UNLIMITED, balanced

STALL = 10.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes a small file system of its own; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(*options: str, size: str = "1m") -> Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


class Served:
    """A watched session and an unwatched one: every prediction is compared with what it has to be."""

    def __init__(self, sink: Any, **options: Any) -> None:
        settings = UNLIMITED | {"when": ALWAYS, "baseline_sample": 0, "queue": 100_000} | options
        self.monitor = Monitor(SMALL, sink=sink, **settings)
        self.plain = ort.InferenceSession(SMALL_PLAIN)
        self.session = self.monitor.wrap(ort.InferenceSession(SMALL_PLAIN))
        self._random = np.random.default_rng(1234)
        self.slowest = 0.0

    def predict(self, count: int) -> None:
        for _ in range(count):
            batch = self._random.normal(size=(1, 3, 8, 8)).astype(np.float32)
            began = time.perf_counter()
            (actual,) = self.session.run(None, {"input": batch})
            self.slowest = max(self.slowest, time.perf_counter() - began)
            (want,) = self.plain.run(None, {"input": batch})
            assert actual.tobytes() == want.tobytes()


def acknowledged(root: Path) -> int:
    return len(samples.records_in(root)) if (root / "records").exists() else 0


@pytest.mark.slow
def test_a_full_disk(disk: Callable[..., Path]) -> None:
    root = disk() / "cam"
    served = Served(root, sink_options={"min_free": 0, "retain_bytes": None})
    served.predict(600)
    assert served.monitor.flush(60)
    stats = served.monitor.stats()
    assert stats["failures"]["sink"] == stats["failed"] > 100
    assert stats["explained"] > 50
    assert stats["explained"] + stats["failed"] == 600
    assert balanced(stats)
    assert acknowledged(root) == stats["explained"]
    assert samples.faults(root) == []
    # somebody makes room: it goes on by itself
    for path in (root / "files").rglob("*.png"):
        path.unlink()
    served.predict(20)
    assert served.monitor.flush(60)
    assert served.monitor.stats()["explained"] == stats["explained"] + 20
    served.monitor.close(5)


@pytest.mark.slow
def test_a_bound_below_the_disk_never_fills_it(disk: Callable[..., Path]) -> None:
    root = disk(size="2m") / "cam"
    served = Served(root, sink_options={"min_free": 0, "retain_bytes": "512KiB"})
    served.predict(600)
    assert served.monitor.flush(60)
    assert served.monitor.stats()["explained"] == 600
    assert 0 < acknowledged(root) < 600
    assert samples.faults(root) == [] and samples.size(root) <= 512 << 10
    served.monitor.close(5)


@pytest.mark.slow
def test_the_floor_leaves_space_to_others(disk: Callable[..., Path]) -> None:
    root = disk(size="4m") / "cam"
    served = Served(root, sink_options={"min_free": "3MiB", "retain_bytes": None})
    served.predict(600)
    assert served.monitor.flush(60)
    stats = served.monitor.stats()
    assert stats["failed"] > 100 and stats["explained"] > 50
    state = os.statvfs(root)
    assert 3 << 20 <= state.f_bavail * state.f_frsize <= (3 << 20) + (1 << 16)
    served.monitor.close(5)


def test_a_read_only_disk(disk: Callable[..., Path]) -> None:
    root = disk("ro") / "cam"
    served = Served(root, sink_options={"min_free": 0})
    served.predict(50)
    assert served.monitor.flush(60)
    stats = served.monitor.stats()
    assert (stats["failed"], stats["explained"]) == (50, 0)
    subprocess.run(["mount", "-o", "remount,rw", str(root.parent)], check=True)
    served.predict(10)
    assert served.monitor.flush(60)
    assert served.monitor.stats()["explained"] == acknowledged(root) == 10
    served.monitor.close(5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_folder_that_may_not_be_written() -> None:
    """Root may write everywhere, so a child gives its rights away where there are any."""
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        root = Path(base) / "cam"
        root.mkdir()
        root.chmod(0o555)

        def act(acknowledge: Callable[[str], None]) -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            try:
                Folder(root).write(samples.make(), {"heatmap": b"x"})
            except OutputError as error:
                acknowledge(str(error))

        pid, reading = kills.child(act)
        reports = kills.collected(reading)
        os.waitpid(pid, 0)
        root.chmod(0o755)
    assert len(reports) == 1 and "Permission denied" in reports[0] and "writable" in reports[0]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "cam").write_text("in the way")
    served = Served(tmp_path / "cam")
    served.predict(50)
    assert served.monitor.flush(60)
    assert served.monitor.stats()["failed"] == 50
    (tmp_path / "cam").unlink()
    served.predict(10)
    assert served.monitor.flush(60)
    assert served.monitor.stats()["explained"] == acknowledged(tmp_path / "cam") == 10
    served.monitor.close(5)


@pytest.mark.slow
def test_a_disk_that_stalls_for_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(tmp_path / "cam", queue=32)
    served.predict(5)
    assert served.monitor.flush(30)
    real, until = artefacts._write, [0.0]

    def stalled(*arguments: Any) -> None:
        while time.monotonic() < until[0]:
            time.sleep(0.01)
        real(*arguments)

    monkeypatch.setattr(artefacts, "_write", stalled)
    served.slowest = 0.0
    until[0] = time.monotonic() + STALL
    written = 0
    while time.monotonic() < until[0] - 0.5:
        served.predict(10)
        written += 10
    during = served.monitor.stats()
    assert written > 500, "predictions went on"
    assert served.slowest < STALL / 10, "and none of them waited for the disk"
    assert during["running"] == 1 and during["queued"] == 32
    assert during["dropped"]["queue"] == written - 33
    assert balanced(during)
    assert served.monitor.flush(60)
    after = served.monitor.stats()
    assert after["explained"] == 5 + 33 and after["failed"] == 0, "what waited is kept once the disk answers again"
    assert acknowledged(tmp_path / "cam") == 38
    # a stall while the monitor is closed does not hold it
    until[0] = time.monotonic() + STALL
    served.predict(3)
    began = time.monotonic()
    assert served.monitor.close(1) is False
    assert time.monotonic() - began < 1.5
    assert balanced(served.monitor.stats())
