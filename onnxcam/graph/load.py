"""Reading a model from a path, bytes or a `ModelProto`, with checks that it is a usable ONNX model; writing one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, helper

from onnxcam.errors import ModelError, TrustError
from onnxcam.graph import external_data, large_model, validation
from onnxcam.graph.file import not_a_model, read
from onnxcam.graph.large_model import LargeModel, Serialized, offsets

Source = str | os.PathLike[str] | Serialized | onnx.ModelProto

LARGEST = 2**31 - 1  # bytes: protobuf's limit for one message
# tensors of a large model that become external: at least this many bytes, of these types
_SMALLEST_EXTERNAL = 1024
_EXTERNAL_TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8}


def load(source: Source) -> onnx.ModelProto:
    """Load a model as a `ModelProto` that the caller may edit; the source stays unchanged.

    Arguments:
        source: path to an `.onnx` file (external data in its folder is read), its bytes, or a `ModelProto` (copied).

    Raises:
        ModelError: missing, empty, not an ONNX model, or bytes or a `ModelProto` with external data.
        TrustError: external data outside the model's folder.
    """
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        _require_no_external_data(source)
        model.CopyFrom(source)
        validation.validate(model)
        return model
    if isinstance(source, LargeModel):
        return _join(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        model = parse(data, "the given bytes")
        external_data.check_bytes(data)
        validation.validate(model)
        return model
    if not isinstance(source, (str, os.PathLike)):
        raise ModelError(f"a {type(source).__name__} is not a model; pass a path, bytes or a ModelProto")
    path = Path(source)
    model = parse(read(path), str(path))
    external_data.check(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except onnx.checker.ValidationError as error:
        raise TrustError(
            f"{path}: external data is refused: {_first_line(error)}; store it in the model's folder"
        ) from error
    except OSError as error:
        raise ModelError(
            f"{path}: its external data cannot be read ({_first_line(error)}); copy it to the model's folder"
        ) from error
    except (ValueError, OverflowError) as error:
        raise ModelError(
            f"{path}: the location of its external data is invalid ({_first_line(error)}); export it again"
        ) from error
    validation.validate(model)
    return model


def _require_no_external_data(model: onnx.ModelProto) -> None:
    """Refuse a `ModelProto` with external data: its folder is unknown, and the working folder would be a guess."""
    for tensor in validation.tensors([model.graph, *model.functions]):
        if tensor.data_location == TensorProto.EXTERNAL:
            # one tensor is enough for the message, and the whole model may be too large to serialize
            bare = onnx.ModelProto()
            bare.graph.initializer.add(data_location=tensor.data_location, external_data=tensor.external_data)
            external_data.check_bytes(bare.SerializeToString(), "the given ModelProto")


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """Decode a serialized model.

    Raises:
        ModelError: it is not an ONNX model.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(not_a_model(data, where)) from error
    if not model.HasField("graph") or not model.graph.node:
        raise ModelError(not_a_model(data, where))
    return model


def serialize(model: onnx.ModelProto, data_file: str = "weights") -> Serialized:
    """Serialize a model to bytes; a model over protobuf's limit of 2 GiB to its graph and weights.

    Arguments:
        data_file: the name of a large model's file of weights.

    Raises:
        ModelError: the graph is over 2 GiB without the weights.
    """
    try:
        data = bytes(model.SerializeToString())
    except (EncodeError, ValueError):
        return _split(model, data_file)
    return data if len(data) <= LARGEST else _split(model, data_file)


def _split(model: onnx.ModelProto, data_file: str) -> LargeModel:
    """Split a model into its graph and its large weights."""
    weights = {
        tensor.name: np.frombuffer(tensor.raw_data, helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(
            tensor.dims
        )
        for tensor in model.graph.initializer
        if tensor.data_type in _EXTERNAL_TYPES and len(tensor.raw_data) >= _SMALLEST_EXTERNAL
    }
    offset = dict(offsets({name: array.nbytes for name, array in weights.items()}))
    bare = onnx.ModelProto()
    _copy_except(model, bare, "graph")
    _copy_except(model.graph, bare.graph, "initializer")
    for tensor in model.graph.initializer:
        if tensor.name not in weights:
            bare.graph.initializer.append(tensor)
            continue
        external = bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        external.data_location = TensorProto.EXTERNAL
        size = weights[tensor.name].nbytes
        for key, value in (("location", data_file), ("offset", offset[tensor.name]), ("length", size)):
            external.external_data.add(key=key, value=str(value))
    try:
        graph = bytes(bare.SerializeToString())
    except (EncodeError, ValueError):
        graph = None
    if not weights or graph is None:
        raise ModelError(
            "the model's graph is larger than protobuf's limit of 2 GiB even without its weights; export it without "
            "folding constants, or choose a smaller model"
        )
    return LargeModel(graph, data_file, weights)


def _copy_except(message: Any, copy: Any, omitted: str) -> None:
    """Copy all fields of a protobuf message but one."""
    for field, value in message.ListFields():
        if field.name == omitted:
            continue
        if isinstance(value, (str, bytes, int)):
            setattr(copy, field.name, value)
        elif hasattr(value, "extend"):
            getattr(copy, field.name).extend(value)
        else:
            getattr(copy, field.name).CopyFrom(value)


def _join(large: LargeModel) -> onnx.ModelProto:
    """Put the weights of a large model back into its graph."""
    model = parse(large.graph, "the model")
    for tensor in model.graph.initializer:
        if tensor.name in large.weights:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = large.weights[tensor.name].tobytes()
    return model


def save(model: onnx.ModelProto, path: str | os.PathLike[str]) -> int:
    """Write a model atomically, see `onnxcam.files`; returns the number of bytes.

    A model over 2 GiB becomes two files that belong together, `path` and `path` with `.data` appended.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    return large_model.write(serialize(model, large_model.weights_path(target).name), target)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
