"""Every method, registered by importing its module."""

from onnxcam.cam import baselines, contrast, curvature, eigen, gradient, noise, perturbation
from onnxcam.cam.registry import GRAPH, INPUT, LAYER, Method, cam_method, find, find_graph, methods

__all__ = [
    "GRAPH",
    "INPUT",
    "LAYER",
    "Method",
    "baselines",
    "cam_method",
    "contrast",
    "curvature",
    "eigen",
    "find",
    "find_graph",
    "gradient",
    "methods",
    "noise",
    "perturbation",
]
