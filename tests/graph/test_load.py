"""Reading and writing model files: what is refused, and in which words; nothing half written."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcam
from onnxcam import files
from onnxcam.errors import ModelError, OutputError, TrustError
from onnxcam.graph.load import load, save
from tests.support.models import tiny_cnn


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.json", "{}")
    return buffer.getvalue()


NOT_MODELS = {
    "text": (b"epoch,loss\n1,0.5\n2,0.4\n", "a text file"),
    "page": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML or XML page"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG picture"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(64), "a JPEG picture"),
    "zip": (zipped(), "a zip archive"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "noise": (bytes(range(128, 256)) * 8, "1024 bytes"),
    "cut off": (tiny_cnn().SerializeToString()[:-100], "cut off"),
    "another message": (numpy_helper.from_array(np.zeros(3, np.float32), "w").SerializeToString(), "not an ONNX model"),
}


@pytest.mark.parametrize("kind", NOT_MODELS)
def test_what_is_not_a_model_is_named(kind: str, tmp_path: Path) -> None:
    data, words = NOT_MODELS[kind]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(ModelError, match="the given bytes"):
        load(data)


@pytest.mark.parametrize("source", [None, 3, [b"x"], object()])
def test_what_is_no_source_at_all(source: object) -> None:
    for read in (onnxcam.layers, onnxcam.augment, onnxcam.Explainer, onnxcam.probe):
        with pytest.raises(ModelError, match="is not a model; pass a path, bytes or a ModelProto"):
            read(source)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    with pytest.raises(ModelError, match=r"model\.onnx is empty \(0 bytes\)"):
        load(path)


def test_empty_bytes() -> None:
    with pytest.raises(ModelError, match="the given bytes"):
        load(b"")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "model.onnx")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path / "file" / "model.onnx")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_cnn().SerializeToString())
    path.chmod(0)
    with pytest.raises(ModelError, match="cannot be read"):
        load(path)


def test_a_path_its_bytes_and_its_proto_are_the_same_model(tmp_path: Path) -> None:
    model = tiny_cnn()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), model):
        assert load(source) == model  # type: ignore[arg-type]


def test_a_proto_is_copied() -> None:
    model = tiny_cnn()
    before = model.SerializeToString()
    model_proto = load(model)
    del model_proto.graph.node[:]
    model_proto.graph.initializer[0].name = "other"
    assert model.SerializeToString() == before


def external(folder: Path, location: str) -> Path:
    """A model in `folder` whose first weights lie in the file `location`."""
    model = tiny_cnn()
    tensor = model.graph.initializer[0]
    data = numpy_helper.to_array(tensor).tobytes()
    target = folder / location
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():
        target.write_bytes(data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        tensor.external_data.add(key=key, value=value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["weights.bin", "parts/weights.bin"])
def test_external_data_next_to_the_model_is_read(location: str, tmp_path: Path) -> None:
    model_proto = load(external(tmp_path, location)).graph.initializer[0]
    want = tiny_cnn().graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(model_proto), numpy_helper.to_array(want))
    assert model_proto.data_location != onnx.TensorProto.EXTERNAL


def test_external_data_above_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="external data is refused"):
        load(external(tmp_path / "model", "../weights.bin"))


def test_external_data_at_an_absolute_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="external data is refused"):
        load(external(tmp_path / "model", str(tmp_path / "weights.bin")))


def test_external_data_through_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4096))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(TrustError, match="external data is refused"):
        load(external(tmp_path / "model", "weights.bin"))


@pytest.mark.parametrize("form", ["bytes", "proto"])
def test_weights_in_another_file_need_a_path(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path, "weights.bin")
    monkeypatch.chdir(tmp_path)  # where a file of that name lies
    source = path.read_bytes() if form == "bytes" else onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match=r"'weights\.bin'.*give the path"):
        load(source)
    assert load(onnx.load(path)) == load(path)


def test_external_data_that_was_not_copied_along(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin"):
        load(path)


def test_save_and_load(tmp_path: Path) -> None:
    save(tiny_cnn(), tmp_path / "model.onnx")
    assert load(tmp_path / "model.onnx") == tiny_cnn()
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_save_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    save(tiny_cnn(classes=3), path)
    before = path.read_bytes()

    class Half(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.io, "FileIO", Half)
    with pytest.raises(OutputError, match="No space left"):
        save(tiny_cnn(classes=5), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_save_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="could not be written"):
        save(tiny_cnn(), tmp_path / "no" / "model.onnx")


def test_save_onto_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(OutputError, match="could not be written"):
        save(tiny_cnn(), tmp_path / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
