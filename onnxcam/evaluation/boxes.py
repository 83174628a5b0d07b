"""Boxes around objects: read by `onnxcam.explain.boxes`, which comparisons use too."""

from onnxcam.explain.boxes import Box, Boxes, checked, mask, read

__all__ = ["Box", "Boxes", "checked", "mask", "read"]
