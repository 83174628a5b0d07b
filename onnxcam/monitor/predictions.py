"""What waits to be explained: one row of a batch, copied, so that nothing of the caller's is kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.errors import InputError

# what a row costs beside its picture: scores, names, the object itself
OVERHEAD = 1024


@dataclass(frozen=True, eq=False)
class Row:
    """One prediction to be explained.

    Attributes:
        observed: when it was predicted, seconds since 1970.
        queued: the same on the monotonic clock.
        probabilities: `[classes]`, as the serving model said.
        quantities: what the condition saw: confidence, margin, entropy, label.
        reason: `condition`, or `baseline` for one of the sample of confident rows.
        sample: the probability with which such a row is kept.
        size: bytes it counts for in the queue.
        tensor: the model's input, one row `[1, …]`; or
        picture: a path, encoded bytes, or a uint8 array; and
        features: the values behind the target layer, by name, where the serving model exposes them.
        shape: of the tensor, also where it is not kept.
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

    def arrays(self) -> dict[str, np.ndarray]:
        """Its large parts by name, for a transport that keeps them out of a pickle."""
        found = {"tensor": self.tensor, "picture": self.picture, **(self.features or {})}
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}

    def without_arrays(self) -> Row:
        """The rest of it."""
        picture = None if isinstance(self.picture, np.ndarray) else self.picture
        return replace(self, tensor=None, picture=picture, features=None)

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Row:
        """Whole again."""
        features = {name: value for name, value in arrays.items() if name not in ("tensor", "picture")}
        return replace(
            self,
            tensor=arrays.get("tensor"),
            picture=arrays.get("picture", self.picture),
            features=features or None,
        )


@dataclass(frozen=True)
class Batch:
    """What one call to the monitor brought along, still the caller's: used within the call only.

    Attributes:
        tensor: the model's input, rows first; of any framework.
        pictures: one per row, a sequence.
        features: values behind the target layer, rows first, by name.
        requests, traces: one per row.
        keep_tensor: whether the tensor is copied where there are features.
    """

    tensor: Any = None
    pictures: Any = None
    features: Mapping[str, Any] | None = None
    requests: Any = None
    traces: Any = None
    keep_tensor: bool = True

    def of(self, rows: int, *, single: bool, keep_tensor: bool = True) -> Batch:
        """The same with every part a sequence of rows: a lone row's parts may come without the axis.

        Raises:
            InputError: nothing to explain, or another number of rows somewhere.
        """
        tensor = np.asarray(self.tensor) if isinstance(self.tensor, (list, tuple)) else self.tensor
        pictures = [self.pictures] if isinstance(self.pictures, (bytes, bytearray, str, os.PathLike)) else self.pictures
        if single and tensor is not None and getattr(tensor, "ndim", 4) == 3:
            tensor = tensor[None]
        if single and pictures is not None and getattr(pictures, "ndim", 1) in (2, 3):
            pictures = [pictures]
        names = [[n] if isinstance(n, (str, int)) else n for n in (self.requests, self.traces)]
        batch = Batch(tensor, pictures, self.features, names[0], names[1], keep_tensor)
        batch._check(rows)
        return batch

    @property
    def _copied(self) -> bool:
        return self.tensor is not None and (self.keep_tensor or not self.features)

    def _check(self, rows: int) -> None:
        """Refuse a batch that has not one picture for each of `rows` rows."""
        if self.tensor is None and self.pictures is None and not self.features:
            raise InputError("nothing to explain: pass tensor= (the model's input) or pictures= (one per row)")
        if self.tensor is not None and self.pictures is not None:
            raise InputError("both tensor and pictures were given; pass what the model saw, or the pictures")
        parts = {"tensor": self.tensor, "pictures": self.pictures, "ids": self.requests, "traces": self.traces}
        for name, value in {**parts, **(self.features or {})}.items():
            if value is not None and len(value) != rows:
                raise InputError(f"{name} has {len(value)} rows for {rows} rows of scores; pass one for each")

    def sizes(self, rows: np.ndarray) -> list[int]:
        """Bytes that each of these rows will take."""
        fixed = OVERHEAD + sum(_nbytes(v) // max(1, len(v)) for v in (self.features or {}).values())
        if self._copied:
            fixed += _nbytes(self.tensor) // max(1, len(self.tensor))
        if self.pictures is None:
            return [fixed] * len(rows)
        return [fixed + _nbytes(self.pictures[row]) for row in rows]

    def copies(self, row: int) -> dict[str, Any]:
        """One row's fields of a `Row`, copied.

        Raises:
            InputError: a picture or tensor that is no such thing.
        """
        found: dict[str, Any] = {}
        if self.tensor is not None:
            found["shape"] = (1, *self.tensor.shape[1:])
        if self._copied:
            found["tensor"] = _copy(self.tensor[row : row + 1])
        if self.pictures is not None:
            found["picture"] = _picture(self.pictures[row])
        if self.features:
            found["features"] = {name: _copy(value[row : row + 1]) for name, value in self.features.items()}
        found["request"] = _name(self.requests, row)
        found["trace"] = _name(self.traces, row)
        return found


def to_numpy(value: Any) -> np.ndarray:
    """An array of NumPy, PyTorch (any device, with or without gradient), TensorFlow, JAX or plain lists."""
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
        raise InputError(f"a tensor of {array.dtype} is no input of an image classifier; pass numbers")
    return np.array(array, order="C")


def _picture(value: Any) -> Any:
    if isinstance(value, (bytes, str, Path)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    array = to_numpy(value)  # a PIL image too
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise InputError(
            f"{array.dtype} {list(array.shape)} is no picture; expected encoded bytes, a path or a uint8 array "
            "[H, W] or [H, W, 3] (prepared batches go into tensor=)"
        )
    return np.array(array, order="C")


def _nbytes(value: Any) -> int:
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(value, (bytes, bytearray)):
        return len(value)
    if isinstance(value, (str, os.PathLike)):
        return 0
    if hasattr(value, "size") and hasattr(value, "getbands"):  # a PIL image: bands of bytes
        return int(value.size[0] * value.size[1] * len(value.getbands()))
    return int(to_numpy(value).nbytes)


def _name(names: Sequence[Any] | None, row: int) -> str | None:
    return None if names is None or names[row] is None else str(names[row])[:256]
