"""Tensors of the Open Inference Protocol: round trips against NumPy, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcam.errors import InputError
from onnxcam.server import tensors
from tests.support.examples import examples


def parsed(name: str, array: np.ndarray, binary: bool) -> Any:
    """An array through an output's entry and back through an input's, as a client that echoes it would."""
    entry, blob = tensors.encode(name, array, binary)
    if "data" in entry:
        entry["data"] = json.loads(json.dumps(entry["data"].tolist()))
    return tensors.decode(entry, memoryview(blob) if binary else None, "input 'x'")


@examples(60)
@given(data=st.data(), binary=st.booleans(), datatype=st.sampled_from(sorted(tensors.DATATYPES)))
def test_round_trip(data: st.DataObject, binary: bool, datatype: str) -> None:
    dtype = np.dtype(tensors.DATATYPES[datatype])
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
    array = data.draw(hnp.arrays(dtype, shapes, elements=finite or None))
    back = parsed("x", array, binary)
    assert back.dtype == dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes() or np.array_equal(back, array)


def test_binary_data_need_not_be_aligned() -> None:
    array = np.arange(6, dtype=np.float32)
    body = memoryview(b"{" + array.tobytes())
    entry = {"shape": [2, 3], "datatype": "FP32"}
    back = tensors.decode(entry, body[1:], "input 'x'")
    assert isinstance(back, np.ndarray) and back.flags.aligned and back.flags.writeable
    np.testing.assert_array_equal(back, array.reshape(2, 3))


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_flat_and_nested(data: list[Any]) -> None:
    back = tensors.decode({"shape": [2, 3], "datatype": "INT64", "data": data}, None, "input 'x'")
    np.testing.assert_array_equal(back, [[1, 2, 3], [4, 5, 6]])


def test_bytes_elements() -> None:
    elements = [b"", b"\xff\xd8", b"longer than the others"]
    blob = b"".join(len(one).to_bytes(4, "little") + one for one in elements)
    entry = {"shape": [3], "datatype": "BYTES"}
    assert tensors.decode(entry, memoryview(blob), "input 'x'") == elements
    assert tensors.decode({**entry, "data": ["a", "b", "c"]}, None, "input 'x'") == ["a", "b", "c"]
    for wrong in (blob[:-1], blob + b"\0", blob[:2], blob + (9).to_bytes(4, "little"), b""):
        with pytest.raises(InputError, match="binary data"):
            tensors.decode(entry, memoryview(wrong), "input 'x'")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"shape": [2], "datatype": "FP32", "data": [1]}, "has data of 1 values; its shape .2. takes 2"),
        ({"shape": [3, 2], "datatype": "FP32", "data": [[1, 2, 3], [4, 5, 6]]}, r"data of the shape \[2, 3\]"),
        ({"shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3]]}, "different lengths"),
        ({"shape": [2, 2], "datatype": "FP32", "data": [[1, 2], 3]}, "mixes lists and numbers"),
        ({"shape": [2, 2], "datatype": "FP32", "data": [1, [2, 3]]}, "mixes numbers and lists"),
        ({"shape": [1], "datatype": "FP32", "data": [True]}, "holds truth values; FP32 takes numbers"),
        ({"shape": [1], "datatype": "FP32", "data": [None]}, "holds null"),
        ({"shape": [1], "datatype": "FP32", "data": ["1"]}, "holds texts"),
        ({"shape": [1], "datatype": "FP32", "data": [1e39]}, "FP32 cannot hold"),
        ({"shape": [1], "datatype": "INT64", "data": [1.5]}, "holds fractions; INT64 takes whole numbers"),
        ({"shape": [1], "datatype": "UINT8", "data": [256]}, "UINT8 cannot hold"),
        ({"shape": [1], "datatype": "UINT8", "data": [-1]}, "UINT8 cannot hold"),
        ({"shape": [1], "datatype": "BOOL", "data": [1]}, "BOOL takes true or false"),
        ({"shape": [1], "datatype": "BF16", "data": [1]}, "datatype 'BF16'; expected one of"),
        ({"shape": [1], "datatype": ["FP32"], "data": [1]}, "datatype"),
        ({"shape": [1], "data": [1]}, "datatype None"),
        ({"datatype": "FP32", "data": [1]}, "shape None"),
        ({"shape": [-1], "datatype": "FP32", "data": [1]}, "whole numbers from 0"),
        ({"shape": [True], "datatype": "FP32", "data": [1]}, "whole numbers from 0"),
        ({"shape": [1.0], "datatype": "FP32", "data": [1]}, "whole numbers from 0"),
        ({"shape": [1] * 17, "datatype": "FP32", "data": [1]}, "17 dimensions"),
        ({"shape": [1], "datatype": "FP32"}, "neither `data`"),
        ({"shape": [1], "datatype": "FP32", "data": "1"}, "neither `data`"),
        ({"shape": [2**40, 2**40], "datatype": "FP32", "data": [1]}, "takes 1208925819614629174706176 values"),
    ],
)
def test_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tensors.decode(entry, None, "input 'x'")


def test_deep_lists_are_refused() -> None:
    data: Any = [1]
    for _ in range(20):
        data = [data]
    with pytest.raises(InputError, match="more than 16 levels"):
        tensors.decode({"shape": [1], "datatype": "FP32", "data": data}, None, "input 'x'")


@pytest.mark.parametrize(("name", "size"), [("FP32", 7), ("BOOL", 3), ("INT64", 8)])
def test_binary_data_of_another_size(name: str, size: int) -> None:
    with pytest.raises(InputError, match=f"binary data of {size} bytes"):
        tensors.decode({"shape": [2], "datatype": name}, memoryview(bytes(size)), "input 'x'")


def test_binary_truth_values() -> None:
    with pytest.raises(InputError, match="other than 0 and 1"):
        tensors.decode({"shape": [2], "datatype": "BOOL"}, memoryview(b"\1\2"), "input 'x'")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_never_null(value: float) -> None:
    array = np.array([1, value], np.float32)
    with pytest.raises(InputError, match="NaN or an infinity"):
        tensors.encode("logits", array, False)
    entry, blob = tensors.encode("logits", array, True)
    assert entry["parameters"] == {"binary_data_size": 8} and blob == array.tobytes()


def test_types_without_a_name() -> None:
    with pytest.raises(InputError, match="complex64"):
        tensors.datatype(np.complex64)
