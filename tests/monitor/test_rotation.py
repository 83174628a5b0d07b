"""Others remove, rename, rotate and truncate the folder of records at any time: noticed, made anew, counted."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxcam.monitor import artefacts, counters, reading
from onnxcam.monitor import segments as segment_files
from onnxcam.monitor.folder import Folder
from onnxcam.monitor.retention import Limits, Retention
from tests.monitor import samples

POSIX = pytest.mark.skipif(os.name == "nt", reason="open files cannot be removed there")
pytestmark = POSIX


def opened(root: Path) -> Path:
    (path,) = segment_files.segments(root, ".open")
    return path


def remove_folder(root: Path) -> None:
    shutil.rmtree(root)


def remove_records(root: Path) -> None:
    shutil.rmtree(root / "records")


def rename_folder(root: Path) -> None:
    root.rename(root.with_name(f"{root.name}.{os.urandom(4).hex()}"))


def rename_records(root: Path) -> None:
    (root / "records").rename(root / f"records.{os.urandom(4).hex()}")


def replace_records(root: Path) -> None:
    """The folder is there again, empty, before the next record."""
    shutil.rmtree(root / "records")
    (root / "records").mkdir()


def unlink_segment(root: Path) -> None:
    opened(root).unlink()


def rotate_segment(root: Path) -> None:
    path = opened(root)
    path.rename(path.with_name(f"{path.name}.1"))


def rename_to_final(root: Path) -> None:
    path = opened(root)
    path.rename(segment_files.final_name(path))


def copytruncate(root: Path) -> None:
    path = opened(root)
    shutil.copy(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)


def truncate_in_a_line(root: Path) -> None:
    path = opened(root)
    os.truncate(path, path.stat().st_size * 2 // 3)


def replace_segment(root: Path) -> None:
    """As `sed -i` does."""
    path = opened(root)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def append_to_segment(root: Path) -> None:
    with opened(root).open("ab") as file:
        file.write(b"logrotate was here\n")


def zero_segment(root: Path) -> None:
    path = opened(root)
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size + 10)


def remove_pictures(root: Path) -> None:
    shutil.rmtree(root / "files")


DEEDS: list[Callable[[Path], None]] = [
    remove_folder, remove_records, rename_folder, rename_records, replace_records, unlink_segment, rotate_segment,
    rename_to_final, copytruncate, truncate_in_a_line, replace_segment, append_to_segment, zero_segment,
    remove_pictures,
]  # fmt: skip


def write(sink: Folder, count: int, size: int = 300) -> list[str]:
    identities = []
    for _ in range(count):
        record = samples.make()
        sink.write(record, {"heatmap": os.urandom(size)})
        identities.append(record["id"])
    return identities


def readable(root: Path) -> list[str]:
    """The records that the reading commands find; nothing in their files is damaged, nor full of zeros."""
    if not (root / "records").is_dir():
        return []
    scan = reading.Scan()
    records = [record["id"] for record in reading.records(root, scan=scan)]
    for path in segment_files.segments(root):
        assert b"\0" not in path.read_bytes()
    return records


@pytest.mark.parametrize(("deed", "sync"), [*((deed, False) for deed in DEEDS), (remove_folder, True)])
def test_it_is_noticed_at_the_next_record(deed: Callable[[Path], None], sync: bool, tmp_path: Path) -> None:
    root = tmp_path / "cam"
    sink = Folder(root, min_free=0, sync=sync, segment_bytes=4_000)
    write(sink, 9)
    assert len(segment_files.segments(root)) > 2
    sink.note({"seen": 9})
    deed(root)
    after = write(sink, 3)
    assert set(after) <= set(readable(root)), "goes on at once, in a file that readers find"
    sink.close(1)
    records = readable(root)
    assert len(records) + sink.lost == 12
    assert len(set(records)) == len(records)
    intact = (rename_to_final, append_to_segment, remove_pictures, replace_segment)
    assert (sink.lost == 0) is (deed in intact)
    for record in reading.records(root):
        if record["id"] in after:
            assert all((root / entry["name"]).is_file() for entry in record["files"])


def test_the_folder_is_made_anew_with_its_counts(tmp_path: Path) -> None:
    root = tmp_path / "cam"
    sink = Folder(root, min_free=0)
    write(sink, 4)
    sink.note({"seen": 4, "explained": 4})
    shutil.rmtree(root)
    write(sink, 1)
    assert counters.total(root) == {"processes": 1, "seen": 4, "explained": 4, "lost": 4}
    sink.close(1)


def test_a_loss_while_nothing_is_written_is_counted_too(tmp_path: Path) -> None:
    root = tmp_path / "cam"
    sink = Folder(root, min_free=0)
    write(sink, 4)
    shutil.rmtree(root)
    sink.tick()
    assert sink.lost == 4
    assert not root.exists(), "made anew with the next record"
    write(sink, 2)
    unlink_segment(root)
    sink.close(1)
    assert sink.lost == 6
    assert readable(root) == []


def test_what_retention_removes_is_not_lost(tmp_path: Path) -> None:
    options: dict[str, Any] = {"min_free": 0, "sync": False, "segment_bytes": 4_000, "retain_bytes": 16_000}
    one, other = Folder(tmp_path, **options), Folder(tmp_path, **options)
    for _ in range(8):
        write(one, 3)
        write(other, 3)
    Retention(tmp_path, Limits(records=5)).enforce(0)
    one.close(1)
    other.close(1)
    assert len(readable(tmp_path)) < 24 and (one.lost, other.lost) == (0, 0)


def test_closed_segments_that_others_remove_or_truncate_are_lost(tmp_path: Path) -> None:
    sink = Folder(tmp_path, min_free=0, sync=False, segment_bytes=4_000)
    write(sink, 30)
    first, second, *_ = segment_files.segments(tmp_path, ".jsonl")
    first.unlink()
    os.truncate(second, second.stat().st_size // 2)
    sink.close(1)
    assert sink.lost > 0
    assert sink.lost + len(readable(tmp_path)) == 30


def test_between_the_pictures_and_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each deed right after the pictures were written: the record goes with them into what is there then."""
    real = artefacts.write
    for deed in DEEDS:
        root = tmp_path / deed.__name__
        sink = Folder(root, min_free=0, sync=False)
        write(sink, 5)
        pending = [deed]

        def written(*arguments: Any, pending: list[Any] = pending, root: Path = root) -> Any:
            entries = real(*arguments)
            if pending:
                pending.pop()(root)
            return entries

        monkeypatch.setattr(artefacts, "write", written)
        after = write(sink, 1)
        monkeypatch.setattr(artefacts, "write", real)
        sink.close(1)
        assert after[0] in readable(root), deed.__name__
        assert len(readable(root)) + sink.lost == 6, deed.__name__
        (record,) = [record for record in reading.records(root) if record["id"] == after[0]]
        assert all((root / entry["name"]).is_file() for entry in record["files"]), deed.__name__


