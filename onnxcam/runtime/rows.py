"""Rows of a batch: split into runs of the model's batch size, joined again, converted to its input type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate the rows of several runs; a single part is returned as it is, without a copy."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
