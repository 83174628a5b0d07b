"""Deterministic pictures and their encodings for the tests of this folder."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [H, W, C], or [H, W] for 0 channels: the hardest case for a resampler."""
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] with gentle slopes, like a photograph."""
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(y / 17.0 + k) + np.cos(x / (23.0 + 5 * k)) for k in range(3)]
    return np.clip((np.stack(planes, -1) + 2.0) * 63.0, 0, 255).astype(np.uint8)


def encode(pixels: Any, format: str, **options: Any) -> bytes:
    """The picture (an array or a PIL image) in an encoded form."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, format, **options)
    return stream.getvalue()
