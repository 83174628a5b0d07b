"""What a user may name as a sink, and what each does with a record."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from onnxcam.errors import OutputError, SettingError
from onnxcam.monitor.sinks import Sink, open_sink
from onnxcam.monitor.units import parse_bytes, parse_seconds
from tests.monitor import samples

FILES = {"heatmap": b"h", "overlay": b"o", "input": b"i"}


class Keeping:
    """A sink of the user's own."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.files: list[dict[str, bytes]] = []
        self.closed: float | None = None

    def write(self, record: dict[str, Any], files: dict[str, bytes]) -> None:
        self.records.append(record)
        self.files.append(dict(files))

    def close(self, timeout: float) -> None:
        self.closed = timeout


@pytest.mark.parametrize("form", ["path", "text", "file url", "short url", "escaped"])
def test_a_folder_by_any_name(form: str, tmp_path: Path) -> None:
    folder = tmp_path / ("a b" if form == "escaped" else "cam")
    spec: Any = {
        "path": folder,
        "text": str(folder),
        "file url": f"file://{folder}",
        "short url": f"file:{folder}",
        "escaped": f"file://{tmp_path}/a%20b",
    }[form]
    sink = open_sink(spec, retain_bytes="10MiB")
    assert isinstance(sink, Sink)
    sink.write(samples.make(), FILES)
    sink.close(1)
    assert len(samples.records_in(folder)) == 1
    assert [path.name.rpartition("-")[2] for path in folder.rglob("*.png")] == ["heatmap.png"]


