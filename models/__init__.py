"""The bundled demo model and pictures; `models/README.md` says where they come from and under which licences."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from onnxcam.errors import OnnxcamError, listing

MODEL = "efficientnet_lite0.onnx"
_SHIPPED = (".onnx", ".png")


def names() -> list[str]:
    """File names of the bundled models and pictures, sorted."""
    return sorted(item.name for item in files(__name__).iterdir() if item.name.endswith(_SHIPPED))


def path(name: str) -> Path:
    """Where a bundled file lies, for example `path("efficientnet_lite0.onnx")` or `path("cat.png")`.

    Raises:
        OnnxcamError: no bundled file has that name.
    """
    found = Path(str(files(__name__) / name))
    if name not in names() or not found.is_file():
        raise OnnxcamError(f"no bundled file is called {name!r}; there are {listing(names())}")
    return found
