"""Copies of closed segments: whole, in the right order, resumed after failures."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from onnxcam.errors import DependencyError
from onnxcam.monitor import locks
from onnxcam.monitor.folder import Folder
from onnxcam.monitor.sinks import open_sink
from onnxcam.monitor.upload import Uploader
from tests.monitor import samples


def write(sink: Any, count: int) -> None:
    for _ in range(count):
        sink.write(samples.make(), {"heatmap": os.urandom(3000)})


def stored(root: Path) -> dict[str, bytes]:
    """Closed segments and pictures of a folder."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.suffix in (".jsonl", ".png")
    }


def test_closing_brings_everything_there(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    sink = open_sink("memory://bucket/closing", spool=tmp_path, segment_bytes=10_000)
    write(sink, 7)
    sink.close(30)
    value = stored(tmp_path)
    copied = {name.removeprefix("/bucket/closing/"): memory.cat(name) for name in memory.find("/bucket/closing")}
    assert copied == value and len(value) > 8


def test_segments_go_while_others_are_written(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    sink = Folder(tmp_path / "cam", segment_bytes=10_000, upload=f"local://{copy}")
    write(sink, 4)
    end = time.monotonic() + 30
    while not list(copy.rglob("*.jsonl")):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert not list(copy.rglob("*.open")), "an open segment stays at home"
    assert samples.faults(copy) == []
    sink.close(30)
    assert stored(copy) == stored(tmp_path / "cam")


class Fragile(LocalFileSystem):
    """A file system that fails after so many calls, and keeps what it was asked."""

    protocol = "fragile"
    cachable = False
    left = 0
    puts: list[str] = []  # noqa: RUF012

    def put_file(self, lpath: str, rpath: str, **keywords: Any) -> None:
        if Fragile.left <= 0:
            raise ConnectionError("the network is down")
        Fragile.left -= 1
        Fragile.puts.append(rpath)
        super().put_file(lpath, rpath, **keywords)


def test_after_every_failure_the_copy_names_only_what_it_has(tmp_path: Path) -> None:
    fsspec.register_implementation("fragile", Fragile, clobber=True)
    root, copy = tmp_path / "cam", tmp_path / "copy"
    sink = Folder(root, segment_bytes=14_000)
    write(sink, 6)
    sink.close(1)
    uploader = Uploader(root, f"fragile://{copy}")
    for attempt in range(40):
        Fragile.left = 1 + attempt // 4
        try:
            uploader.copy()
        except ConnectionError:
            if (copy / "records").exists():
                assert samples.faults(copy) == []
                for path in (copy / "records").glob("*.jsonl"):
                    assert path.read_bytes() == (root / "records" / path.name).read_bytes()
        else:
            break
    assert attempt > 3, "it did fail"
    assert stored(copy) == stored(root)
    Fragile.left, Fragile.puts[:] = 99, []
    assert uploader.copy() == [] and Fragile.puts == [], "nothing is copied twice"


def test_a_failing_copy_is_told_once_and_does_not_disturb_writing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fsspec.register_implementation("fragile", Fragile, clobber=True)
    Fragile.left = 0
    sink = Folder(tmp_path / "cam", segment_bytes=10_000, upload=f"fragile://{tmp_path / 'copy'}")
    with caplog.at_level(logging.WARNING, logger="onnxcam.monitor"):
        write(sink, 12)
        began = time.monotonic()
        sink.close(2)
    assert time.monotonic() - began < 4
    assert len(samples.records_in(tmp_path / "cam")) == 12
    assert len([one for one in caplog.records if "cannot be copied" in one.getMessage()]) in (1, 2)
    Fragile.left = 10_000
    assert len(Uploader(tmp_path / "cam", f"fragile://{tmp_path / 'copy'}").copy()) > 3
    assert stored(tmp_path / "copy") == stored(tmp_path / "cam")


def test_one_process_copies_at_a_time(tmp_path: Path) -> None:
    sink = Folder(tmp_path / "cam")
    write(sink, 1)
    sink.close(1)
    uploader = Uploader(tmp_path / "cam", f"local://{tmp_path / 'copy'}")
    if locks.AVAILABLE:
        with locks.exclusive(tmp_path / "cam" / ".uploading") as handle:
            assert handle is not None
            assert uploader.copy() == []
    assert len(uploader.copy()) == 1


def test_a_segment_that_retention_took_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Folder(tmp_path / "cam", segment_bytes=10_000)
    write(sink, 6)
    sink.close(1)
    first = min((tmp_path / "cam" / "records").iterdir())
    uploader = Uploader(tmp_path / "cam", f"local://{tmp_path / 'copy'}")
    real = uploader._upload

    def send(local: Path, remote: str) -> None:
        if first.exists():
            for entry in samples.lines(first)[0]["files"]:
                (tmp_path / "cam" / entry["name"]).unlink()
            first.unlink()
        real(local, remote)

    monkeypatch.setattr(uploader, "_upload", send)
    assert first.name not in uploader.copy()
    assert {path.name for path in (tmp_path / "copy" / "records").iterdir()} == {
        path.name for path in (tmp_path / "cam" / "records").iterdir()
    }


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DependencyError, match="nosuch"):
        Folder(tmp_path, upload="nosuch://bucket/x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(DependencyError, match=r"onnxcam\[upload\]"):
        Folder(tmp_path, upload="memory://x")


def test_the_copy_reads_like_the_folder(tmp_path: Path) -> None:
    sink = Folder(tmp_path / "cam", upload=f"local://{tmp_path / 'copy'}")
    write(sink, 3)
    sink.close(30)
    (path,) = (tmp_path / "copy" / "records").iterdir()
    assert [json.loads(line)["redact"] for line in path.read_text("utf-8").splitlines()] == ["heatmap_only"] * 3
