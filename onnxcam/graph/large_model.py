"""Models over protobuf's limit of 2 GiB: the graph in one message, the weights as external data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

# each weight begins on a page of its own, as memory mapping needs
_ALIGNMENT = 4096


class LargeModel(NamedTuple):
    """A model that is too large for one file.

    Attributes:
        graph: a serialized model whose large tensors are external, all in one file.
        file: the name of that file.
        weights: the values of these tensors, by name, in the order of that file.
    """

    graph: bytes
    file: str
    weights: dict[str, np.ndarray]

    def sha256(self) -> str:
        """The digest of the graph and all weights."""
        digest = hashlib.sha256(self.graph)
        for array in self.weights.values():
            digest.update(array.data)
        return digest.hexdigest()


Serialized = bytes | LargeModel


def weights_path(path: Path) -> Path:
    """The path of the weights of a large model that is written to `path`."""
    return path.with_name(path.name + ".data")


def offsets(sizes: dict[str, int]) -> Iterator[tuple[str, int]]:
    """The name of each weight and its offset in the file, from names and sizes in bytes."""
    offset = 0
    for name, size in sizes.items():
        yield name, offset
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT


def write(model: Serialized, path: Path) -> None:
    """Write a model atomically: temporary files in the same folder, then renames.

    Raises:
        OSError: nothing was written; files of these names are unchanged.
    """
    data = path.with_name(model.file) if isinstance(model, LargeModel) else None
    parts = {file: file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in (data, path) if file is not None}
    try:
        if isinstance(model, LargeModel) and data is not None:
            with parts[data].open("wb") as file:
                for name, offset in offsets({name: array.nbytes for name, array in model.weights.items()}):
                    file.seek(offset)
                    file.write(model.weights[name].data)
        parts[path].write_bytes(model.graph if isinstance(model, LargeModel) else model)
        for final, part in parts.items():
            part.replace(final)
    except BaseException:  # also KeyboardInterrupt: writing takes seconds
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise
