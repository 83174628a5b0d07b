"""Rows of a batch: split into runs of the model's batch size, joined again, converted to its input type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcam.errors import ModelError


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate the rows of several runs; a single part is returned as it is, without a copy.

    Raises:
        ModelError: their rows are of different sizes, as those of detectors with an NMS inside are.
    """
    if len(parts) == 1:
        return parts[0]
    shapes = list(dict.fromkeys(part.shape[1:] for part in parts))
    if len(shapes) > 1:
        raise ModelError(
            f"the model's pictures have {' and '.join(f'{int(np.prod(shape))}' for shape in shapes[:2])} numbers each, "
            "as those of a detector that leaves as many boxes as there are, and cannot be joined to one batch; explain "
            "them one at a time (`onnxcam explain`, `explainer.explain`)"
        )
    return np.concatenate(parts)


def floats(pictures: np.ndarray) -> np.ndarray:
    """Convert integer pictures to float32, so that they can have a gradient."""
    return pictures.astype(np.float32) if np.issubdtype(pictures.dtype, np.integer) else pictures


def like(pictures: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Convert pictures to the model's input type: for an integer type rounded and clipped to its range."""
    if not np.issubdtype(dtype, np.integer):
        return pictures
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(pictures), limits.min, limits.max).astype(dtype))


def portions(batch: np.ndarray, size: int | None) -> list[np.ndarray]:
    """Split a batch into runs of `size` rows (None: one run); the last is padded by repeating its final row."""
    if size is None or size == len(batch):
        return [batch]
    parts = [batch[start : start + size] for start in range(0, len(batch), size)]
    short = size - len(parts[-1])
    if short:
        parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], short, axis=0)])
    return parts
