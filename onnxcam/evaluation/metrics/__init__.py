"""Metrics, one module per family; importing this package registers those of every module in it."""

import importlib
import pkgutil

from onnxcam.evaluation.registry import HIGHER, LOWER, Metric, find, metric, metrics, select

__all__ = ["HIGHER", "LOWER", "Metric", "find", "metric", "metrics", "select"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
