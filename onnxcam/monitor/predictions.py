"""Observed predictions: a caller's batch, and copies of its rows for the queue."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.errors import InputError

# bytes of a row besides its arrays, encoded picture and names: the objects themselves, the condition's quantities
OVERHEAD = 1024
COLUMNS = "onnxcam/columns"  # name of `Row.columns` among a row's arrays, beside which there are names of a graph
SCORE = np.dtype(np.float32).itemsize  # bytes of one class's probability in a row


@dataclass(frozen=True, eq=False)
class Row:
    """One prediction to be explained.

    Attributes:
        observed: when it was predicted, seconds since 1970.
        queued: the same on the monotonic clock.
        probabilities: `[classes]`, of the serving model.
        quantities: the values a condition can refer to: confidence, margin, entropy, label; with a calibration
            calibrated and set.
        reason: `condition`, or `baseline` for one of the sample of confident rows.
        sample: the probability with which such a row is sampled.
        size: bytes it takes in the queue.
        tensor: the model's input, one row `[1, …]`; or
        picture: a path, encoded bytes, or a uint8 array; and
        features: the inputs of the tail by name, where the serving model outputs them.
        shape: of the tensor, even if that is not copied.
        prediction_set: as in a record's `prediction.set`; None without a calibration.
        columns: the observed numbers of a detector or segmentation, `[columns]`; None of a classifier.
    """

    observed: float
    queued: float
    probabilities: np.ndarray
    quantities: Mapping[str, float]
    reason: str
    sample: float
    size: int
    request: str | None = None
    trace: str | None = None
    tensor: np.ndarray | None = None
    picture: Any = None
    features: dict[str, np.ndarray] | None = None
    shape: tuple[int, ...] | None = None
    prediction_set: Mapping[str, Any] | None = None
    columns: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, for a transport that sends them without pickling."""
        values = {"tensor": self.tensor, "picture": self.picture, COLUMNS: self.columns, **(self.features or {})}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def without_arrays(self) -> Row:
        """Return the row without what `arrays` returns."""
        picture = None if isinstance(self.picture, np.ndarray) else self.picture
        return replace(self, tensor=None, picture=picture, features=None, columns=None)

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Row:
        """Return the row with its arrays: the inverse of `without_arrays`."""
        features = {name: value for name, value in arrays.items() if name not in ("tensor", "picture", COLUMNS)}
        return replace(
            self,
            tensor=arrays.get("tensor"),
            picture=arrays.get("picture", self.picture),
            columns=arrays.get(COLUMNS),
            features=features or None,
        )


