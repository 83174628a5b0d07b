"""A plain loop over a folder, in batches: the same callable as in Ray, Daft and Spark.

python docs/recipes/fleets/loop.py FOLDER
"""

import sys
from pathlib import Path

from onnxcam import models
from onnxcam.fleet import Explain

MODEL = models.path(models.MODEL)  # yours: exported by onnxcam, or any classifier .onnx
BATCH = 64

explain = Explain(MODEL, when="confidence < 0.6", column="path")
paths = sorted(str(path) for path in Path(sys.argv[1]).iterdir() if path.is_file())
for start in range(0, len(paths), BATCH):
    part = paths[start : start + BATCH]
    table = explain({"path": part, "name": [Path(path).name for path in part]})
    for name, label, confidence, fired, error in zip(
        *(table[key] for key in ("name", "label", "confidence", "fired", "error")), strict=True
    ):
        print(f"{name}: {error or f'{label} {confidence:.2f}'}{' explained' if fired else ''}")
