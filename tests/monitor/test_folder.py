"""The local sink: names, segments, retention, the free-disk floor, several processes and threads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from onnxcam.errors import OutputError, SettingError
from onnxcam.monitor import retention
from onnxcam.monitor.folder import Folder
from onnxcam.monitor.segments import Writer, parse_name, recover, segments
from tests.monitor import kills, samples

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Clock:
    """Seconds since 1970, as the test sets them."""

    def __init__(self, now: float = 1_795_617_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def fill(sink: Folder, count: int, clock: Clock | None = None, step: float = 0.0, size: int = 2000) -> list[str]:
    names = []
    for _ in range(count):
        record = samples.make(observed=None if clock is None else clock.now)
        sink.write(record, {"heatmap": os.urandom(size)})
        names.append(record["id"])
        if clock is not None:
            clock.now += step
    return names


def ids(root: Path) -> list[str]:
    return [record["id"] for record in samples.records_in(root)]


def test_a_record_and_its_pictures_lie_where_the_layout_says(tmp_path: Path) -> None:
    clock = Clock(1_795_615_620.123456)  # 2026-11-25T14:07:00Z
    sink = Folder(tmp_path / "deep" / "cam", clock=clock)
    record = samples.make(observed=clock.now, redact="none")
    sink.write(record, {"heatmap": b"one", "overlay": b"two", "input": b"three"})
    (path,) = (tmp_path / "deep" / "cam" / "records").iterdir()
    assert re.fullmatch(rf"20261125T140700\.123456Z-.+-{os.getpid()}-[0-9]+\.jsonl\.open", path.name)
    sink.close(1)
    (path,) = (tmp_path / "deep" / "cam" / "records").iterdir()
    assert path.suffix == ".jsonl"
    assert path.read_bytes().count(b"\n") == 1
    assert json.loads(path.read_bytes()) == record
    assert [entry["name"] for entry in record["files"]] == [
        f"files/20261125/14/{record['id']}-{kind}.png" for kind in ("heatmap", "overlay", "input")
    ]
    assert samples.faults(tmp_path / "deep" / "cam") == []
    name = parse_name(path.name)
    assert name is not None
    assert (name.start, name.pid) == (clock.now, os.getpid())


@pytest.mark.parametrize("host", ["web-1", "a.b.c", "x-2-3"])
def test_names_of_hosts_with_dashes_are_read(host: str) -> None:
    name = parse_name(f"20261125T140700.123456Z-{host}-41-7.jsonl.open")
    assert name is not None
    assert (name.host, name.pid, name.seq) == (host, 41, 7)


@pytest.mark.parametrize("name", ["notes.jsonl", "20261125T140700.123456Z-host.jsonl", ".jsonl", "x-1-2.jsonl"])
def test_other_files_are_no_segments(name: str, tmp_path: Path) -> None:
    assert parse_name(name) is None
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / name).write_text("{}\n")
    assert segments(tmp_path) == []
    recover(tmp_path)
    retention.Retention(tmp_path, retention.Limits(bytes=0)).enforce(time.time())
    assert (tmp_path / "records" / name).exists()


def test_a_segment_is_closed_by_size(tmp_path: Path) -> None:
    sink = Folder(tmp_path, segment_bytes=20_000, min_free=0)
    written_ids = fill(sink, 30)
    sink.close(1)
    paths = segments(tmp_path)
    assert len(paths) > 3
    for path in paths:
        assert path.stat().st_size + sum(e["bytes"] for r in samples.lines(path) for e in r["files"]) <= 20_000
    assert ids(tmp_path) == written_ids


def test_a_record_larger_than_a_segment_is_kept_alone(tmp_path: Path) -> None:
    sink = Folder(tmp_path, segment_bytes=10_000, min_free=0)
    fill(sink, 3, size=30_000)
    sink.close(1)
    assert [len(samples.lines(path)) for path in segments(tmp_path)] == [1, 1, 1]


def test_a_segment_is_closed_by_age_at_the_next_record_or_tick(tmp_path: Path) -> None:
    clock = Clock()
    sink = Folder(tmp_path, segment_age="10min", clock=clock, retain_age=None)
    fill(sink, 2, clock, step=299)
    sink.tick()
    assert [path.name[-5:] for path in segments(tmp_path)] == [".open"]
    fill(sink, 2, clock, step=299)
    assert [len(samples.lines(path)) for path in segments(tmp_path)] == [3, 1]
    clock.now += 601
    sink.tick()
    assert [path.suffix for path in segments(tmp_path)] == [".jsonl", ".jsonl"]
    sink.tick()
    assert len(ids(tmp_path)) == 4


def test_nothing_is_left_of_a_sink_that_never_wrote(tmp_path: Path) -> None:
    Folder(tmp_path / "never").close(1)
    assert not (tmp_path / "never").exists()


def test_a_sink_may_be_written_to_again_after_closing(tmp_path: Path) -> None:
    sink = Folder(tmp_path)
    fill(sink, 1)
    sink.close(1)
    sink.close(1)
    fill(sink, 1)
    sink.close(1)
    assert len(segments(tmp_path)) == 2


# ---- retention


@pytest.mark.slow
def test_ten_times_the_bound_never_passes_it_by_more_than_a_segment(tmp_path: Path) -> None:
    bound, segment = 300_000, 30_000
    sink = Folder(tmp_path, retain_bytes=bound, segment_bytes=segment, min_free=0, sync=False)
    written, most, names = 0, 0, []
    while written < 10 * bound:
        record = samples.make()
        data = os.urandom(4000)
        sink.write(record, {"heatmap": data})
        written += len(data) + len(json.dumps(record))
        most = max(most, samples.size(tmp_path))
        names.append(record["id"])
    sink.close(1)
    assert most <= bound + segment
    assert most > bound / 2, "what fits is kept"
    left = ids(tmp_path)
    assert left == names[-len(left) :], "the oldest went first"
    assert samples.faults(tmp_path) == []
    named = {entry["name"] for record in samples.records_in(tmp_path) for entry in record["files"]}
    stored = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "files").rglob("*.png")}
    assert stored == named, "pictures go with their records"


@pytest.mark.slow
@FORKS
def test_the_bound_holds_over_several_processes(tmp_path: Path) -> None:
    bound, segment = 600_000, 60_000
    script = (
        "import os, sys\nfrom onnxcam.monitor.folder import Folder\nfrom tests.monitor import samples\n"
        f"sink = Folder({str(tmp_path)!r}, retain_bytes={bound}, segment_bytes={segment}, min_free=0, sync=False)\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "for _ in range(400):\n    sink.write(samples.make(), {'heatmap': os.urandom(4000)})\nsink.close(1)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for one in writers:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    most = 0
    for one in writers:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    while any(one.poll() is None for one in writers):
        most = max(most, measured(tmp_path))
        time.sleep(0.01)
    assert [one.wait() for one in writers] == [0, 0, 0]
    for one in writers:
        assert one.stdin is not None and one.stdout is not None
        one.stdin.close()
        one.stdout.close()
    assert bound / 2 < most <= bound + segment
    assert samples.faults(tmp_path) == []
    assert all(path.suffix == ".jsonl" for path in segments(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_bound_holds_for_writers_that_begin_at_the_same_moment(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, segment = 400_000, 40_000
    settings: dict[str, Any] = {"retain_bytes": bound, "segment_bytes": segment, "min_free": 0, "sync": False}
    before = Folder(tmp_path, **settings)
    fill(before, 200)
    before.close(1)
    together, clear = threading.Barrier(count), retention.Retention.enforce

    def at_once(keeper: retention.Retention, *arguments: Any) -> list[Path]:
        together.wait(10)
        done = clear(keeper, *arguments)
        together.wait(10)
        return done

    sinks = [Folder(tmp_path, **settings) for _ in range(count)]
    with monkeypatch.context() as patched:
        patched.setattr(retention.Retention, "enforce", at_once)
        threads = [threading.Thread(target=fill, args=(sink, 1)) for sink in sinks]
        for one in threads:
            one.start()
        for one in threads:
            one.join(20)
    most = 0
    for _ in range(40):
        for sink in sinks:
            fill(sink, 1)
            most = max(most, measured(tmp_path))
    assert bound / 2 < most <= bound + segment
    assert samples.faults(tmp_path) == []


def test_a_segment_closed_while_it_is_looked_at_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Folder(tmp_path, retain_bytes=None, min_free=0, sync=False)
    fill(other, 5)
    keeper, listed = retention.Retention(tmp_path, retention.Limits(bytes=10**9)), retention.segments

    def and_then_closed(root: Path, *suffixes: str) -> list[Path]:
        names = listed(root, *suffixes)
        if not suffixes:
            other.close(1)
        return names

    monkeypatch.setattr(retention, "segments", and_then_closed)
    keeper.enforce(time.time())
    assert [path.suffix for path in segments(tmp_path)] == [".jsonl"]
    assert keeper.records == 5 and keeper.bytes == sum(
        path.stat().st_size for path in tmp_path.rglob("*") if path.suffix in (".jsonl", ".png")
    )


def measured(root: Path) -> int:
    total = 0
    for path in root.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


@pytest.mark.slow
def test_age_and_count_are_bounds_too(tmp_path: Path) -> None:
    clock = Clock()
    sink = Folder(tmp_path, retain_age="2h", segment_age="30min", clock=clock, retain_bytes=None, segment_bytes=10_000)
    written_ids = fill(sink, 40, clock, step=600)
    oldest = min(record["ts"] for record in samples.records_in(tmp_path))
    left = ids(tmp_path)
    assert left == written_ids[-len(left) :]
    assert 2 * 3600 - 1800 <= clock.now - 600 - retention.seconds(oldest) <= 2 * 3600 + 2 * 1800

    few = Folder(tmp_path / "few", retain_records=10, segment_bytes=10_000, retain_bytes=None)
    written_ids = fill(few, 50)
    left = ids(tmp_path / "few")
    per_segment = max(len(samples.lines(path)) for path in segments(tmp_path / "few"))
    assert 10 - per_segment <= len(left) <= 10 + per_segment
    assert left == written_ids[-len(left) :]


def test_a_segment_bigger_than_half_of_what_is_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="at least two segments"):
        Folder(tmp_path, retain_bytes="10MiB", segment_bytes="6MiB")


@pytest.mark.parametrize(
    "options",
    [{"retain_bytes": "much"}, {"retain_age": "2 fortnights"}, {"retain_records": 0}, {"min_free": -1}],
)
def test_bounds_that_cannot_be_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        Folder(tmp_path, **options)


def test_a_name_from_outside_removes_nothing(tmp_path: Path) -> None:
    """A model's or a request's name is a user's text: retention follows the names of pictures alone."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "precious").write_text("data")
    (tmp_path.parent / "precious").write_text("data")
    sink = Folder(tmp_path, retain_bytes=None, retain_records=1, segment_bytes=5_000)
    for name in ("files/precious", "files/../../precious", '"name":"files/precious"'):
        sink.write(samples.make(model={"name": name, "sha256": None}, request=name), {"heatmap": bytes(3000)})
    fill(sink, 3)
    assert not {"files/precious", "files/../../precious"} & {r["model"]["name"] for r in samples.records_in(tmp_path)}
    assert (tmp_path / "files" / "precious").exists() and (tmp_path.parent / "precious").exists()


