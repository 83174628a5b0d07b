"""Run an explainable file as any ONNX Runtime client would; constants shared by all parts of the coverage matrix."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.judgement import Ask

SAMPLES = 3
SEED = 1234
# pictures that settle the batch norms: fewer fit these too well, and activations then grow with depth
SETTLING = 64
# runs of one file on one batch, which must give the same bits
RUNS = 3


def open_file(explained: Any, manifest: Any, entry: Any) -> Ask:
    """How to ask a file alone for scores, activations and gradients at one of its layers."""
    session = open_session(explained)
    names = [manifest["scores"]["name"], entry["activations"], entry["gradients"]]

    def ask(batch: Any, targets: Any) -> Any:
        feeds = {manifest["input"]["name"]: batch, manifest["target"]["name"]: targets}
        outputs = session.run(names, feeds)
        for _ in range(RUNS - 1):
            if any((a != b).any() for a, b in zip(outputs, session.run(names, feeds), strict=True)):
                raise ValueError("two runs on the same pictures give different numbers")
        return outputs

    return ask


def open_session(model: Any) -> Any:
    """A plain session on the model's file, or on the two files of one over 2 GiB."""
    import onnxruntime

    from onnxcam.graph.load import save

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        save(model, path)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
