"""Models over protobuf's limit of 2 GiB: the graph in one message, the weights as external data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onnxcam import files
from onnxcam.errors import OutputError

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


def write(model: Serialized, path: Path) -> int:
    """Write a model atomically, the weights of a large one next to it; returns the number of bytes.

    Raises:
        OutputError: nothing was written; files of these names are unchanged.
    """
    if not isinstance(model, LargeModel):
        return files.write_bytes(path, model)
    if not files.is_replaced(path):
        raise OutputError(
            f"{str(path)!r} could not be written (a model over 2 GiB is two files, and this is not a regular file); "
            "name a file"
        )
    with files.FileSet() as both:
        return both.write(path.with_name(model.file), _weights(model)) + both.write(path, [model.graph])


def _weights(model: LargeModel) -> Iterator[bytes | memoryview]:
    """The file of weights, each at its offset."""
    end = 0
    for name, offset in offsets({name: array.nbytes for name, array in model.weights.items()}):
        yield bytes(offset - end)
        yield model.weights[name].reshape(-1).view(np.uint8).data
        end = offset + model.weights[name].nbytes