def test_a_failed_write_never_extends_a_truncated_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Folder(tmp_path, min_free=0, sync=False)
    write(sink, 5)
    path, real = opened(tmp_path), os.write

    def truncated_then_full(handle: int, data: bytes) -> int:
        if b'"schema"' in bytes(data[:20]):
            os.truncate(path, 0)
            real(handle, data[:50])
            raise OSError(28, "No space left on device")
        return real(handle, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", truncated_then_full)
        with pytest.raises(Exception, match="No space left"):
            write(sink, 1)
    assert b"\0" not in path.read_bytes()
    after = write(sink, 2)
    sink.close(1)
    assert readable(tmp_path) == after and sink.lost == 5


def rotated(root: Path, moments: int, seed: int, processes: int) -> dict[str, Any]:
    """Writers in several processes, while this one does its worst at random moments.

    Returns:
        the number of acknowledged records, how many are found, and how many count as lost.
    """
    choose = random.Random(seed)
    children = []
    for _ in range(processes):
        reading_end, writing_end = os.pipe()
        orders, order = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.close(order)
                os.set_blocking(orders, False)
                sink = Folder(root, min_free=0, sync=False, segment_bytes=20_000, retain_bytes=None)
                acknowledged = failed = 0
                while True:
                    try:
                        if os.read(orders, 1) == b"":
                            break
                    except BlockingIOError:
                        pass
                    try:
                        write(sink, 1)
                        acknowledged += 1
                    except Exception:
                        failed += 1
                sink.close(5)
                os.write(writing_end, json.dumps([acknowledged, failed, sink.lost]).encode())
            finally:
                os._exit(0)
        os.close(orders)
        os.close(writing_end)
        children.append((pid, reading_end, order))
    done = 0
    pause = threading.Event()
    while done < moments:
        pause.wait(choose.uniform(0, 0.04))
        try:
            deed = choose.choice([d for d in DEEDS if d not in (replace_segment, append_to_segment, zero_segment)])
            if deed.__name__.endswith("segment") or deed in (rename_to_final, copytruncate, truncate_in_a_line):
                path = choose.choice(segment_files.segments(root, ".open"))
                with_path(deed, path)
            else:
                deed(root)
            done += 1
        except (OSError, IndexError, shutil.Error):
            continue  # it was not there
    for _, _, order in children:
        os.close(order)
    totals = [0, 0, 0]
    for pid, reading_end, _ in children:
        data = b""
        while piece := os.read(reading_end, 1000):
            data += piece
        os.close(reading_end)
        assert os.waitpid(pid, 0)[1] == 0
        totals = [a + b for a, b in zip(totals, json.loads(data), strict=True)]
    records = readable(root)
    return {"acknowledged": totals[0], "failed": totals[1], "lost": totals[2], "found": len(set(records))}


def with_path(deed: Callable[[Path], None], path: Path) -> None:
    """Do it to one of several open segments."""
    original = globals()["opened"]
    globals()["opened"] = lambda root: path
    try:
        deed(path.parent.parent)
    finally:
        globals()["opened"] = original


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moments", [30, pytest.param(1400, marks=pytest.mark.soak)])
def test_at_random_moments_in_several_processes(moments: int, tmp_path: Path) -> None:
    result = rotated(tmp_path / "cam", moments, seed=moments, processes=2)
    print(result)
    assert result["acknowledged"] > 20
    assert result["found"] + result["lost"] == result["acknowledged"]
    assert result["failed"] <= result["acknowledged"] // 10 + 5
