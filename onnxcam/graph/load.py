"""Reads a model from a path, bytes or a `ModelProto`, and refuses what is not a usable ONNX file."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxcam.errors import ModelError, TrustError

Source = str | os.PathLike[str] | bytes | onnx.ModelProto


def load(source: Source) -> onnx.ModelProto:
    """A `ModelProto` of the caller's own: editing it leaves the source alone.

    Arguments:
        source: path to an `.onnx` file (external data beside it is read), its bytes, or a `ModelProto` (copied).

    Raises:
        ModelError: not there, empty, or not an ONNX model.
        TrustError: external data that lies outside the model's folder.
    """
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        return model
    if isinstance(source, (bytes, bytearray, memoryview)):
        return parse(bytes(source), "the given bytes")
    path = Path(source)
    model = parse(read(path), str(path))
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except onnx.checker.ValidationError as error:
        raise TrustError(f"{path}: external data is refused: {_first_line(error)}; keep it beside the model") from error
    except OSError as error:
        raise ModelError(f"{path}: its external data cannot be read ({_first_line(error)}); copy it too") from error
    return model


def read(path: Path) -> bytes:
    """The bytes of a model file, or a sentence on why there are none."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; expected an ONNX model") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a folder; expected an ONNX file") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not data:
        raise ModelError(f"{path} is empty (0 bytes); expected an ONNX model: was the export or the copy cut off?")
    return data


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """Decode a serialized model and check that it is one."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{where} is not an ONNX model ({_looks_like(data)}); expected the output of an ONNX exporter"
        ) from error
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError(f"{where} holds no graph ({_looks_like(data)}); expected the output of an ONNX exporter")
    return model


def serialize(model: onnx.ModelProto) -> bytes:
    """The model's bytes; models over protobuf's 2 GiB are refused with what to do."""
    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise ModelError(
            "the model is larger than the 2 GiB a single ONNX file can hold; choose a smaller model or store its "
            "weights as float16"
        ) from error


def save(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write the model whole or not at all: a temporary file beside it, then a rename."""
    from onnxcam.errors import OutputError

    target = Path(path)
    data = serialize(model)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{target} cannot be written: {error.strerror}; choose another folder") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _looks_like(data: bytes) -> str:
    for magic, kind in (
        (b"PK\x03\x04", "a zip archive, as .keras, .pt2 and .pth files are: use `onnxcam export` on it"),
        (b"\x89HDF", "an HDF5 file, as .h5 models are: use `onnxcam export` on it"),
        (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
        (b"<", "an HTML or XML page: was a download page saved instead of the file?"),
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
    ):
        if data.startswith(magic):
            return f"it looks like {kind}"
    printable = sum(32 <= b < 127 or b in b"\r\n\t" for b in data[:512])
    return "it looks like a text file" if printable > 0.95 * len(data[:512]) else f"{len(data)} bytes of something else"
