"""Reverse-mode automatic differentiation as a graph transformation, in standard ONNX operators."""

from onnxcam.autodiff.gradient import gradient
from onnxcam.autodiff.registry import no_gradient, registered, vjp
from onnxcam.autodiff.sweep import sweep

__all__ = ["gradient", "no_gradient", "registered", "sweep", "vjp"]
