"""Every CAM method, registered by importing its module."""

from onnxcam.cam import gradient
from onnxcam.cam.registry import cam_method, find, methods

__all__ = ["cam_method", "find", "gradient", "methods"]
