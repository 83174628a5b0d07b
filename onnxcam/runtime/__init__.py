"""ONNX Runtime: sessions, how they run, and the rows they are fed with."""

from onnxcam.runtime.session import (
    CPU,
    CUDA,
    Provider,
    import_onnxruntime,
    open_session,
    parse_provider,
    quiet_options,
    run,
)

__all__ = [
    "CPU",
    "CUDA",
    "Provider",
    "import_onnxruntime",
    "open_session",
    "parse_provider",
    "quiet_options",
    "run",
]
