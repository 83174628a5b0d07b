"""A small explainable model, and seeded pictures of which some are broken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import onnxcam
from onnxcam.fleet import Explain
from onnxcam.fleet.columns import columns
from tests.support.models import tiny_cnn

UNIT = {"scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}
NAMES = ["ant", "bee", "cat", "dog", "elk"]
SEED = 1234
COLUMNS = {column.name: column for column in columns()}
EVERY_BROKEN = 100  # one picture in so many


def model(folder: Path) -> Path:
    """A file with labels and preprocessing."""
    path = folder / "model.cam.onnx"
    explainable = onnxcam.augment(tiny_cnn(classes=5, size=32), preprocess=UNIT, labels=NAMES)
    path.write_bytes(explainable.SerializeToString())
    return path


def pictures(count: int, every: int = EVERY_BROKEN, seed: int = SEED) -> list[bytes]:
    """Encoded pictures of various sizes and formats; one in `every` is broken, each time in another way."""
    rng = np.random.default_rng(seed)
    encoded = []
    for number in range(count):
        height, width = rng.integers(20, 60, 2)
        pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (int(width), int(height)))
        ending = (".png", ".jpg", ".bmp")[number % 3]
        data = cv2.imencode(ending, pixels)[1].tobytes()
        if number % every == every // 2:
            data = (b"", b"not a picture", data[: len(data) // 2], b"\x00" * 50)[number // every % 4]
        encoded.append(data)
    return encoded


def column(values: Sequence[Any]) -> np.ndarray:
    """An object array of these values."""
    array = np.empty(len(values), object)
    for place, value in enumerate(values):
        array[place] = value
    return array


def batch(values: Sequence[Any], start: int = 0) -> dict[str, np.ndarray]:
    """A batch of pictures with their numbers."""
    return {"bytes": column(values), "id": np.arange(start, start + len(values))}


def loop(explain: Explain, values: Sequence[Any], cuts: Sequence[int]) -> dict[str, list[Any]]:
    """The table of a plain loop over batches of these sizes, in turn."""
    table: dict[str, list[Any]] = {}
    start = turn = 0
    while start < len(values):
        size = cuts[turn % len(cuts)]
        for name, array in explain(batch(values[start : start + size], start)).items():
            table.setdefault(name, []).extend(array)
        start, turn = start + size, turn + 1
    return table


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """By column the largest difference of two tables; inf where something else than numbers differs.

    What NumPy has for null (-1, NaN, an empty list) is null.
    """
    assert one.keys() == other.keys()
    worst = {}
    for name in one:
        assert len(one[name]) == len(other[name])
        pairs = zip(_nulls(name, one[name]), _nulls(name, other[name]), strict=True)
        worst[name] = max((_difference(a, b) for a, b in pairs), default=0.0)
    return {name: value for name, value in worst.items() if value}


def _nulls(name: str, values: Any) -> list[Any]:
    """Plain values of a column, with None for null."""
    column = COLUMNS.get(name)
    plain = [value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value for value in values]
    if column is None:
        return plain
    empty = {"int64": -1, "float64": np.nan, "bool": False}.get(column.kind.dtype) if column.kind.item is None else []
    return [None if not column.always and (v == empty or v != v) else v for v in plain]


def _difference(a: Any, b: Any) -> float:
    """Of two values: 0 for equal ones and two nulls, inf for what differs and is no number."""
    one, other = _numbers(a), _numbers(b)
    if one is None or other is None:
        return 0.0 if a is b or (one is None and other is None and a == b) else np.inf
    if one.shape != other.shape:
        return np.inf
    if np.array_equal(one, other, equal_nan=True):
        return 0.0
    return float(np.nan_to_num(np.abs(one - other), nan=np.inf).max())


def _numbers(value: Any) -> np.ndarray | None:
    """Floats and lists of numbers; None for anything else."""
    if isinstance(value, (float, list)):
        return np.asarray(value, np.float64)
    return None
