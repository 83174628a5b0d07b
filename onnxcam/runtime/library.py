"""Import ONNX Runtime, or say what is wrong with the installation."""

from __future__ import annotations

from typing import Any

from onnxcam.errors import DependencyError


def import_onnxruntime() -> Any:
    """Return the `onnxruntime` module.

    Raises:
        DependencyError: it is missing or broken.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise DependencyError(
            f'no ONNX Runtime can be imported ({error}); install one: pip install "onnxcam[cpu]", or '
            'pip install "onnxcam[gpu]" for NVIDIA GPUs (`onnxcam doctor` tells what is broken)'
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DependencyError(
            "the installed onnxruntime is broken, as happens when onnxruntime and onnxruntime-gpu were installed "
            "together and one of them was removed; run `onnxcam doctor` for the command that repairs it"
        )
    return onnxruntime