def test_pictures_that_no_record_names_go_after_an_hour(tmp_path: Path) -> None:
    sink = Folder(tmp_path)
    fill(sink, 2)
    stray = tmp_path / "files" / "20261125" / "13" / f"{samples.make()['id']}-heatmap.png"
    part = stray.with_name(f".{stray.name}.part")
    foreign = stray.with_name("notes.txt")
    stray.parent.mkdir(parents=True, exist_ok=True)
    for path in (stray, part, foreign):
        path.write_bytes(b"x")

    def old(path: Path) -> None:
        os.utime(path, (time.time() - 4000,) * 2)

    old(tmp_path / ".swept")
    assert retention.remove_unreferenced(tmp_path) == 0, "young ones may be on their way"
    for path in (tmp_path / "files").rglob("*"):
        old(path)
    assert retention.remove_unreferenced(tmp_path) == 0, "once an hour is enough"
    old(tmp_path / ".swept")
    assert retention.remove_unreferenced(tmp_path) == 2
    assert foreign.exists() and not stray.exists() and not part.exists()
    assert samples.faults(tmp_path) == []


# ---- the disk


def test_the_last_space_of_a_disk_is_left_alone(tmp_path: Path) -> None:
    sink = Folder(tmp_path, min_free="1000TiB")
    with pytest.raises(OutputError, match="min_free keeps"):
        fill(sink, 1)
    assert segments(tmp_path) == [] and not list(tmp_path.rglob("*.png"))


