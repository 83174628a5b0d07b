"""Explanations in the batch plane: one picklable callable for Ray Data, Daft, Spark or a plain loop.

Nothing here is imported before it is used, and nothing but NumPy is needed to import it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcam.fleet.callable import Explain as Explain

_LAZY = {"Explain": "onnxcam.fleet.callable"}

__all__ = ["Explain"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'onnxcam.fleet' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
