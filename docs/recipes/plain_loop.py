"""A plain onnxruntime loop: the session is wrapped, nothing else changes.

python docs/recipes/plain_loop.py FOLDER
"""

import sys

import numpy as np
import onnxruntime

import onnxcam
from onnxcam import models

MODEL = models.path(models.MODEL)  # yours: model.cam.onnx explains, and any model with the same classes predicts

monitor = onnxcam.Monitor(MODEL, sink=sys.argv[1], when="confidence < 0.6", baseline_sample=0.5, rate="50/s")
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = monitor.wrap(onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"]))

prepare = onnxcam.Explainer(MODEL, providers=["CPUExecutionProvider"]).prepare
for name in ("cat.png", "coffee.png", "cat_and_coffee.png"):
    _, tensor, _ = prepare(models.path(name))
    for shift in range(0, 224, 56):
        (logits,) = session.run(["logits"], {"input": np.roll(tensor, shift, axis=3)})
        print(f"{name} moved by {shift}: class {logits.argmax()}")

monitor.close(30)
counts = monitor.stats()
print(f"seen {counts['seen']}, explained {counts['explained']}, confident and not sampled {counts['confident']}")