@dataclass(frozen=True)
class Batch:
    """The inputs of one call to the monitor. They belong to the caller, and are read during the call only.

    Attributes:
        tensor: the model's input, rows first; of any framework.
        pictures: one per row, a sequence.
        features: the inputs of the tail, rows first, by name.
        requests, traces: one per row.
        keep_tensor: whether the tensor is copied even if there are features.
    """

    tensor: Any = None
    pictures: Any = None
    features: Mapping[str, Any] | None = None
    requests: Any = None
    traces: Any = None
    keep_tensor: bool = True

    def as_rows(self, rows: int, *, single: bool, keep_tensor: bool = True) -> Batch:
        """Return the batch with every part a sequence of `rows` rows; the parts of a `single` row may lack the axis.

        Raises:
            InputError: nothing to explain, or a part with another number of rows.
        """
        tensor = np.asarray(self.tensor) if isinstance(self.tensor, (list, tuple)) else self.tensor
        pictures = [self.pictures] if isinstance(self.pictures, (bytes, bytearray, str, os.PathLike)) else self.pictures
        if single and tensor is not None and getattr(tensor, "ndim", 4) == 3:
            tensor = tensor[None]
        if single and pictures is not None and getattr(pictures, "ndim", 1) in (2, 3):
            pictures = [pictures]
        requests = [self.requests] if isinstance(self.requests, (str, int)) else self.requests
        traces = [self.traces] if isinstance(self.traces, (str, int)) else self.traces
        parts = (tensor, pictures, self.features, requests, traces, keep_tensor)
        before = (self.tensor, self.pictures, self.features, self.requests, self.traces, self.keep_tensor)
        unchanged = all(map(operator.is_, parts, before))
        batch = self if unchanged else Batch(*parts)
        batch._check(rows)
        return batch

    @property
    def _copied(self) -> bool:
        return self.tensor is not None and (self.keep_tensor or not self.features)

    def _check(self, rows: int) -> None:
        """Check that there is something to explain for each of `rows` rows."""
        if self.tensor is None and self.pictures is None and not self.features:
            raise InputError("nothing to explain: pass tensor= (the model's input) or pictures= (one per row)")
        if self.tensor is not None and self.pictures is not None:
            raise InputError("both tensor and pictures were given; pass what the model saw, or the pictures")
        parts = {"tensor": self.tensor, "pictures": self.pictures, "ids": self.requests, "traces": self.traces}
        for name, value in {**parts, **(self.features or {})}.items():
            if value is not None and len(value) != rows:
                raise InputError(f"{name} has {len(value)} rows for {rows} rows of scores; pass one for each")

    def sizes(self, rows: np.ndarray, classes: int) -> list[int]:
        """Return the bytes that each of these rows will take in the queue, but for its names.

        Arguments:
            classes: number of probabilities, and of columns, that a row keeps.
        """
        if not len(rows):
            return []
        fixed = OVERHEAD + SCORE * classes + sum(_nbytes(v) // max(1, len(v)) for v in (self.features or {}).values())
        if self._copied:
            fixed += _nbytes(self.tensor) // max(1, len(self.tensor))
        if self.pictures is None:
            return [fixed] * len(rows)
        return [fixed + _nbytes(self.pictures[row]) for row in rows]

    def copy_row(self, row: int) -> dict[str, Any]:
        """Copy one row; returns fields of a `Row`.

        Raises:
            InputError: not a picture, or not a tensor of numbers.
        """
        fields: dict[str, Any] = {}
        if self.tensor is not None:
            fields["shape"] = (1, *self.tensor.shape[1:])
        if self._copied:
            fields["tensor"] = _copy(self.tensor[row : row + 1])
        if self.pictures is not None:
            fields["picture"] = _picture(self.pictures[row])
        if self.features:
            fields["features"] = {name: _copy(value[row : row + 1]) for name, value in self.features.items()}
        fields["request"] = None if self.requests is None else name_of(self.requests[row])
        fields["trace"] = None if self.traces is None else name_of(self.traces[row])
        return fields


def size_of(probabilities: np.ndarray, fields: Mapping[str, Any]) -> int:
    """Return the bytes that a row of these probabilities and fields takes in the queue."""
    values = [probabilities, *(fields.get(name) for name in ("tensor", "picture", "columns"))]
    values += (fields.get("features") or {}).values()
    names = [fields.get("request"), fields.get("trace")]
    return (
        OVERHEAD
        + sum(_nbytes(value) for value in values if value is not None)
        + sum(sys.getsizeof(name) for name in names if name is not None)
    )


def to_numpy(value: Any) -> np.ndarray:
    """Convert an array of NumPy, PyTorch (any device, with or without gradient), TensorFlow, JAX or plain lists."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    if hasattr(value, "numpy") and not hasattr(value, "__array__"):
        return np.asarray(value.numpy())
    return np.asarray(value)


def _copy(value: Any) -> np.ndarray:
    array = to_numpy(value)
    if array.dtype.hasobject or array.dtype.kind not in "fiub":
        raise InputError(f"a tensor of {array.dtype} is not an input of an image classifier; pass numbers")
    return np.array(array, order="C")


def _picture(value: Any) -> Any:
    if isinstance(value, (bytes, str, Path)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    array = to_numpy(value)  # a PIL image too
    # 16 bits and further channels are for files whose preprocessing states them; floats are hardly ever pictures
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3):
        raise InputError(
            f"{array.dtype} {list(array.shape)} is not a picture; expected encoded bytes, a path or a uint8 array "
            "[H, W] or [H, W, 3], or of 16 bits and any channels where the file's preprocessing states them (prepared "
            "batches go into tensor=)"
        )
    return np.array(array, order="C")


def _nbytes(value: Any) -> int:
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if isinstance(value, (str, os.PathLike)):
        return len(os.fspath(value))
    if hasattr(value, "size") and hasattr(value, "getbands"):  # a PIL image: bands of bytes
        return int(value.size[0] * value.size[1] * len(value.getbands()))
    return int(to_numpy(value).nbytes)


def name_of(value: Any) -> str | None:
    """Return the name of a request or trace as records have it: text of at most 256 characters."""
    return None if value is None else str(value)[:256]
