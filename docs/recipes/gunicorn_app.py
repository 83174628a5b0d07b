"""Pre-fork gunicorn: the monitor is created before the fork, each worker gets its own counters, thread and segment.

CAM=/var/log/cam gunicorn --chdir docs/recipes --preload --workers 2 --config gunicorn_conf.py gunicorn_app:app
"""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

import onnxcam
from onnxcam import models

MODEL = models.path(models.MODEL)
monitor = onnxcam.Monitor(MODEL, sink=os.environ["CAM"], when="confidence < 0.6", baseline_sample=0.5)
explainers: dict[int, onnxcam.Explainer] = {}


def explainer() -> onnxcam.Explainer:
    """A session of this process: those of ONNX Runtime do not survive a fork."""
    if os.getpid() not in explainers:
        explainers[os.getpid()] = onnxcam.Explainer(MODEL, providers=["CPUExecutionProvider"])
    return explainers[os.getpid()]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    data = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    _, tensor, _ = explainer().prepare(data)
    probabilities = explainer().predict(tensor)
    monitor.observe(probabilities, pictures=[data], ids=[environ.get("HTTP_X_REQUEST_ID")])
    best = int(probabilities[0].argmax())
    answer = {"pid": os.getpid(), "class": explainer().labels[best], "probability": float(probabilities[0, best])}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
