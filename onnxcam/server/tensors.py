"""Tensors as the Open Inference Protocol (v2) writes them: in JSON, and as the bytes of its binary data extension."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from onnxcam.errors import InputError

BYTES = "BYTES"
# the protocol's datatypes and NumPy's; BF16 has none
DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
_NAMES = {dtype: datatype for datatype, dtype in DATATYPES.items()}
_DEEPEST = 16  # dimensions of a tensor
_PREFIX = 4  # bytes of the length before each element of a BYTES tensor


def datatype(dtype: Any) -> str:
    """The protocol's name of a NumPy type."""
    name = np.dtype(dtype).name
    if name not in _NAMES:
        raise InputError(f"a tensor of {name} has no datatype in the Open Inference Protocol")
    return _NAMES[name]


def flatten(data: Sequence[Any], what: str) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of nested lists and their items, row by row.

    Raises:
        InputError: lists of different lengths or depths, or too many levels.
    """
    shape: list[int] = [len(data)]
    items = list(data)
    while items and isinstance(items[0], list):
        if set(map(type, items)) != {list}:
            raise InputError(f"{what} mixes lists and numbers at one level; expected lists of equal lengths")
        lengths = set(map(len, items))
        if len(lengths) > 1:
            raise InputError(
                f"{what} has lists of different lengths ({min(lengths)} and {max(lengths)}) at one level; a tensor has "
                "lists of equal lengths"
            )
        if len(shape) == _DEEPEST:
            raise InputError(f"{what} has more than {_DEEPEST} levels of lists; expected a tensor")
        shape.append(lengths.pop())
        items = list(chain.from_iterable(items))
    if list in set(map(type, items)):
        raise InputError(f"{what} mixes numbers and lists at one level; expected lists of equal lengths")
    return tuple(shape), items


def from_json(items: Sequence[Any], dtype: str, what: str) -> np.ndarray:
    """A flat array of numbers from JSON.

    Arguments:
        items: numbers, or truth values for a `bool` array.
        dtype: NumPy's name of the element type.

    Raises:
        InputError: other values, or one that the type cannot hold.
    """
    kinds: set[type] = set(map(type, items))
    kind = np.dtype(dtype).kind
    by_kind: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
    allowed = by_kind.get(kind, {int})
    if kinds - allowed:
        names = {bool: "truth values", int: "whole numbers", float: "fractions", str: "texts", type(None): "null"}
        other = ", ".join(sorted(names.get(one, one.__name__) for one in kinds - allowed))
        expected = {"b": "true or false", "f": "numbers"}.get(kind, "whole numbers")
        raise InputError(f"{what} holds {other}; {_NAMES[dtype]} takes {expected}")
    try:
        with np.errstate(over="ignore"):
            array = np.array(items, dtype)
    except (OverflowError, ValueError) as error:
        raise InputError(f"{what} holds a number that {_NAMES[dtype]} cannot hold") from error
    if kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{what} holds a number that {_NAMES[dtype]} cannot hold")
    return array


def check_shape(shape: Any, what: str) -> tuple[int, ...]:
    """The shape that a request states.

    Raises:
        InputError: it is not a list of whole numbers from 0, or a long one.
    """
    if not isinstance(shape, list) or any(type(side) is not int or side < 0 for side in shape):
        raise InputError(f"{what} has the shape {_brief(shape)}; expected a list of whole numbers from 0")
    if len(shape) > _DEEPEST:
        raise InputError(f"{what} has {len(shape)} dimensions; at most {_DEEPEST} are read")
    return tuple(shape)


def decode(entry: Mapping[str, Any], blob: memoryview | None, what: str) -> np.ndarray | list[Any]:
    """The tensor of one input of an inference request.

    Arguments:
        entry: `shape`, `datatype`, and `data` where there is no `blob`.
        blob: its bytes, of the binary data extension.
        what: its name in messages.

    Returns:
        an array of the shape stated; of BYTES a list of texts (from JSON) or `bytes` (from a blob).

    Raises:
        InputError: shape, datatype and data contradict each other, or one is unknown.
    """
    shape = check_shape(entry.get("shape"), what)
    name = entry.get("datatype")
    count = math.prod(shape)
    if name == BYTES:
        return _elements(blob, count, what) if blob is not None else _texts(_data(entry, shape, what), what)
    if not isinstance(name, str) or name not in DATATYPES:
        raise InputError(f"{what} has the datatype {_brief(name)}; expected one of {', '.join([*DATATYPES, BYTES])}")
    dtype = np.dtype(DATATYPES[name]).newbyteorder("<")
    if blob is None:
        return from_json(_data(entry, shape, what), DATATYPES[name], what).reshape(shape)
    if len(blob) != count * dtype.itemsize:
        raise InputError(
            f"{what} has binary data of {len(blob)} bytes; {name} of shape {list(shape)} takes {count * dtype.itemsize}"
        )
    if name == "BOOL" and len(blob) and np.frombuffer(blob, np.uint8).max() > 1:
        raise InputError(f"{what} has binary data of BOOL with a byte other than 0 and 1")
    # a copy: the bytes need not be aligned, and the body can go
    return np.frombuffer(blob, dtype).astype(DATATYPES[name]).reshape(shape)


def _data(entry: Mapping[str, Any], shape: tuple[int, ...], what: str) -> list[Any]:
    data = entry.get("data")
    if not isinstance(data, list):
        raise InputError(f"{what} has neither `data` (a list) nor binary data; give one of them")
    nested, items = flatten(data, what)
    if len(items) != math.prod(shape) or (len(nested) > 1 and nested != shape):
        stated = f"the shape {list(nested)}" if len(nested) > 1 else f"{len(items)} values"
        raise InputError(f"{what} has data of {stated}; its shape {list(shape)} takes {math.prod(shape)} values")
    return items


def _texts(items: list[Any], what: str) -> list[str]:
    if any(type(item) is not str for item in items):
        raise InputError(f"{what} holds other values than texts; {BYTES} in JSON takes texts")
    return items


def _elements(blob: memoryview, count: int, what: str) -> list[bytes]:
    """The elements of a BYTES tensor: each has its length before it, 4 bytes, the least significant first."""
    elements: list[bytes] = []
    start = 0
    while start < len(blob) and len(elements) <= count:
        length = int.from_bytes(blob[start : start + _PREFIX], "little")
        end = start + _PREFIX + length
        if len(blob) < end or len(blob) - start < _PREFIX:
            raise InputError(f"{what} has binary data that ends within an element")
        elements.append(bytes(blob[start + _PREFIX : end]))
        start = end
    if len(elements) != count or start != len(blob):
        raise InputError(f"{what} has another number of elements in its binary data than its shape says ({count})")
    return elements


def encode(name: str, array: np.ndarray, binary: bool) -> tuple[dict[str, Any], bytes]:
    """One output of an inference response, and its binary data (empty where the data is in JSON).

    Raises:
        InputError: it holds NaN or an infinity, and JSON has neither.
    """
    entry: dict[str, Any] = {"name": name, "datatype": datatype(array.dtype), "shape": list(array.shape)}
    if binary:
        blob = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
        return {**entry, "parameters": {"binary_data_size": len(blob)}}, blob
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"output {name!r} holds NaN or an infinity, which JSON cannot express; request it as binary data "
            "(`binary_data`: true)"
        )
    # float32 in its own digits, not in those of the float64 that is equal to it
    data = np.ascontiguousarray(array).ravel()
    return {**entry, "data": data.astype(np.float32) if data.dtype == np.float16 else data}, b""


def _brief(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
