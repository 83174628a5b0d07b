"""Model files: opening one, and reading its metadata without importing onnx or reading its weights."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from onnxcam import files
from onnxcam.errors import ModelError
from onnxcam.graph.large_model import LargeModel, Serialized

_METADATA_FIELD = 14  # ModelProto.metadata_props
_GRAPH_FIELD = 7  # ModelProto.graph
_LENGTH_DELIMITED = 2
_MOST_FIELDS = 100_000  # of a ModelProto itself: metadata, imports and functions
_LARGEST_METADATA = 32 << 20  # bytes; a manifest with 21,000 labels has one million


def read(path: str | os.PathLike[str]) -> bytes:
    """Read a model file.

    Raises:
        ModelError: no such file, an empty one, a folder, or one that cannot be read.
    """
    path = Path(path)
    with open_model(path) as file:
        return file.read()


def open_model(path: Path) -> BinaryIO:
    """Open a model file, which is not empty.

    Raises:
        ModelError: no such file, an empty one, a folder, or one that cannot be read.
    """
    try:
        state = path.stat()
        if stat.S_ISDIR(state.st_mode):
            raise ModelError(f"{path} is a folder; expected an ONNX file")
        if not stat.S_ISREG(state.st_mode):
            raise ModelError(
                f"{path} is {files.kind(state.st_mode)}, and a model is read more than once; save it as a file first"
            )
        if not state.st_size:
            raise ModelError(f"{path} is empty (0 bytes); expected an ONNX model: was the export or the copy cut off?")
        return path.open("rb")
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; expected an ONNX model") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def metadata(source: str | os.PathLike[str] | Serialized) -> dict[str, str]:
    """Read the `metadata_props` of a model by walking the file's top-level fields.

    Raises:
        ModelError: no such file, an empty one, or not an ONNX model.
    """
    if isinstance(source, LargeModel):
        source = source.graph
    if isinstance(source, bytes):
        where, file = "the given bytes", io.BytesIO(source)
        return _walk(file, len(source), where)
    path = Path(source)
    with open_model(path) as opened:
        return _walk(opened, path.stat().st_size, str(path))


def graph_bytes(source: str | os.PathLike[str] | Serialized) -> int:
    """Read how many bytes a model's graph has, by walking the file's top-level fields.

    Raises:
        ModelError: as of `metadata`.
    """
    lengths: list[int] = []
    if isinstance(source, LargeModel):
        source = source.graph
    if isinstance(source, bytes):
        _walk(io.BytesIO(source), len(source), "the given bytes", lengths)
    else:
        path = Path(source)
        with open_model(path) as opened:
            _walk(opened, path.stat().st_size, str(path), lengths)
    return sum(lengths)


def _walk(file: BinaryIO, size: int, where: str, graphs: list[int] | None = None) -> dict[str, str]:
    """The metadata; with `graphs` also the lengths of graphs, which are added to it."""
    properties: dict[str, str] = {}
    has_graph, stored, count = False, 0, 0
    try:
        while file.tell() < size:
            field, wire = divmod(_varint(file), 8)
            count += 1
            if not field or count > _MOST_FIELDS:
                raise ValueError("no field has this number" if not field else "too many fields")
            if wire == _LENGTH_DELIMITED:
                length = _varint(file)
                if file.tell() + length > size:
                    raise ValueError("a field ends behind the end of the file")
                if field == _METADATA_FIELD:
                    stored += length
                    if stored > _LARGEST_METADATA:
                        raise ModelError(
                            f"{where} has more than {_LARGEST_METADATA >> 20} MiB of metadata; remove what is not "
                            "needed from its metadata_props"
                        )
                    key, value = _entry(file.read(length))
                    properties[key] = value
                else:
                    has_graph |= field == _GRAPH_FIELD
                    if graphs is not None and field == _GRAPH_FIELD:
                        graphs.append(length)
                    file.seek(length, os.SEEK_CUR)
            elif wire == 0:
                _varint(file)
            elif wire in (1, 5):
                file.seek(8 if wire == 1 else 4, os.SEEK_CUR)
            else:
                raise ValueError(f"wire type {wire}")
        if not has_graph:
            raise ValueError("no graph")
    except (ValueError, UnicodeDecodeError) as error:
        file.seek(0)
        raise ModelError(not_a_model(file.read(512), where, size)) from error
    return properties


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = file.read(1)
        if not byte or shift > 63:
            raise ValueError("a number is cut off")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7


def _entry(data: bytes) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    file = io.BytesIO(data)
    pair = {1: "", 2: ""}
    while file.tell() < len(data):
        field, wire = divmod(_varint(file), 8)
        if wire != _LENGTH_DELIMITED:
            raise ValueError("malformed metadata")
        length = _varint(file)
        if file.tell() + length > len(data):
            raise ValueError("malformed metadata")
        pair[field] = file.read(length).decode()
    return pair[1], pair[2]


def not_a_model(start: bytes, where: str, size: int | None = None) -> str:
    """The message for data that is not an ONNX model; it says what the data looks like, and the next step."""
    from onnxcam.graph import formats

    likeness = formats.describe(start, where, size)
    return f"{where} is not an ONNX model ({likeness}); expected the output of an ONNX exporter"
