"""Files that are not ONNX: what each is, and a next step that is another than the one just taken."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from onnxcam.errors import ModelError
from onnxcam.graph import file
from tests.cli.conftest import Run
from tests.cli.conftest import run as run


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return stream.getvalue()


SAFETENSORS = (12).to_bytes(8, "little") + json.dumps({"a": 1}).encode().ljust(12)
FILES: list[tuple[str, bytes, list[str]]] = [
    ("model.tflite", b"\x1c\0\0\0TFL3" + bytes(50), ["TensorFlow Lite", "tf2onnx.convert --tflite"]),
    ("model.onnx", b"\x1c\0\0\0TFL3" + bytes(50), ["TensorFlow Lite", "tf2onnx.convert --tflite"]),
    ("model.ort", b"\x1c\0\0\0ORTM" + bytes(50), ["ORT format", "give the .onnx"]),
    ("frozen.pb", b"\x0a\x10" + bytes(range(1, 60)), ["TensorFlow graph", "--graphdef"]),
    ("model.engine", bytes(50), ["TensorRT", ".onnx"]),
    ("model.xml", b'<?xml version="1.0"?><net/>', ["OpenVINO", ".onnx"]),
    ("net.mlmodel", bytes(50), ["Core ML"]),
    ("model.onnx.data", bytes(50), ["weights only", "next to it"]),
    ("weights.onnx", SAFETENSORS, ["safetensors", "--weights"]),
    ("picture.npy", b"\x93NUMPY" + bytes(50), ["NumPy array"]),
    ("model.onnx.gz", b"\x1f\x8b" + bytes(50), ["gzip", "unpack"]),
]


@pytest.mark.parametrize(("name", "content", "words"), FILES, ids=[name for name, _, _ in FILES])
def test_every_format_has_a_next_step(name: str, content: bytes, words: list[str], run: Run, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        file.metadata(path)
    exported = run("export", path, "-o", tmp_path / "out.onnx")
    assert exported.code == 3
    for message in (str(caught.value), exported.sentence):
        assert name in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.onnx", zipped("config.json", "metadata.json", "model.weights.h5"), ["Keras model", ".keras"]),
        ("model.zip", zipped("archive/data.pkl", "archive/version"), ["PyTorch file", ".pt"]),
        ("model.mar", zipped("a.txt", "b.txt"), ["zip archive of 2 files (a.txt, b.txt)", "unpack"]),
        ("model.onnx", b"\x89HDF\r\n\x1a\n" + bytes(50), ["HDF5", ".h5"]),
        ("model", b"\x80\x02}q" + bytes(20), ["pickled", ".pt"]),
        ("model.onnx", b"PK\x03\x04" + bytes(100), ["zip archive", "cut off or damaged"]),
        ("notes.txt", b"just some words\n", ["not an ONNX model", "text file"]),
    ],
)
def test_export_never_advises_itself(name: str, content: bytes, words: list[str], run: Run, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = run("export", path, "-o", tmp_path / "out.onnx").sentence
    assert "`onnxcam export`" not in message and all(word in message for word in words), message


def test_other_commands_advise_export(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(zipped("archive/data.pkl"))
    with pytest.raises(ModelError, match="use `onnxcam export` on it"):
        file.metadata(path)