# ---- dead writers, forks, threads


@FORKS
def test_the_segment_of_a_dead_process_is_closed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    pid, reading = kills.child(kills.write_on(tmp_path, sync=False))
    acknowledged = [os.read(reading, 37)]
    alive = Folder(tmp_path)
    fill(alive, 1)
    (foreign,) = [path for path in segments(tmp_path, ".open") if f"-{pid}-" in path.name]
    assert foreign.exists(), "its writer lives"
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    acknowledged += [line.encode() for line in kills.collected(reading)]
    with foreign.open("ab") as file:
        file.write(b'{"schema":1,"id":"half a li')
    before = ids(tmp_path)
    closed = recover(tmp_path)
    assert [path.name for path in closed] == [foreign.name.removesuffix(".open")]
    assert ids(tmp_path) == before
    assert {line.decode().strip() for line in acknowledged} <= set(before)
    assert segments(tmp_path, ".open") == [alive._writer.path]
    alive.close(1)


@FORKS
def test_a_forked_child_begins_its_own_segment(tmp_path: Path) -> None:
    sink = Folder(tmp_path, min_free=0)
    parents = fill(sink, 1)
    with sink._lock:  # held by a thread that the child does not have

        def act(acknowledge: Any) -> None:
            (written_ids,) = fill(sink, 1)
            acknowledge(written_ids)
            sink.close(1)

        pid, reading = kills.child(act)
        childrens = kills.collected(reading)
        os.waitpid(pid, 0)
    parents += fill(sink, 1)
    recover(tmp_path)  # the child is dead: neither its end nor this touches the parent's segment
    parents += fill(sink, 1)
    sink.close(1)
    by_process = {path.name.split("-")[-2]: [r["id"] for r in samples.lines(path)] for path in segments(tmp_path)}
    assert by_process == {str(os.getpid()): parents, str(pid): childrens}
    assert len(childrens) == 1


@pytest.mark.slow
def test_threads_write_whole_lines(tmp_path: Path) -> None:
    sink = Folder(tmp_path, segment_bytes=40_000, sync=False)
    names: list[list[str]] = [[] for _ in range(6)]

    def work(k: int) -> None:
        names[k] = fill(sink, 40, size=500)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close(1)
    assert sorted(ids(tmp_path)) == sorted(identity for several in names for identity in several)
    assert samples.faults(tmp_path) == []


def test_closing_does_not_wait_for_a_stalled_disk(tmp_path: Path) -> None:
    sink = Folder(tmp_path)
    with sink._lock:
        began = time.monotonic()
        sink.close(0.2)
        assert 0.1 < time.monotonic() - began < 5


def test_every_line_is_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A death between two calls would tear the line."""
    (tmp_path / "records").mkdir()
    calls: list[bytes] = []
    real = os.write
    writer = Writer(tmp_path, seconds=60, sync=False)
    monkeypatch.setattr(os, "write", lambda handle, data: calls.append(bytes(data)) or real(handle, data))
    line = b"x" * 200_000 + b"\n"
    writer.append(line, len(line))
    writer.close()
    assert calls == [line]
