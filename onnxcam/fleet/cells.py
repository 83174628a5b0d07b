"""What a column of pictures holds: bytes, paths, arrays, PIL images, or dictionaries of bytes and path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from onnxcam.errors import InputError, PictureError


def cells(values: Any, name: str) -> Iterator[Any]:
    """The pictures of a column, one by one.

    Arguments:
        values: the column: an array, a list, a pandas `Series` or an Arrow array.
        name: of the column, for messages.

    Raises:
        InputError: a NumPy array of fixed-width bytes.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":
        raise InputError(
            f"column {name!r} is a NumPy array of fixed-width bytes ({values.dtype}), which drops the zeros at a "
            "picture's end; make it an object array: np.array(pictures, dtype=object)"
        )
    if hasattr(values, "combine_chunks"):  # a pyarrow.ChunkedArray
        for chunk in values.chunks:
            yield from cells(chunk, name)
    elif hasattr(values, "to_pylist") and hasattr(values, "type"):
        yield from _arrow_cells(values)
    else:
        yield from values


def _arrow_cells(values: Any) -> Iterator[Any]:
    if hasattr(values, "storage"):  # an extension type, such as Ray's tensors
        yield from values.to_numpy(zero_copy_only=False)
    else:
        for value in values:
            yield value.as_py()


def picture(cell: Any) -> Any:
    """A cell as what `Explainer` takes for a picture.

    Raises:
        PictureError: it is null, or cannot be a picture.
    """
    if isinstance(cell, Mapping):  # as Hugging Face's datasets store pictures
        named = [cell[key] for key in ("bytes", "path") if cell.get(key) is not None]
        if not named:
            raise PictureError(
                f"the cell is a struct of {', '.join(map(repr, cell)) or 'nothing'}; expected bytes or path"
            )
        cell = named[0]
    if cell is None or (isinstance(cell, float) and cell != cell) or type(cell).__name__ in ("NAType", "NaTType"):
        raise PictureError("the cell is null; expected a picture: encoded bytes, a path or an array")
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell) if not isinstance(cell, bytes) else cell
    if isinstance(cell, str):
        if not cell.strip():
            raise PictureError("the cell is an empty text; expected a picture: encoded bytes, a path or an array")
        return str(cell)
    if isinstance(cell, os.PathLike) or hasattr(cell, "convert"):
        return cell
    if isinstance(cell, np.ndarray) and cell.ndim:
        return cell
    raise PictureError(
        f"the cell is a {type(cell).__name__}; expected a picture: encoded bytes, a path, a PIL image or a uint8 array "
        "[H, W, 3]"
    )
