"""External data: the files in which a model stores weights, and whether they may be read; without importing onnx.

ONNX Runtime opens such files by itself, hard links included, and a model file may be malicious: a private file of the
user's, loaded as weights, would be disclosed through feature maps. So the files are checked before a session is opened.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnxcam.errors import ModelError, TrustError
from onnxcam.graph.file import not_a_model, open_model

Data = bytes | mmap.mmap

# the fields of onnx.proto that lead to a tensor: message, field number, message within
_WITHIN = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_DEEPEST = 100  # the limit of protobuf's own parsers


def locations(data: Data, where: str) -> list[str]:
    """Return the file names of all external tensors of a serialized model, those of its subgraphs included.

    Raises:
        ModelError: not an ONNX model.
    """
    if data.find(b"location") < 0:  # the key under which a tensor names its file: absent from most models
        return []
    try:
        return list(dict.fromkeys(_walk(data, 0, len(data), "Model", 0)))
    except (ValueError, IndexError) as error:
        raise ModelError(not_a_model(bytes(data[:512]), where, len(data))) from error


def check(path: str | os.PathLike[str]) -> None:
    """Refuse a model with external data anywhere but in regular files in its own folder.

    Raises:
        TrustError: an absolute path, one outside the model's folder, a symbolic or hard link, or not a regular file.
        ModelError: not an ONNX model, or the file is missing.
    """
    path = Path(path)
    with open_model(path) as file:
        try:
            data: Data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # a file system without mmap
            data = file.read()
        try:
            files = locations(data, str(path))
        finally:
            if isinstance(data, mmap.mmap):
                data.close()
    for location in files:
        reason = _fault(path.parent, location)
        if reason:
            raise TrustError(
                f"{path}: external data is refused: {location!r} {reason}; store it as a regular file in the model's "
                "folder"
            )


def check_bytes(data: bytes, where: str = "the given bytes") -> None:
    """Refuse a model without a path that has external data, as there is no folder to look in.

    Raises:
        ModelError: the model has external data, or is not an ONNX model.
    """
    files = locations(data, where)
    if files:
        raise ModelError(
            f"{where} stores its weights in another file ({files[0]!r}); give the path of the model, or the result of "
            "`onnx.load(path)`"
        )


def _fault(folder: Path, location: str) -> str | None:
    """Why a file named by a tensor must not be read; None if it may be."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        return "is an absolute path"
    if ".." in posix.parts or ".." in windows.parts:
        return "is outside the model's folder"
    if not location or "\0" in location:
        return "is not a file name"
    here = Path(os.path.realpath(folder))
    target = here / location
    if Path(os.path.realpath(target)) != target:
        return "is a symbolic link, or in a folder that is one"
    try:
        state = target.lstat()
    except OSError as error:
        raise ModelError(
            f"the weights {location!r} of a model in {str(folder)!r} cannot be read ({error.strerror}); copy that file "
            "to the model's folder"
        ) from error
    if not target.is_file():
        return "is not a regular file"
    if state.st_nlink > 1:
        return "has other names too (hard links)"
    return None


def _walk(data: Data, at: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    within = _WITHIN[kind]
    while at < end:
        tag, at = _varint(data, at, end)
        field, wire = divmod(tag, 8)
        if wire == 2:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise ValueError("a field ends behind its message")
            inner = within.get(field)
            if inner == "Entry":
                yield from _location(data, at, at + length)
            elif inner is not None:
                yield from _walk(data, at, at + length, inner, depth + 1)
            at += length
        elif wire == 0:
            _, at = _varint(data, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")


def _location(data: Data, at: int, end: int) -> Iterator[str]:
    """The value of a StringStringEntryProto whose key is `location`."""
    entry = {1: b"", 2: b""}
    while at < end:
        tag, at = _varint(data, at, end)
        if tag % 8 != 2:
            raise ValueError("malformed entry")
        length, at = _varint(data, at, end)
        if at + length > end:
            raise ValueError("a field ends behind its message")
        entry[tag // 8] = bytes(data[at : at + length])
        at += length
    if entry[1] == b"location":
        yield entry[2].decode("utf-8", "surrogateescape")


def _varint(data: Data, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number is cut off")
