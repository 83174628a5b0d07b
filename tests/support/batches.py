"""A small explainable classifier, batches and pictures for it, and the distance between what two runs computed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import onnxcam
from tests.support import models

LABELS = ["cat", "tiger cat, tiger", "crane", "hen", "crane"]
RAW = {"color": "RGB", "scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}
CPU = ["CPUExecutionProvider"]


def batch(rows: int = 3, shape: Sequence[int] = (3, 32, 32), seed: int = 0) -> np.ndarray:
    """Noise, each row with colours of its own so that the rows' best classes differ."""
    rng = np.random.default_rng(seed)
    colours = [1 if axis > 4 else axis for axis in shape]  # height and width are larger than the channels are many
    return (rng.normal(size=(rows, *shape)) + 3 * rng.normal(size=(rows, *colours))).astype(np.float32)


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height)))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The parity metric: the largest ‖a−b‖ / ‖b‖ over rows."""
    assert a.shape == b.shape
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    return float((np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)).max())


def imagenet() -> tuple[list[Path], list[int]]:
    """Twenty photographs and their classes in ImageNet, from a package that carries them."""
    package = find_spec("foolbox")
    if package is None or package.origin is None:
        pytest.skip("foolbox, whose photographs these are, is not installed")
    paths = sorted((Path(package.origin).parent / "data").glob("imagenet_*.jpg"))
    assert len(paths) == 20
    return paths, [int(path.stem.split("_")[2]) for path in paths]


def explainable(**kwargs: Any) -> onnx.ModelProto:
    return onnxcam.augment(models.tiny_cnn(seed=2), labels=LABELS, preprocess=RAW, **kwargs)
