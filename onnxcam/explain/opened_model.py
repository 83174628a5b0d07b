"""`OpenedModel`: what an `Explainer` knows of its model, and the model's plain answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcam import image
from onnxcam.explain.explanation import name_of
from onnxcam.explain.file import FileSession
from onnxcam.explain.preparation import Preparation
from onnxcam.explain.question import Terms
from onnxcam.explain.sessions import Sessions
from onnxcam.graph.large_model import Serialized
from onnxcam.targets.readout import Readout

if TYPE_CHECKING:
    from onnxcam.graph.window import Window


class OpenedModel:
    """A model on its sessions, with its labels, layers and preprocessing. Not made by users: see `Explainer`."""

    labels: list[str] | None
    preparation: Preparation
    _file: FileSession
    _readout: Readout
    _layers: list[str]
    _preprocess: image.Preprocess | None
    _warnings: list[str]

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the model in use."""
        return self._file.manifest

    @property
    def source(self) -> str | Serialized:
        """Path or bytes of the explainable file in use; its graph and weights over 2 GiB."""
        return self._file.source

    @property
    def sessions(self) -> Sessions:
        """The network of the model in use, and sessions of the graphs that it is taken apart into."""
        return self._file.sessions

    @property
    def batch_size(self) -> int | None:
        """Rows per run where the model fixes them, 1 where rows affect each other, else None."""
        return self._file.batch_size

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self._readout.size

    @property
    def layers(self) -> list[str]:
        """Names of the target layers given, or else those of the file; the last one is the default."""
        return list(self._layers)

    @property
    def methods(self) -> list[str]:
        """Methods whose maps the model computes; others are added in memory when asked for."""
        return list(self._file.manifest["layers"][-1]["heatmaps"])

    @property
    def providers(self) -> list[str]:
        """The execution providers really in use, first choice first."""
        return self._file.providers

    @property
    def preprocess(self) -> image.Preprocess | None:
        """How pictures become tensors; None if neither the file nor the caller says."""
        return self._preprocess

    @property
    def warnings(self) -> list[str]:
        """Sentences about anything doubtful in the preprocessing; every explanation carries them too."""
        return list(self._warnings)

    @property
    def terms(self) -> Terms:
        """What a `Question` about this model is checked against."""
        return Terms(self._readout, self.labels, self._layers, self._file.bound_class, self._file.calibration)

    def label(self, index: int) -> str:
        """The name of a class; its index as text without labels."""
        return name_of(index, self.labels)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """Predict, at the cost of the plain model: nothing is differentiated.

        Arguments:
            batch: tensor in the model's own layout and dtype.

        Returns:
            probabilities, float32 `[N, classes]`; of a regression its value, `[N, 1]`.

        Raises:
            InputError: a batch of another shape or dtype.
        """
        return self._readout.probabilities(self.batch_scores(batch))

    def batch_scores(self, batch: np.ndarray) -> np.ndarray:
        """The model's scores `[N, K]` of a prepared batch, at the cost of `predict`."""
        return self._file.scores(self._file.check_batch(batch))

    def windows(self, layers: Sequence[str]) -> list[Window | None]:
        """Per layer the part of the model's input that its maps cover, None for all of it."""
        return self._file.windows(layers)

    @property
    def model(self) -> dict[str, Any]:
        """What an explanation says of the model: `source` and `parity` of its manifest, `rows` where they are fixed."""
        entries = {key: self.manifest.get(key) for key in ("source", "parity")}
        return entries | ({} if self.sessions.rows is None else {"rows": self.sessions.rows})
