"""A small explainable classifier, and batches and pictures for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from PIL import Image

import onnxcam
from tests.support import models

LABELS = ["cat", "tiger cat, tiger", "crane", "hen", "crane"]
RAW = {"color": "RGB", "scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}
CPU = ["CPUExecutionProvider"]


def batch(rows: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, 3, 32, 32)) + 3 * rng.normal(size=(rows, 3, 1, 1))).astype(np.float32)


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height)))


def explainable(**kwargs: Any) -> onnx.ModelProto:
    return onnxcam.augment(models.tiny_cnn(seed=2), labels=LABELS, preprocess=RAW, **kwargs)
