"""Metadata read from a file without a parser: equal to onnx's own reading, and never another error than ModelError."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam.errors import ModelError
from onnxcam.graph import file
from tests.support import models


def whole() -> bytes:
    model = onnxcam.augment(models.tiny_cnn(width=2), labels=[f"Käse {k}" for k in range(5)])
    model.metadata_props.add(key="empty", value="")
    return bytes(model.SerializeToString())


def test_equal_to_the_parser(tmp_path: Path) -> None:
    data = whole()
    want = {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    assert want.keys() == {"onnxcam", "empty"}
    (tmp_path / "m.onnx").write_bytes(data)
    assert file.metadata(data) == file.metadata(tmp_path / "m.onnx") == file.metadata(str(tmp_path / "m.onnx")) == want


def test_metadata_before_the_graph() -> None:
    data = whole()
    alone = onnx.ModelProto()
    alone.metadata_props.add(key="first", value="1")
    assert file.metadata(alone.SerializeToString() + data)["first"] == "1"


@pytest.mark.parametrize("kind", ["cut", "flipped", "inserted", "noise"])
def test_mutations_raise_nothing_else(kind: str) -> None:
    data = whole()
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(500):
        mutated = bytearray(data)
        match kind:
            case "cut":
                del mutated[int(rng.integers(len(data))) :]
            case "flipped":  # towards the end, where the metadata lie, as often as anywhere
                for _ in range(int(rng.integers(1, 4))):
                    start = 0 if rng.random() < 0.5 else len(data) - 1500
                    mutated[int(rng.integers(start, len(data)))] = int(rng.integers(256))
            case "inserted":
                place = int(rng.integers(len(data)))
                mutated[place:place] = rng.integers(0, 256, int(rng.integers(1, 20)), dtype=np.uint8).tobytes()
            case "noise":
                mutated = bytearray(rng.integers(0, 256, int(rng.integers(1, 200)), dtype=np.uint8).tobytes())
        try:
            metadata = file.metadata(bytes(mutated))
        except ModelError as error:
            assert "not an ONNX model" in str(error)
            refused += 1
        else:
            assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
    assert refused > 5


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


@pytest.mark.parametrize(
    "entry",
    [
        varint(1 << 3 | 2) + varint((1 << 70) - 1),  # longer than any file
        varint(1 << 3 | 2) + varint(50) + b"short",
        varint(1 << 3 | 2) + b"\xff" * 12,
        field(1, b"\xff\xfe"),
        varint(1 << 3) + varint(1),
    ],
)
def test_a_malformed_entry_is_refused(entry: bytes) -> None:
    data = whole()
    with pytest.raises(ModelError, match="not an ONNX model"):
        file.metadata(data + field(14, entry))
    assert file.metadata(data + field(14, field(1, b"k") + field(2, b"v")))["k"] == "v"


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"PK\x03\x04....", "zip archive"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"hello, this is text\n", "text file"),
        (b"\x08\x0a\x3a\xff", "cut off"),
    ],
)
def test_it_says_what_the_file_looks_like(start: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(start)
    with pytest.raises(ModelError, match=says):
        file.metadata(tmp_path / "model.onnx")


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for path, says in (
        (tmp_path / "none.onnx", "no such file"),
        (tmp_path, "folder"),
        (tmp_path / "empty.onnx", "0 b"),
    ):
        with pytest.raises(ModelError, match=says):
            file.metadata(path)
        with pytest.raises(ModelError, match=says):
            file.read(path)


class Endless(io.RawIOBase):
    """A file of 1 TiB that repeats some bytes, and counts what is read of it."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place, self.reads = content, 0, 0

    def read(self, size: int = -1) -> bytes:
        self.reads += 1
        start = self._place % len(self._content)
        data = (self._content * (size // len(self._content) + 2))[start : start + size]
        self._place += size
        return data

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + (self._place if whence == os.SEEK_CUR else 0)
        return self._place


@pytest.mark.parametrize(("content", "most"), [(b"\0", 10), (b"\x08\x01", 20), (b"\x0a\x00", 20)])
def test_a_file_that_is_no_model_is_not_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, content: bytes, most: int
) -> None:
    """As a download that left a file of zeros: 6 GB of them took minutes."""
    monkeypatch.setattr(file, "_MOST_FIELDS", 5)
    endless = Endless(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        file._walk(endless, 1 << 40, "model.onnx")  # type: ignore[arg-type]
    assert endless.reads <= most
