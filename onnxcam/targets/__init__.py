"""Targets: the classes and their names, the objectives made of their scores, and conditions on predictions."""

from onnxcam.targets.objectives import Contrast, Probability, Weights
from onnxcam.targets.readout import Readout

__all__ = ["Contrast", "Probability", "Readout", "Weights"]
