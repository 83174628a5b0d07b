"""The training frameworks: how each one's models are recognised, and which module exports them.

A further framework is one module with an `onnxcam.exporters.export.Framework` and a `load`, and one line in
`FRAMEWORKS`. This module imports no framework.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """How a framework's models are recognised.

    Attributes:
        module: the module of `onnxcam.exporters` that exports them. Its `load(source, *, weights, trust, import_file,
            input_size, model)` returns an `onnxcam.exporters.export.Loaded`; `model` is what calling a
            `package.module:callable` returned.
        zoos: what named models start with: `keras` in `keras:vgg16`.
        suffixes: of files that hold a model, in lower case, the usual one first.
        classes: base classes of models, `package.Class`.
    """

    module: str
    zoos: tuple[str, ...]
    suffixes: tuple[str, ...]
    classes: tuple[str, ...]

    def exporter(self) -> Any:
        """Import the module, and with it the framework."""
        return importlib.import_module(f"onnxcam.exporters.{self.module}")


FRAMEWORKS: dict[str, Entry] = {
    "Keras": Entry("keras", ("keras",), (".keras", ".h5", ".hdf5"), ("keras.Layer", "tf_keras.Layer")),
    "PyTorch": Entry(
        "pytorch",
        ("torchvision", "timm"),
        (".pt2", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar", ".safetensors"),
        ("torch.Module", "torch.ExportedProgram"),
    ),
}


def of_name(source: str) -> str | None:
    """The framework of `ZOO:NAME`, None where a source does not read so."""
    zoo, colon, _ = source.partition(":")
    return next((name for name, entry in FRAMEWORKS.items() if colon and zoo in entry.zoos), None)


def of_file(source: str) -> str | None:
    """The framework whose files end as this one does, None where there is none."""
    suffix = Path(source).suffix.lower()
    return next((name for name, entry in FRAMEWORKS.items() if suffix in entry.suffixes), None)


def of_model(model: Any) -> str | None:
    """The framework of a model, found without importing any; None where the object is not a model."""
    for base in type(model).__mro__:
        label = f"{base.__module__.partition('.')[0]}.{base.__name__}"
        for name, entry in FRAMEWORKS.items():
            if label in entry.classes:
                return name
    return None
