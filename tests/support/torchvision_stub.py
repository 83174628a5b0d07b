"""torchvision on a CPU-only torch: its compiled operators are missing, and declaring two of them lets it import."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest

_LIBRARIES: list[Any] = []


def import_torchvision() -> Any:
    """The `torchvision` module; skips the test where it or torch is not installed."""
    torch = pytest.importorskip("torch")
    if not _LIBRARIES and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchvision.transforms.v2")
    return sys.modules["torchvision"]