def test_a_relative_folder_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = open_sink("cam")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sink.write(samples.make(), {})
    sink.close(1)
    assert len(samples.records_in(tmp_path / "cam")) == 1


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("", {}, "sink=''"),
        ([], {}, "at least one"),
        (None, {}, "NoneType"),
        (7, {}, "expected a folder"),
        ("file://server/share", {}, "three slashes"),
        ("s3://bucket/cam", {}, "spool="),
        ("stdout:", {"retain_bytes": 1}, "options of a folder"),
        ("/tmp/never-made", {"retain_byte": 1}, "retain_byte"),
    ],
)
def test_what_is_no_sink_is_refused_in_a_sentence(spec: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        open_sink(spec, **options)


def test_a_function_gets_the_record_and_the_files() -> None:
    calls: list[Any] = []
    sink = open_sink(lambda record, files: calls.append((record["id"], dict(files))))
    record = samples.make(redact="none")
    sink.write(record, FILES)
    sink.close(1)
    assert calls == [(record["id"], FILES)]


@pytest.mark.parametrize(("redact", "rest"), [("none", 3), ("heatmap_only", 1), ("hash", 0)])
def test_no_sink_sees_more_than_redaction_allows(redact: str, rest: int, tmp_path: Path) -> None:
    keeping, called = Keeping(), []
    sink = open_sink([tmp_path, keeping, lambda record, files: called.append(dict(files))])
    sink.write(samples.make(redact=redact), FILES)
    sink.close(1)
    assert [len(files) for files in (*keeping.files, *called)] == [rest, rest]
    assert len(list(tmp_path.rglob("*.png"))) == rest


def test_several_sinks_all_get_the_record_though_one_fails(tmp_path: Path) -> None:
    keeping = Keeping()

    def broken(record: Any, files: Any) -> None:
        raise ValueError("pixels: [1, 2, 3]")

    sink = open_sink([broken, tmp_path / "cam", keeping])
    with pytest.raises(OutputError, match="ValueError") as caught:
        sink.write(samples.make(), FILES)
    assert "pixels" not in str(caught.value), "whatever a sink's error says may show the picture"
    sink.close(3)
    assert len(keeping.records) == 1 and len(samples.records_in(tmp_path / "cam")) == 1
    assert keeping.closed is not None and keeping.closed <= 3
    assert keeping.records[0]["files"][0]["kind"] == "heatmap", "names given by a folder are seen by those after it"


def test_what_a_sink_changes_is_its_own(tmp_path: Path) -> None:
    first, last, whole = Keeping(), Keeping(), samples.make()

    def spoil(record: dict[str, Any], files: dict[str, bytes]) -> None:
        record["prediction"]["confidence"] = "spoiled"
        record["map"]["values"].clear()
        record["files"].append("spoiled")
        del record["id"]
        files.clear()

    before = json.dumps(whole)
    sink = open_sink([first, spoil, tmp_path / "cam", spoil, last])
    sink.write(whole, FILES)
    sink.close(1)
    assert json.dumps(whole) == before
    (stored,) = samples.records_in(tmp_path / "cam")
    assert first.records == [json.loads(before)] and first.files == last.files
    assert last.records == [stored] and stored["files"], "with the names that the folder gave"
    assert {**stored, "files": []} == json.loads(before)


def test_lines_go_to_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    record = samples.make()
    with caplog.at_level(logging.INFO, logger="my.cam"):
        sink = open_sink("logging:my.cam")
        sink.write(record, FILES)
        sink.close(1)
    (line,) = caplog.records
    assert line.name == "my.cam" and line.levelno == logging.INFO
    assert json.loads(line.getMessage()) == record


@pytest.mark.slow
def test_lines_go_to_standard_output_whole() -> None:
    script = (
        "import threading\nfrom onnxcam.monitor.sinks import open_sink\nfrom tests.monitor import samples\nsink = "
        "open_sink('stdout:')\nwork = lambda: [sink.write(samples.make(request='r' * 250, labels=['l' * 9000] * 3), "
        "{}) for _ in range(20)]\nthreads = [threading.Thread(target=work) for _ in range(4)]\n[t.start() for t in "
        "threads], [t.join() for t in threads]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, cwd=Path(__file__).parents[2]
    )
    lines = done.stdout.split(b"\n")
    assert lines.pop() == b""
    assert len({json.loads(line)["id"] for line in lines}) == 80


def test_standard_output_that_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    record = samples.make()
    open_sink("stdout:").write(record, {})
    assert json.loads(text.getvalue()) == record


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX pipe")
def test_a_closed_standard_output_is_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(OutputError, match="standard output"):
            open_sink("stdout:").write(samples.make(), {})


def test_ticks_reach_the_folders(tmp_path: Path) -> None:
    now = [1_795_615_620.0]
    sink = open_sink([tmp_path, Keeping()], segment_age=60, clock=lambda: now[0], retain_age=None)
    sink.write(samples.make(), {})
    now[0] += 61
    sink.tick()  # type: ignore[attr-defined]
    assert [path.suffix for path in (tmp_path / "records").iterdir()] == [".jsonl"]


@pytest.mark.slow
def test_importing_sinks_loads_no_optional_package() -> None:
    script = (
        "import sys; from onnxcam.monitor.sinks import open_sink; open_sink('cam')\n"
        "print([m for m in ('fsspec', 'prometheus_client', 'cv2', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- sizes and durations


@pytest.mark.parametrize(
    ("text", "size"),
    [(5, 5), ("0", 0), ("64K", 65536), ("256MiB", 256 << 20), ("1.5 GB", 1_500_000_000), ("2gib", 2 << 30), ("7B", 7)],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_bytes(text, "x") == size


@pytest.mark.parametrize(
    ("text", "expected"), [(1.5, 1.5), ("90s", 90), ("15min", 900), ("2 h", 7200), ("30d", 2_592_000), ("3", 3)]
)
def test_durations(text: Any, expected: float) -> None:
    assert parse_seconds(text, "x") == expected


@pytest.mark.parametrize("text", ["", "x", "5 apples", "-1", -1, None, True, float("nan"), "1e3"])
def test_no_sizes_and_no_durations(text: Any) -> None:
    for parse in (parse_bytes, parse_seconds):
        with pytest.raises(SettingError, match="budget="):
            parse(text, "budget")


def test_two_threads_may_open_one_folder_twice(tmp_path: Path) -> None:
    """Two monitors of one process, one folder: each has its own segment."""
    sinks = [open_sink(tmp_path) for _ in range(2)]
    threads = [threading.Thread(target=lambda one=one: one.write(samples.make(), FILES)) for one in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in sinks:
        one.close(1)
    assert len(samples.records_in(tmp_path)) == 2
    assert len([path for path in (tmp_path / "records").iterdir() if path.suffix == ".jsonl"]) == 2
