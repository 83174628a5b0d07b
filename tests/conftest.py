"""Settings that count only before a library is loaded, and what every export by PyTorch would do again."""

from __future__ import annotations

import contextlib
import functools
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def pytest_collection_finish() -> None:
    """Build PyTorch's table of ONNX operators once per opset.

    torch.onnx.export parses the sources of 500 functions for it each time: half of the time a small network takes.
    """
    if "torch" in sys.modules:
        with contextlib.suppress(ImportError, AttributeError):  # it is private, and may be elsewhere in other versions
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
