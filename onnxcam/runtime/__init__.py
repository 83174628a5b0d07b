"""ONNX Runtime: sessions, their options, and the rows of a batch that one run takes."""

from onnxcam.runtime import options
from onnxcam.runtime.library import import_onnxruntime
from onnxcam.runtime.session import CPU, CUDA, Provider, open_session, parse_provider, run

__all__ = ["CPU", "CUDA", "Provider", "import_onnxruntime", "open_session", "options", "parse_provider", "run"]
