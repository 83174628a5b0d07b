"""Targets: what is explained, the meaning of a model's outputs, and conditions on predictions."""

from onnxcam.targets.difference import Difference
from onnxcam.targets.objectives import Contrast, Probability, Weights
from onnxcam.targets.readout import Readout
from onnxcam.targets.scalars import Box, Region, Several, Similarity, Value

__all__ = [
    "Box",
    "Contrast",
    "Difference",
    "Probability",
    "Readout",
    "Region",
    "Several",
    "Similarity",
    "Value",
    "Weights",
]
