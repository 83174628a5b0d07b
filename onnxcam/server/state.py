"""`State`: what the routes of a server share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcam.server.metrics import Metrics
from onnxcam.server.models import Model, Models, Prediction
from onnxcam.server.scheduler import Scheduler
from onnxcam.server.settings import Settings

# model, prediction, the encoded picture or the tensor, request id
Observer = Callable[[Model, Prediction, Any, str], None]


@dataclass
class State:
    """What the routes of a server share.

    A protocol is a module with `routes(state) -> list[BaseRoute]`, which `app.build` puts together. Its endpoints read
    a body with `bodies.read`, submit work to `scheduler`, answer with `responses.json`, and raise `Refusal` or any
    `OnnxcamError`, which become a status and a sentence.

    Attributes:
        settings: of the server.
        models: by name.
        scheduler: the queue and its worker threads.
        metrics: counters and histograms.
        observers: called in the worker thread with every prediction.
    """

    settings: Settings
    models: Models
    scheduler: Scheduler
    metrics: Metrics
    observers: list[Observer] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return not self.scheduler.draining

    def observe(self, model: Model, prediction: Prediction, source: bytes | np.ndarray, request_id: str) -> None:
        """Tell metrics and monitors about predictions of a picture or a tensor; call it in the worker thread."""
        self.metrics.predictions(model.name, prediction.fired)
        for observer in self.observers:
            observer(model, prediction, source, request_id)
