"""Models over the 2 GiB that protobuf can write: the graph in one piece, the weights beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

# what is looked up by its place in a file lies on a page of its own
_ALIGNED = 4096


class LargeModel(NamedTuple):
    """A model that is too large for one file.

    Attributes:
        graph: a serialized model whose large tensors name one file, each with its place there.
        file: the name of that file.
        weights: what these tensors hold, by name, in the order of that file.
    """

    graph: bytes
    file: str
    weights: dict[str, np.ndarray]

    def sha256(self) -> str:
        """Of the graph and of all weights."""
        found = hashlib.sha256(self.graph)
        for array in self.weights.values():
            found.update(array.data)
        return found.hexdigest()


Serialized = bytes | LargeModel


def beside(path: Path) -> Path:
    """The file of the weights that goes with a large model's file."""
    return path.with_name(path.name + ".data")


def places(sizes: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Where in one file the weights lie, by name: the offset of each."""
    at = 0
    for name, size in sizes.items():
        yield name, at
        at += -(-size // _ALIGNED) * _ALIGNED


def write(model: Serialized, path: Path) -> None:
    """Write a model whole or not at all: temporary files beside it, then renames.

    Raises:
        OSError: nothing was written, what was there is still there.
    """
    data = path.with_name(model.file) if isinstance(model, LargeModel) else None
    parts = {file: file.with_name(f".{file.name}.{os.getpid()}.tmp") for file in (data, path) if file is not None}
    try:
        if isinstance(model, LargeModel) and data is not None:
            with parts[data].open("wb") as file:
                for name, at in places({name: array.nbytes for name, array in model.weights.items()}):
                    file.seek(at)
                    file.write(model.weights[name].data)
        parts[path].write_bytes(model.graph if isinstance(model, LargeModel) else model)
        for final, part in parts.items():
            part.replace(final)
    except BaseException:  # an interrupt too: so many bytes take a while
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise
