"""Every method, registered by importing its module."""

from onnxcam.cam import (
    attributions,
    baselines,
    contrast,
    curvature,
    eigen,
    gradient,
    noise,
    occlusion,
    perturbation,
    rollout,
)
from onnxcam.cam.registry import GRAPH, INPUT, LAYER, Method, cam_method, find, find_graph, methods

__all__ = [
    "GRAPH",
    "INPUT",
    "LAYER",
    "Method",
    "attributions",
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
    "occlusion",
    "perturbation",
    "rollout",
]
