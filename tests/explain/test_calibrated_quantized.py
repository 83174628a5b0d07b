"""A quantised file has a temperature of its own, and that of the float file is not applied to it without a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import onnxcam
from onnxcam.network import manifest as manifests
from tests.support import models

RAW = {"scale": 1 / 255}
LABELS = list("abcde")


class Reader:
    """Calibration data of ONNX Runtime's quantization."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self._batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


def quantize(source: Path, target: Path, batches: list[np.ndarray]) -> Path:
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.quantize_static(source, target, Reader(batches), quant_format=quantization.QuantFormat.QDQ)
    return target


def temperature(model: onnx.ModelProto) -> float:
    manifest = manifests.read(model)
    assert manifest is not None
    return float(manifest["calibration"]["temperature"])


@pytest.mark.slow
def test_each_file_has_the_temperature_of_its_own_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(120)]
    onnx.save(models.tiny_cnn(), tmp_path / "float.onnx")
    opening: dict[str, Any] = {"labels": LABELS, "preprocess": RAW}
    explainer = onnxcam.Explainer(tmp_path / "float.onnx", **opening)
    batches = [explainer.prepare(picture)[1] for picture in pictures]
    truth = (2 * explainer.batch_scores(np.concatenate(batches)) + rng.gumbel(size=(120, 5))).argmax(axis=1)
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", batches[:20])
    result = {}
    for name in ("float", "int8"):
        result[name] = onnxcam.calibrate(
            tmp_path / f"{name}.onnx", pictures, truth, on_warning=lambda sentence: None, **opening
        )
        scores = onnxcam.Explainer(result[name]).batch_scores(np.concatenate(batches)).astype(np.float64)

        def likelihood(beta: float, scores: np.ndarray = scores) -> float:
            return float(-log_softmax(beta * scores, axis=1)[np.arange(120), truth].mean())

        best = minimize_scalar(likelihood, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-10})
        assert temperature(result[name]) == pytest.approx(1 / best.x, rel=1e-5)
        assert onnxcam.Explainer(result[name]).warnings == explainer.warnings
    assert abs(temperature(result["float"]) - temperature(result["int8"])) > 1e-3
    # quantising the calibrated file keeps its metadata and its nodes, which were made for other scores
    onnx.save(result["float"], tmp_path / "calibrated.onnx")
    stale = onnxcam.Explainer(quantize(tmp_path / "calibrated.onnx", tmp_path / "stale.onnx", batches[:20]))
    doubts = [sentence for sentence in stale.warnings if "has been changed since it was calibrated" in sentence]
    assert len(doubts) == 1
    assert doubts[0] in stale.explain(pictures[0]).warnings
