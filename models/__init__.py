"""The bundled demo models and pictures; `models/README.md` says where they come from and under which licences."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from onnxcam.errors import OnnxcamError, listing

MODEL = "efficientnet_lite0.onnx"
_SHIPPED = (".onnx", ".png")


def names() -> list[str]:
    """Names of the bundled models and pictures, with their folder where they lie in one, sorted."""
    return sorted(_below(files(__name__), ""))


def _below(folder: Traversable, prefix: str) -> Iterator[str]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _below(item, f"{prefix}{item.name}/")
        elif item.name.endswith(_SHIPPED):
            yield prefix + item.name


def path(name: str) -> Path:
    """Where a bundled file lies, for example `path("cat.png")` or `path("classroom/mnist.onnx")`.

    Raises:
        OnnxcamError: no bundled file has that name.
    """
    file = Path(str(files(__name__) / name))
    if name not in names() or not file.is_file():
        raise OnnxcamError(f"no bundled file is called {name!r}; there are {listing(names())}")
    return file
