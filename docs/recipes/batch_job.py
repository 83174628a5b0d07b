"""A batch job: no traffic to protect, so every row is explained before the next batch (worker="inline").

It writes the monitor's records, for its report and baseline; docs/how-to/fleets.md writes tables instead.

python docs/recipes/batch_job.py FOLDER [PICTURE...]
"""

import sys

import numpy as np

import onnxcam
from onnxcam import models

MODEL = models.path(models.MODEL)
BATCH = 8
paths = sys.argv[2:] or [str(models.path(name)) for name in models.names() if name.endswith(".png") and "/" not in name]

explainer = onnxcam.Explainer(MODEL, providers=["CPUExecutionProvider"])
monitor = onnxcam.Monitor(
    MODEL,
    sink=sys.argv[1],
    when="margin < 0.2 or entropy > 0.3",
    baseline_sample=1.0,
    worker="inline",
    rate=None,
    daily_budget=None,
    redact="none",  # overlays for the report; the pictures are kept with them
)
with monitor:
    for first in range(0, len(paths), BATCH):
        batch = paths[first : first + BATCH]
        tensors = np.concatenate([explainer.prepare(path)[1] for path in batch])
        probabilities = explainer.predict(tensors)
        monitor.observe(probabilities, pictures=batch, ids=batch)
counts = monitor.stats()
print(f"{counts['seen']} pictures, {counts['explained']} explained, {counts['baseline']} of them sure")
