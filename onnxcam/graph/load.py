"""Reads a model from a path, bytes or a `ModelProto`, and refuses what is not a usable ONNX file."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from onnxcam.errors import ModelError, OutputError, TrustError
from onnxcam.graph import external, wellformed
from onnxcam.graph.file import not_a_model, read

Source = str | os.PathLike[str] | bytes | onnx.ModelProto


def load(source: Source) -> onnx.ModelProto:
    """A `ModelProto` of the caller's own: editing it leaves the source alone.

    Arguments:
        source: path to an `.onnx` file (external data beside it is read), its bytes, or a `ModelProto` (copied).

    Raises:
        ModelError: not there, empty, not an ONNX model, or bytes or a `ModelProto` whose weights lie in another file.
        TrustError: external data that lies outside the model's folder.
    """
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        _require_whole(source)
        model.CopyFrom(source)
        wellformed.require(model)
        return model
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        model = parse(data, "the given bytes")
        external.check_bytes(data)
        wellformed.require(model)
        return model
    path = Path(source)
    model = parse(read(path), str(path))
    external.check(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except onnx.checker.ValidationError as error:
        raise TrustError(f"{path}: external data is refused: {_first_line(error)}; keep it beside the model") from error
    except OSError as error:
        raise ModelError(f"{path}: its external data cannot be read ({_first_line(error)}); copy it too") from error
    except (ValueError, OverflowError) as error:
        raise ModelError(
            f"{path}: where its external data lies cannot be understood ({_first_line(error)}); export it again"
        ) from error
    wellformed.require(model)
    return model


def _require_whole(model: onnx.ModelProto) -> None:
    """Refuse weights in another file: without a path nobody knows beside what, and the working folder is a guess."""
    for tensor in wellformed.tensors([model.graph, *model.functions]):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            # one entry is enough to say, and a whole model may be too large to serialize
            bare = onnx.ModelProto()
            bare.graph.initializer.add(data_location=tensor.data_location, external_data=tensor.external_data)
            external.check_bytes(bare.SerializeToString(), "the given ModelProto")


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """Decode a serialized model and check that it is one."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(not_a_model(data, where)) from error
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError(not_a_model(data, where))
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
    target = Path(path)
    data = serialize(model)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{target} cannot be written: {error.strerror}; choose another folder") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
