"""Versions of the packages that a result was made with."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from onnxcam import __version__


def versions() -> dict[str, str]:
    """Versions of the packages that take part, by the names they are installed under, as these packages tell them.

    `importlib.metadata` would load e-mail and zip first: a tenth of the time that a picture's explanation takes.
    """
    runtime, built = _module("onnxruntime"), _module("onnxruntime.capi.build_and_package_info")
    cv2, opencv = _module("cv2"), _module("cv2.version")
    kind = "-contrib" if getattr(opencv, "contrib", False) else ""
    display = "-headless" if getattr(opencv, "headless", False) else ""
    numbers = {
        "onnxcam": __version__,
        getattr(built, "package_name", "onnxruntime"): getattr(runtime, "__version__", None),
        "numpy": getattr(_module("numpy"), "__version__", None),
        f"opencv{kind}-python{display}": getattr(opencv, "opencv_version", getattr(cv2, "__version__", None)),
    }
    return {package: str(number) for package, number in numbers.items() if number is not None}


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:  # what is missing has no version
        return None
