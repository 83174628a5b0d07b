"""Settings that count before a library is loaded, the order of files, and what each PyTorch export would repeat."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections import Counter

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if "PYTEST_XDIST_WORKER" in os.environ:  # there is a process for each core: threads of their own would only contend
    for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(variable, "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first: the last file to begin decides when the processes end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Build PyTorch's table of ONNX operators once per opset.

    torch.onnx.export parses the sources of 500 functions for it each time: half of the time a small network takes.
    """
    if "torch" in sys.modules:
        with contextlib.suppress(ImportError, AttributeError):  # it is private, and may be elsewhere in other versions
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
