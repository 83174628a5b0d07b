"""The monitor on models of many channels: rows of tensors, arrays and files of arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import onnxcam
from onnxcam.monitor.row_explainer import to_pixels
from onnxcam.network.layout import Layout

FOUR = Path(__file__).parent.parent / "cases" / "four_channels.onnx"


def drawn(shape: tuple[int, ...], high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, high, shape)


def test_arrays_of_16_bits_are_explained_as_the_file_says(tmp_path: Path) -> None:
    spec = {"color": "bands", "channels": 4, "scale": 1 / 255, "range": [0, 10000]}
    model = onnxcam.augment(str(FOUR), preprocess=spec)
    array = drawn((64, 64, 4), 9000).astype(np.uint16)
    np.save(tmp_path / "a.npy", array[::-1])
    explainer = onnxcam.Explainer(model)
    scores = np.concatenate([explainer.run(explainer.prepare(one)[1]).scores for one in (array, tmp_path / "a.npy")])
    monitor = onnxcam.Monitor(model, sink=str(tmp_path / "records"), when="confidence <= 1", redact="none", rate=None)
    try:
        monitor.observe(scores, pictures=[array, tmp_path / "a.npy"])
        assert monitor.flush(60)
        stats = monitor.stats()
    finally:
        monitor.close(10)
    assert (stats["explained"], stats["failed"]) == (2, 0), stats
    lines = [line for path in (tmp_path / "records").rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert len([line for line in lines if "heatmap" in line and json.loads(line)]) == 2


def test_the_monitor_draws_rows_of_many_channels() -> None:
    for channels in (2, 4, 13):
        tensor = drawn((1, channels, 8, 9)).astype(np.float32)
        preprocess = onnxcam.image.preset("0..1", (8, 9), channels)
        for spec in (None, preprocess):
            pixels = to_pixels(tensor, spec, Layout("NCHW"))
            assert pixels.shape == (8, 9, 3) and pixels.dtype == np.uint8
