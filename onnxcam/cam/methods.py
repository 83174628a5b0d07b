"""Every method, registered by importing its module."""

from onnxcam.cam import attributions, gradient, occlusion
from onnxcam.cam.registry import GRAPH, INPUT, LAYER, Method, cam_method, find, find_graph, methods

__all__ = [
    "GRAPH",
    "INPUT",
    "LAYER",
    "Method",
    "attributions",
    "cam_method",
    "find",
    "find_graph",
    "gradient",
    "methods",
    "occlusion",
]
