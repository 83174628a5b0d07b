"""Small changes of a prepared picture that nobody would notice: how far the maps of one training move by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcam import image
from onnxcam.network.layout import Layout

SHIFT = 0.01  # of the picture's side, at most
GAIN = 0.03  # of the contrast, at most
OFFSET = 5.0  # of 255 levels of brightness, at most
NOISE = 2.0  # standard deviation of each value, of 255 levels


def augment(
    tensor: np.ndarray, entry: dict[str, Any], preprocess: image.Preprocess | None, count: int, seed: tuple[int, int]
) -> np.ndarray:
    """Return `count` slightly changed copies of a prepared picture, `[count, ...]` in its own layout and type.

    Each is shifted by up to 1 % of its side, its contrast changed by up to 3 % and its brightness by up to 5 of 255
    levels, all uniformly, with noise of 2 levels added. The copies are independent and alike in distribution.

    Arguments:
        tensor: `[1, ...]`.
        entry: the manifest's `input`.
        preprocess: what the levels are in the tensor; without, its lowest and highest value count as 0 and 255.
        seed: of the changes: the comparison's, and the picture's place.
    """
    rng = np.random.default_rng(seed)
    layout = Layout.of(entry)
    values = np.asarray(layout.to_canonical(tensor)[0], np.float32)
    mean: Any = np.float32(0)
    std: Any = np.float32(1)
    scale = 1.0
    if preprocess is None:
        mean, scale = np.float32(-values.min()), float(np.ptp(values)) / 255.0 or 1.0
    elif tensor.dtype != np.uint8:
        mean, std = (np.asarray(part, np.float32).reshape(-1, 1, 1) for part in (preprocess.mean, preprocess.std))
        scale = preprocess.scale
    levels = (values * std + mean) / scale
    copies = np.empty((count, *levels.shape), np.float32)
    height, width = levels.shape[1:]
    for copy in copies:
        down, right = rng.uniform(-SHIFT, SHIFT, 2) * (height, width)
        moved = _shift(_shift(levels, down, 1), right, 2)
        gain, offset = 1 + rng.uniform(-GAIN, GAIN), rng.uniform(-OFFSET, OFFSET)
        copy[:] = (moved - 127.5) * gain + 127.5 + offset + NOISE * rng.standard_normal(moved.shape, np.float32)
    np.clip(copies, 0.0, 255.0, out=copies)
    result = (copies * scale - mean) / std
    if tensor.dtype.kind in "ui":
        result = np.rint(result)
    return np.ascontiguousarray(layout.from_canonical(result), tensor.dtype)


def _shift(values: np.ndarray, amount: float, axis: int) -> np.ndarray:
    """Shift by a part of a pixel or by several, linearly; the edge repeats."""
    positions = np.clip(np.arange(values.shape[axis]) - amount, 0, values.shape[axis] - 1)
    low = np.floor(positions).astype(np.intp)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = -1
    part = (positions - low).astype(np.float32).reshape(shape)
    return np.asarray(values.take(low, axis) * (1 - part) + values.take(high, axis) * part)
