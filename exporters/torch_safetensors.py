"""Files of safetensors: a length, a header in JSON, and the tensors' bytes. https://github.com/huggingface/safetensors"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onnxcam import documents
from onnxcam.errors import ModelError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LONGEST = 16 << 20  # bytes of the header; the format allows 100,000,000, and 10,000 tensors take one million


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Raises:
        ModelError: it is cut off, damaged, or has an element type that PyTorch models are not saved in.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_LONGEST, size - 8):
            raise _damaged(path, f"its header would have {length:,} of {size:,} bytes")
        try:
            header = documents.parse_json(file.read(length))
        except ValueError as error:
            raise _damaged(path, f"its header {error}") from error
        start = file.tell()
        entries = {} if not isinstance(header, dict) else {k: v for k, v in header.items() if k != "__metadata__"}
        if not entries:
            raise _damaged(path, "it holds no tensors")
        places = {name: _entry(path, name, entry, size - start) for name, entry in entries.items()}
        if sum(last - first for _, _, (first, last) in places.values()) > size - start:
            raise _damaged(path, "its tensors overlap")
        tensors = {}
        for name, (kind, shape, (first, last)) in places.items():
            file.seek(start + first)
            data = bytearray(file.read(last - first))
            empty = torch.empty(shape, dtype=kind)
            tensors[name] = torch.frombuffer(data, dtype=kind).reshape(shape) if data else empty
    return tensors


def _entry(path: Path, name: str, entry: Any, available: int) -> tuple[torch.dtype, list[int], tuple[int, int]]:
    """Element type, shape and place of a tensor, checked against the file."""
    fields = entry if isinstance(entry, dict) else {}
    kind = _DTYPES.get(str(fields.get("dtype")))
    if kind is None:
        raise ModelError(
            f"{path}: tensor {name!r} has the element type {fields.get('dtype')!r}; expected {', '.join(_DTYPES)}"
        )
    shape, place = fields.get("shape"), fields.get("data_offsets")
    whole = all(isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in (shape, place))
    if not whole or not isinstance(shape, list) or not isinstance(place, list) or len(place) != 2:
        raise _damaged(path, f"the entry of tensor {name!r}")
    if not place[0] <= place[1] <= available or place[1] - place[0] != math.prod(shape) * kind.itemsize:
        raise _damaged(path, f"tensor {name!r} does not lie within the file")
    return kind, shape, (place[0], place[1])


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} is not a readable safetensors file ({what}); was the copy cut off?")
