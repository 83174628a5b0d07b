"""The model that explains: opened without a session, made explainable where it is not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onnxcam.errors import LabelsError, ModelError, miscounted
from onnxcam.explain.file import open_source
from onnxcam.graph.large_model import LargeModel, Serialized
from onnxcam.network import manifest
from onnxcam.network.manifest import Manifest


class Model(NamedTuple):
    """An explainable model.

    Attributes:
        source: absolute path or bytes; has a manifest with the layer, the method and a free target.
        held: that manifest; `layer` the name of the layer that is explained.
        name, sha256: of the model as it was given.
    """

    source: str | Serialized
    held: Manifest
    layer: str
    name: str
    sha256: str

    @property
    def entry(self) -> dict[str, Any]:
        """The manifest's entry of the layer."""
        return manifest.layer(self.held, self.layer)

    def tail(self) -> tuple[str, ...]:
        """The values that the part of the graph behind the layer starts from."""
        from onnxcam.network.split import split

        return split(self.source, [self.layer])[1][self.layer].cut

    def labels(self, given: Sequence[str] | None) -> list[str] | None:
        """Class names by index: those given, else the file's own.

        Raises:
            LabelsError: not one per class.
        """
        names = given if given is not None else self.held.get("labels")
        classes = self.held["scores"]["classes"]
        if names is not None and len(names) != classes:
            raise LabelsError(miscounted(len(names), classes))
        return None if names is None else list(names)


def read(source: Any, layer: str | None, method: str) -> Model:
    """Open a model, and augment it in memory where it lacks the layer, the method, or any manifest at all.

    Arguments:
        source: an explainable model or any classifier `.onnx`: path, bytes or `ModelProto`.
        layer: None for the manifest's last layer, or the default layer of a plain classifier.

    Raises:
        ModelError: not a usable classifier. LayerError, MethodError: no such layer or method.
    """
    where, held = open_source(source)
    if isinstance(where, str):
        where = str(Path(where).absolute())
    digest = _sha256(where)
    known = held or {}
    stem = Path(where).name if isinstance(where, str) else None
    name = str((known.get("source") or {}).get("name") or stem or "model")
    if held is None or _lacks(held, layer, method):
        where, held = _augmented(where, held, layer, method)
    return Model(where, held, manifest.layer(held, layer)["name"], name, digest)


def _lacks(held: Manifest, layer: str | None, method: str) -> bool:
    present = [entry["name"] for entry in held["layers"]]
    if held["target"]["mode"] == "constant" or (layer is not None and layer not in present):
        return True
    return method not in manifest.layer(held, layer)["heatmaps"]


def _augmented(
    where: str | Serialized, held: Manifest | None, layer: str | None, method: str
) -> tuple[Serialized, Manifest]:
    from onnxcam.graph.load import serialize
    from onnxcam.network.explainable import augment

    entries = [] if held is None else held["layers"]
    names = [entry["name"] for entry in entries if entry["name"] != layer]
    methods = [m for entry in entries for m in entry["heatmaps"]]
    # the last layer of a manifest is what layer=None means
    wanted = [*names, layer] if layer is not None else names
    model = augment(where, wanted or None, tuple(dict.fromkeys([*methods, method])))
    made = manifest.read(model)
    if made is None:
        raise ModelError("the augmented model carries no manifest; report this as a bug")
    return serialize(model), made


def _sha256(where: str | Serialized) -> str:
    if isinstance(where, LargeModel):
        return where.sha256()
    if isinstance(where, bytes):
        return hashlib.sha256(where).hexdigest()
    try:
        with open(os.fspath(where), "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"the model {where!r} cannot be read: {error.strerror}") from error
