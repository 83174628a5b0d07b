"""Weights that a model keeps in other files: which they are, and whether they may be read; without importing onnx.

ONNX Runtime opens such files by itself, hard links among them, and a model file is a stranger's word: a secret of the
user's, taken for weights, would come out as feature maps. So files are looked at before any session is made.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnxcam.errors import ModelError, TrustError
from onnxcam.graph.file import not_a_model, open_model

Data = bytes | mmap.mmap

# the fields of onnx.proto through which a tensor can be reached: message, field number, message within
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
_DEEPEST = 100  # as protobuf's own parsers


def locations(data: Data, where: str) -> list[str]:
    """The files that the tensors of a serialized model name, wherever in the model they stand.

    Raises:
        ModelError: not an ONNX model.
    """
    if data.find(b"location") < 0:  # the key under which a tensor names its file: hardly a model has it
        return []
    try:
        return list(dict.fromkeys(_walk(data, 0, len(data), "Model", 0)))
    except (ValueError, IndexError) as error:
        raise ModelError(not_a_model(bytes(data[:512]), where, len(data))) from error


def check(path: str | os.PathLike[str]) -> None:
    """Refuse a model whose weights lie anywhere but in plain files of their own beside it.

    Raises:
        TrustError: an absolute path, one that leaves the model's folder, a link of either kind, or no regular file.
        ModelError: not an ONNX model, or the file is not there.
    """
    path = Path(path)
    with open_model(path) as file:
        try:
            data: Data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # a file system without it
            data = file.read()
        try:
            named = locations(data, str(path))
        finally:
            if isinstance(data, mmap.mmap):
                data.close()
    for location in named:
        reason = _fault(path.parent, location)
        if reason:
            raise TrustError(
                f"{path}: external data is refused: {location!r} {reason}; keep it beside the model, a file of its own"
            )


def check_bytes(data: bytes, where: str = "the given bytes") -> None:
    """Refuse weights in another file where there is no path: nobody knows beside what.

    Raises:
        ModelError: such weights, or not an ONNX model.
    """
    named = locations(data, where)
    if named:
        raise ModelError(
            f"{where} keeps its weights in another file ({named[0]!r}); give the path of the model, or what "
            "`onnx.load(path)` returns"
        )


def _fault(folder: Path, location: str) -> str | None:
    """Why a file named by a tensor is not to be read; None where it may be."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        return "is an absolute path"
    if ".." in posix.parts or ".." in windows.parts:
        return "leaves the model's folder"
    if not location or "\0" in location:
        return "is no file's name"
    here = Path(os.path.realpath(folder))
    target = here / location
    if Path(os.path.realpath(target)) != target:
        return "is a symbolic link, or lies behind one"
    try:
        state = target.lstat()
    except OSError as error:
        raise ModelError(
            f"the weights {location!r} of a model in {str(folder)!r} cannot be read ({error.strerror}); copy them too"
        ) from error
    if not target.is_file():
        return "is not a regular file"
    if state.st_nlink > 1:
        return "has other names too (a hard link)"
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
    held = {1: b"", 2: b""}
    while at < end:
        tag, at = _varint(data, at, end)
        if tag % 8 != 2:
            raise ValueError("malformed entry")
        length, at = _varint(data, at, end)
        if at + length > end:
            raise ValueError("a field ends behind its message")
        held[tag // 8] = bytes(data[at : at + length])
        at += length
    if held[1] == b"location":
        yield held[2].decode("utf-8", "surrogateescape")


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
