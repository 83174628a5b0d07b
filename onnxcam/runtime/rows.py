"""Rows of a batch: cut into the runs that a model takes, put together again, in the type that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several runs; those of one as they are."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def floats(pictures: np.ndarray) -> np.ndarray:
    """Pictures as values with a gradient: whole numbers as float32."""
    return pictures.astype(np.float32) if np.issubdtype(pictures.dtype, np.integer) else pictures


def like(pictures: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Pictures as the model takes them: whole numbers rounded, within their range."""
    if not np.issubdtype(dtype, np.integer):
        return pictures
    held = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(pictures), held.min, held.max).astype(dtype))


def portions(batch: np.ndarray, size: int | None) -> list[np.ndarray]:
    """A batch in runs of the model's own size, the last one filled up by repeating its final row."""
    if size is None or size == len(batch):
        return [batch]
    parts = [batch[start : start + size] for start in range(0, len(batch), size)]
    short = size - len(parts[-1])
    if short:
        parts[-1] = np.concatenate([parts[-1], np.repeat(parts[-1][-1:], short, axis=0)])
    return parts
