"""The model that explains what a monitor selects: opened without a session, made explainable where it is not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from onnxcam.errors import LabelsError, ModelError, label_count
from onnxcam.graph.file import open_model as open_file
from onnxcam.graph.large_model import LargeModel, Serialized
from onnxcam.network import manifest as manifests
from onnxcam.network.manifest import Manifest
from onnxcam.network.opening import open_model, read_source
from onnxcam.targets.readout import Readout
from onnxcam.targets.tasks import fit_names


class Model(NamedTuple):
    """An explainable model.

    Attributes:
        source: absolute path or bytes; has a manifest with the layer, the method and a free target.
        manifest: of this model.
        layer: name of the layer that is explained.
        name, sha256: of the model that was opened.
        bound_class: the class that its file is bound to, or None.
    """

    source: str | Serialized
    manifest: Manifest
    layer: str
    name: str
    sha256: str
    bound_class: int | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """The manifest's entry of the layer."""
        return manifests.layer(self.manifest, self.layer)

    @property
    def readout(self) -> Readout:
        """The scores and their meaning."""
        return Readout.from_manifest(self.manifest["scores"])

    def cut(self) -> tuple[str, ...]:
        """The values that pass from before the layer to its maps: with them no further head run is needed."""
        from onnxcam.network.split import split

        return split(self.source, [self.layer])[1][self.layer].cut

    def labels(self, instead: Sequence[str] | None) -> list[str] | None:
        """Class names by index: `instead` if it is not None, else those of the file.

        Raises:
            LabelsError: not one per class.
        """
        names = instead if instead is not None else self.manifest.get("labels")
        classes = self.manifest["scores"]["classes"]
        task = self.readout.task
        if task is not None:
            fitting = fit_names(task, names)
            if instead is not None and fitting is None:
                raise LabelsError(label_count(len(instead), classes))
            return fitting
        if names is not None and len(names) != classes:
            raise LabelsError(label_count(len(names), classes))
        return None if names is None else list(names)


def read(
    source: Any, layer: str | None, method: str, *, scores_output: str | None = None, kind: str | None = None
) -> Model:
    """Open a model, and augment it in memory where it lacks the layer, the method, or any manifest at all.

    Arguments:
        source: an explainable model or any classifier, detector or segmentation `.onnx`: path, bytes or
            `ModelProto`.
        layer: None for the manifest's last layer, or the default layer of a plain classifier.
        scores_output, kind: `scores` and `kind` of `onnxcam.augment`.

    Raises:
        ModelError: not a usable model, or one of another task. LayerError, MethodError: no such layer or method.
    """
    where, manifest = read_source(source)
    if isinstance(where, str):
        where = str(Path(where).absolute())
    digest = _sha256(where)
    file_name = Path(where).name if isinstance(where, str) else None
    name = str(((manifest or {}).get("source") or {}).get("name") or file_name or "model")
    try:
        model = open_model(
            where,
            layers=[layer],
            methods=[method],
            require_methods=True,
            classes=None,
            gated=True,
            probe=False,  # it would start ONNX Runtime's threads, and the process may yet fork
            scores=scores_output,
            kind=kind,
        )
    except ModelError as error:  # `scores` is another option of the monitor
        raise ModelError(str(error).replace("`scores=`", "`scores_output=`")) from error
    readout = Readout.from_manifest(model.manifest["scores"])
    if not readout.tabulated:
        readout.require_classes("a monitor's record of predictions")
    layer_name = manifests.layer(model.manifest, layer)["name"]
    return Model(model.source, model.manifest, layer_name, name, digest, model.bound_class)


def _sha256(where: str | Serialized) -> str:
    if isinstance(where, LargeModel):
        return where.sha256()
    if isinstance(where, bytes):
        return hashlib.sha256(where).hexdigest()
    with open_file(Path(where)) as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
