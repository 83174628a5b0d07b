"""Reads a model from a path, bytes or a `ModelProto`, and refuses what is not a usable ONNX file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, helper

from onnxcam.errors import ModelError, OutputError, TrustError
from onnxcam.graph import external_data, large_model, validation
from onnxcam.graph.file import not_a_model, read
from onnxcam.graph.large_model import LargeModel, Serialized, places

Source = str | os.PathLike[str] | Serialized | onnx.ModelProto

LARGEST = 2**31 - 1  # bytes that one message of protobuf can have
# of a large model: bytes from which on a tensor lies beside the graph, of types that numpy knows
_WEIGHTY = 1024
_PLAIN = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8}


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
        validation.validate(model)
        return model
    if isinstance(source, LargeModel):
        return _together(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        model = parse(data, "the given bytes")
        external_data.check_bytes(data)
        validation.validate(model)
        return model
    path = Path(source)
    model = parse(read(path), str(path))
    external_data.check(path)
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
    validation.validate(model)
    return model


def _require_whole(model: onnx.ModelProto) -> None:
    """Refuse weights in another file: without a path nobody knows beside what, and the working folder is a guess."""
    for tensor in validation.tensors([model.graph, *model.functions]):
        if tensor.data_location == TensorProto.EXTERNAL:
            # one entry is enough to say, and a whole model may be too large to serialize
            bare = onnx.ModelProto()
            bare.graph.initializer.add(data_location=tensor.data_location, external_data=tensor.external_data)
            external_data.check_bytes(bare.SerializeToString(), "the given ModelProto")


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


def serialize(model: onnx.ModelProto, data_file: str = "weights") -> Serialized:
    """The model's bytes; of one over protobuf's 2 GiB the graph and the weights.

    Arguments:
        data_file: what the graph of a large model calls the file of its weights.

    Raises:
        ModelError: over 2 GiB even without its weights.
    """
    try:
        data = bytes(model.SerializeToString())
    except (EncodeError, ValueError):
        return _apart(model, data_file)
    return data if len(data) <= LARGEST else _apart(model, data_file)


def _apart(model: onnx.ModelProto, data_file: str) -> LargeModel:
    weights = {
        tensor.name: np.frombuffer(tensor.raw_data, helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(
            tensor.dims
        )
        for tensor in model.graph.initializer
        if tensor.data_type in _PLAIN and len(tensor.raw_data) >= _WEIGHTY
    }
    at = dict(places({name: array.nbytes for name, array in weights.items()}))
    bare = onnx.ModelProto()
    _copy_but(model, bare, "graph")
    _copy_but(model.graph, bare.graph, "initializer")
    for tensor in model.graph.initializer:
        if tensor.name not in weights:
            bare.graph.initializer.append(tensor)
            continue
        named = bare.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        named.data_location = TensorProto.EXTERNAL
        size = weights[tensor.name].nbytes
        for key, value in (("location", data_file), ("offset", at[tensor.name]), ("length", size)):
            named.external_data.add(key=key, value=str(value))
    try:
        graph = bytes(bare.SerializeToString())
    except (EncodeError, ValueError):
        graph = None
    if not weights or graph is None:
        raise ModelError(
            "the model is larger than the 2 GiB a graph can hold, even without its weights; fold fewer constants into "
            "it, or choose a smaller model"
        )
    return LargeModel(graph, data_file, weights)


def _copy_but(message: Any, copy: Any, left_out: str) -> None:
    """Copy the fields of a protobuf message, all but one."""
    for field, value in message.ListFields():
        if field.name == left_out:
            continue
        if isinstance(value, (str, bytes, int)):
            setattr(copy, field.name, value)
        elif hasattr(value, "extend"):
            getattr(copy, field.name).extend(value)
        else:
            getattr(copy, field.name).CopyFrom(value)


def _together(held: LargeModel) -> onnx.ModelProto:
    model = parse(held.graph, "the model")
    for tensor in model.graph.initializer:
        if tensor.name in held.weights:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = held.weights[tensor.name].tobytes()
    return model


def save(model: onnx.ModelProto, path: str | os.PathLike[str]) -> None:
    """Write the model whole or not at all: a temporary file beside it, then a rename.

    One over 2 GiB becomes two files that stay together, the second called like the first with `.data` behind it.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    try:
        large_model.write(serialize(model, large_model.beside(target).name), target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}; choose another folder") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
