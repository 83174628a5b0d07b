"""Versions of the packages that a result was made with."""

from __future__ import annotations

from functools import cache

_PACKAGES = ("onnxcam", "onnxruntime", "onnxruntime-gpu", "numpy", "opencv-python", "opencv-python-headless")


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that take part, those that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
