"""Every reader of a file bounds size, depth and type before it allocates: one sentence, at most 64 MiB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxcam import files
from onnxcam.errors import OnnxcamError
from onnxcam.evaluation import boxes
from onnxcam.explain import pictures
from onnxcam.fleet import listing
from onnxcam.fleet import run as table_run
from onnxcam.graph import file as model_file
from onnxcam.image import load, resolve
from onnxcam.monitor import baseline
from onnxcam.network import manifest
from onnxcam.targets import labels
from onnxcam.targets.truth import Table

MIB = 1 << 20
Read = Callable[[Path], Any]
# each reads a file of this name
READERS: dict[str, tuple[str, Read]] = {
    "labels": ("names.txt", labels.read),
    "labels as JSON": ("names.json", labels.read),
    "labels as YAML": ("data.yaml", labels.read),
    "labels as CSV": ("names.csv", labels.read),
    "preprocessing": ("spec.json", lambda path: resolve(path, [1, 3, 32, 32])),
    "configuration of timm": ("config.json", lambda path: resolve(f"timm:{path}", [1, 3, 32, 32])),
    "configuration of Hugging Face": ("config.json", lambda path: resolve(f"hf:{path}", [1, 3, 32, 32])),
    "boxes": ("boxes.json", boxes.read),
    "boxes as CSV": ("boxes.csv", boxes.read),
    "true classes": ("truth.csv", lambda path: Table(path, ["cat", "dog"], 2)),
    "list of pictures": ("list.txt", lambda path: pictures.read_list(str(path))),
    "picture": ("picture.png", load),
    "array": ("array.npy", load),
    "baseline": ("baseline.json", baseline.load),
    "run of a table": (table_run.NAME, lambda path: table_run.state(path.parent)),
    "listing of a table": (listing.NAME, lambda path: list(listing.Listing(path.parent, "/", 1 << 30).paths())),
    "model": ("model.onnx", model_file.metadata),
    "manifest": ("manifest.json", lambda path: manifest.parse(path.read_text())),
}


def sparse(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return write


def repeated(unit: str, size: int, start: str = "", end: str = "") -> Callable[[Path], None]:
    return lambda path: files.write_bytes(path, (start + unit * (size // len(unit)) + end).encode()) and None


# as large as the largest that is read, and full of what takes the most memory
BOMBS: dict[str, Callable[[Path], None]] = {
    "a file of 8 GiB": sparse(8 << 30),
    "zeros": sparse(4 * MIB - 10),
    "10,000 levels": repeated("[", 10_000, end="]" * 10_000),
    "10,000 objects": repeated('{"a":', 50_000, end="0" + "}" * 10_000),
    "10,000 levels without an end": repeated("[", 10_000),
    "empty lists": repeated("[],", 4 * MIB - 10, "[", "0]"),
    "empty objects": repeated("{},", 8 * MIB - 10, "[", "0]"),
    "small objects": repeated('{"a":"b"},', 4 * MIB - 20, "[", "0]"),
    "numbers": repeated("1e9,", 8 * MIB - 10, "[", "0]"),
    "texts": repeated('"ab",', 4 * MIB - 20, "[", '""]'),
    "one text": repeated("x", 8 * MIB - 20, '["', '"]'),
    "characters of four bytes": repeated("😀", 1 * MIB - 20, '["', '"]'),
    "short lines": repeated("ab\n", 4 * MIB - 20),
    "numbered lines": repeated("7 ab\n", 4 * MIB - 20),
    "lines of JSON": repeated('{"a":1}\n', 4 * MIB - 20),
    "Windows lines": repeated("\r", 4 * MIB - 20),
    "cells": repeated("a,", 4 * MIB - 20, "index,name\n"),
    "rows": repeated("0,ab\n", 4 * MIB - 20, "index,name\n"),
    "boxes": repeated("a,1,2,3,4\n", 8 * MIB - 50, "picture,x0,y0,x1,y1\n"),
    "classes of pictures": repeated("a/b/c/d,0\n", 8 * MIB - 50, "picture,class\n"),
    "a literal": repeated("0,", 1 * MIB - 20, "(", "0)"),
    "a list in YAML": repeated("a,", 1 * MIB - 40, "names: [", "b]"),
    "entries in YAML": repeated("- a\n", 1 * MIB - 40, "names:\n"),
    "quotes": repeated('\\"', 4 * MIB - 20, '["'),
}

SAMPLE = ("a file of 8 GiB", "10,000 levels", "empty lists")
CHILD = """
import sys
from pathlib import Path
from tests import test_readers as tests
from onnxcam.errors import OnnxcamError
for _, read in tests.READERS.values():  # whatever is loaded on first use
    try:
        read(Path(sys.argv[1]))
    except (OnnxcamError, OSError):
        pass
folder = Path(sys.argv[2])
def high():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
for name, (file, read) in tests.READERS.items():
    path = folder / file
    if not tests.concerns(sys.argv[3], name):
        continue
    tests.BOMBS[sys.argv[3]](path)
    Path("/proc/self/clear_refs").write_text("5")
    before, told = high(), "read"
    try:
        read(path)
    except OnnxcamError as error:
        told = str(error)
    grown = (high() - before) / 1024
    print(f"{name}\\t{grown:.0f}\\t{len(told)}\\t{told.count(chr(10))}\\t{told[:150]}")
    path.unlink()
