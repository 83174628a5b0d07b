"""The shift between two models on the same pictures: predictions that flipped, and where their attention moved.

Functions here have names that no module of the package has: importing a module would hide the function.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcam.diagnose.shift.comparison import compare as compare
    from onnxcam.diagnose.shift.result import PictureShift as PictureShift
    from onnxcam.diagnose.shift.result import Shift as Shift

# resolved on first use, so that a command imports what it needs alone
_LAZY = {
    "PictureShift": "onnxcam.diagnose.shift.result",
    "Shift": "onnxcam.diagnose.shift.result",
    "compare": "onnxcam.diagnose.shift.comparison",
}

__all__ = ["PictureShift", "Shift", "compare"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'onnxcam.diagnose.shift' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
