"""The bundled scenes and the networks trained on such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxcam
from onnxcam import models
from onnxcam.targets.tasks import Detect, Slab

FOLDER = Path(models.path("scenes/scene0.png")).parent
TRUTH = FOLDER / "boxes.csv"
PICTURES = sorted(FOLDER.glob("*.png"))
TASK = Detect(Slab(0, 4, 8, 0, True), Slab(4, 4, 8, 0, True), 8, 4, 320, box_format="cxcywh")


def detector(**settings: Any) -> onnxcam.Explainer:
    """The trained detector."""
    path = models.path("scenes/detector.onnx")
    return onnxcam.Explainer(path, task=(("output0",), TASK), preprocess="0..1", probe=False, **settings)
