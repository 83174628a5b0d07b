"""The part of the coverage matrix about the onnx package's light models: old files, without a framework to ask."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.files import SEED
from benchmarks.judgement import distance

Row = dict[str, Any]


def measure(name: str) -> Row:
    """Augment one of the onnx package's light models, compare its predictions with the file as it came, check it."""
    import numpy as np

    from onnxcam.diagnose.gradients import check
    from onnxcam.network import manifest
    from onnxcam.network.explainable import augment
    from onnxcam.runtime import open_session, run
    from tests.support.onnx_models import light

    plain = light(name)
    began = time.perf_counter()
    explained = augment(plain)
    seconds = time.perf_counter() - began
    header = manifest.read(explained)
    assert header is not None
    entry, picture = header["layers"][0], header["input"]
    shape = [dim if isinstance(dim, int) else 1 for dim in picture["shape"]]
    batch = np.random.default_rng(SEED).normal(size=shape).astype(np.float32)
    output = plain.graph.output[0].name
    cpu = ["CPUExecutionProvider"]
    before = run(open_session(plain.SerializeToString(), cpu), [output], {picture["name"]: batch})[output]
    after = run(open_session(explained.SerializeToString(), cpu), [output], {picture["name"]: batch})[output]
    far = float(distance(after, before).max())
    report = check(explained, providers=cpu)
    gradients = next(finding for finding in report.findings if finding.name.startswith("gradients"))
    return {
        "opset": plain.opset_import[0].version,
        "layer": entry["name"],
        "shape": entry["shape"],
        "predictions": far,
        "gradients": gradients.status,
        "detail": gradients.detail,
        "differences": gradients.figures,
        "findings": [line for line, f in zip(report.lines(), report.findings, strict=True) if f.status == "failed"],
        "augment_s": seconds,
        "passed": report.passed and far <= 1e-5,
    }
