"""CAM methods, one module per family; importing this package registers those of every module in it."""

import importlib
import pkgutil

from onnxcam.cam.registry import GRAPH, INPUT, LAYER, Method, cam_method, find, find_graph, methods

__all__ = ["GRAPH", "INPUT", "LAYER", "Method", "cam_method", "find", "find_graph", "methods"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
