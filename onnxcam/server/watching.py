"""The monitor behind a server: what it predicts is recorded, and explained in the background where it is uncertain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.explain.conditional import ALWAYS, NEVER
from onnxcam.monitor.hook import Monitor
from onnxcam.server.models import Model, Models, Prediction

# in the grammar of conditions, which has no word for either
_CONDITIONS = {ALWAYS: "confidence >= 0", NEVER: "confidence < 0"}


class Watch:
    """A monitor for each model; an observer of `State.observers`.

    Arguments:
        models: of the server.
        folder: for records; with several models, each has a folder of its name in it.
        when: the condition, as of `Settings`.

    Raises:
        SettingError, OutputError: the folder or the condition cannot be used.
    """

    def __init__(self, models: Models, folder: Any, when: str) -> None:
        path = Path(folder)
        self._monitors = {
            model.name: Monitor(
                model.explainer.source,
                sink=str(path / model.name if len(models) > 1 else path),
                when=_CONDITIONS.get(when, when),
                scores="logits",
                labels=model.labels,
                preprocess=model.explainer.preprocess,
                layer=model.explainer.layers[-1] if model.task is None else None,  # each box has its own
            )
            for model in models
        }

    def __call__(self, model: Model, prediction: Prediction, source: bytes | np.ndarray, identity: str) -> None:
        """Observe predictions of a picture or of a tensor of N rows."""
        inputs: dict[str, Any] = {"pictures": [source]} if isinstance(source, bytes) else {"tensor": source}
        self._monitors[model.name].observe(
            prediction.scores, ids=[identity] * len(prediction.scores), traces=None, **inputs
        )

    def stats(self) -> dict[str, Any]:
        """The counts of each monitor, by model."""
        return {name: monitor.stats() for name, monitor in self._monitors.items()}

    def close(self, timeout: float = 5.0) -> None:
        """Explain what is queued for some seconds, then release the folders."""
        for monitor in self._monitors.values():
            monitor.close(timeout)