"""


def concerns(bomb: str, reader: str) -> bool:
    """Whether a reader takes a file of this kind at all: the rest are refused by their first bytes."""
    return not (reader == "manifest" and bomb == "a file of 8 GiB")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize(
    "bomb", [bomb if bomb in SAMPLE else pytest.param(bomb, marks=pytest.mark.soak) for bomb in BOMBS]
)
def test_no_reader_takes_more_than_its_bound(bomb: str, tmp_path: Path) -> None:
    """Promise 25."""
    (tmp_path / "small").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "small"), str(tmp_path), bomb], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(results) >= len(READERS) - 1
    for name, grown, length, lines, message in results:
        assert float(grown) <= 64, (name, grown, message)
        assert int(length) < 700 and lines == "0", (name, message)


@pytest.fixture(params=[name for name in READERS if name != "manifest"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Read]:
    name, read = READERS[request.param]
    return tmp_path / name, read


def refusal(read: Read, path: Path) -> str:
    with pytest.raises(OnnxcamError) as raised:
        read(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_folder_is_refused(reader: tuple[Path, Read]) -> None:
    path, read = reader
    path.mkdir()
    text = refusal(read, path)
    assert "folder" in text or "directory" in text or "cannot be read" in text


def test_a_pipe_that_nobody_writes_to_is_refused(reader: tuple[Path, Read], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    path, read = reader
    os.mkfifo(path)
    refusal(read, path)
    assert path.is_fifo()


def test_a_pipe_without_end_is_refused(reader: tuple[Path, Read]) -> None:
    path, read = reader
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            try:
                while True:
                    pipe.write(b"a,b,c,d\n" * 8192)
            except BrokenPipeError:
                pass

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    refusal(read, path)
    if path.name == "model.onnx":  # is not opened at all
        os.close(os.open(path, os.O_RDONLY))
    writer.join(20)
    assert not writer.is_alive()


def test_a_socket_is_refused(reader: tuple[Path, Read], monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    path, read = reader
    monkeypatch.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
        refusal(read, path)


WHOLE = {
    "labels": "cat\ndog\n",
    "labels as JSON": '["cat", "dog"]',
    "boxes": '{"a.jpg": [[1, 2, 3, 4]]}',
    "boxes as CSV": "picture,x0,y0,x1,y1\na.jpg,1,2,3,4\n",
    "true classes": "a.jpg,0\n",
    "list of pictures": "a.jpg\nb.jpg\n",
    "preprocessing": json.dumps({"scale": 0.1, "resize": {"mode": "stretch", "size": [32, 32]}}),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("late", [False, True])
def test_a_pipe_that_was_named_is_read(tmp_path: Path, name: str, late: bool) -> None:
    """As of `<(command)`; a writer that takes its time is waited for."""
    read = READERS[name][1]
    path = tmp_path / READERS[name][0]
    os.mkfifo(path)

    def write() -> None:
        with path.open("w") as pipe:
            if late:
                threading.Event().wait(0.2)
            pipe.write(WHOLE[name])

    writer = threading.Timer(0.2 if late else 0, write)
    writer.start()
    by_pipe = read(path)
    writer.join()
    path.unlink()
    path.write_text(WHOLE[name])
    assert repr(by_pipe) == repr(read(path)) or vars(by_pipe).keys() == vars(read(path)).keys()


def values() -> Iterator[Any]:
    """JSON of every type and a few levels, with numbers at their ends."""
    plain: list[Any] = [
        None,
        True,
        0,
        -1,
        3,
        2**63,
        10**30,
        0.5,
        1e308,
        float("inf"),
        float("nan"),
        "",
        "cat",
        "😀\ud83d",
    ]
    yield from plain
    for one in plain:
        yield [one]
        yield [one, one, one]
        yield [[one, one, one, one]]
        yield {"a": one}
        yield {"0": one}
        yield {"a": [one, one, one, one]}
        yield {"a": {"box": one}}
        yield [{"picture": one, "box": [1, 2, 3, 4], "label": one}]
        yield {"names": one}
        yield {"id2label": one}
        yield {"format": one}
        yield {"format": 1, "rows": one, "input": one}
        for key in ("color", "scale", "mean", "std", "resize", "crop", "channels", "value_range"):
            yield {"scale": 1.0, key: one}
            yield {"scale": 1.0, key: [one, one, one]}
        for key in ("mode", "size", "interpolation", "antialias", "pad_value"):
            yield {"resize": {"mode": "stretch", "size": [32, 32], key: one}}
            yield {"resize": {"mode": "letterbox", "size": [32, 32], key: [one, one, one]}}
        for key in ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation"):
            yield {"pretrained_cfg": {key: one}}
            yield {"pretrained_cfg": {key: [one, one, one]}}
        for key in (
            "size",
            "crop_size",
            "image_mean",
            "image_std",
            "rescale_factor",
            "resample",
            "do_resize",
            "crop_pct",
        ):
            yield {"do_center_crop": True, key: one}
            yield {"do_center_crop": True, key: {"height": one, "width": one}}
            yield {"do_center_crop": True, key: {"shortest_edge": one}}


JSON_READERS = [
    "labels as JSON", "preprocessing", "configuration of timm", "configuration of Hugging Face", "boxes", "baseline",
    "manifest",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON_READERS)
def test_no_value_ends_in_another_error(tmp_path: Path, name: str) -> None:
    file, read = READERS[name]
    path, count = tmp_path / file, 0
    for value in values():
        path.write_bytes(json.dumps(value).encode())
        try:
            read(path)
        except OnnxcamError as error:
            count += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, value
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} of {json.dumps(value)[:200]}: {error}") from error
    assert count > 20
