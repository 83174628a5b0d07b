"""What several exports of one network share."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

_captured: dict[Any, Any] = {}


@pytest.fixture(scope="module")
def few_collections() -> Iterator[None]:
    """Leave out the 40 garbage collections of each Keras export: they bound its memory, which here is small.

    Each would walk through all that other tests of the process have left: half of the time a small network takes.
    """
    keras = pytest.importorskip("keras")
    from onnxcam.exporters import keras_weights

    collector = SimpleNamespace(
        collect=lambda: 0, freeze=lambda: None, unfreeze=lambda: None, get_freeze_count=gc.get_freeze_count
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_weights, "gc", collector)
        yield
    keras.backend.clear_session()


@pytest.fixture
def capture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture each PyTorch network once, for tests of what an export does with the plain file.

    torch.onnx takes nearly all the time of a small network's export. It writes the same for the same class of module,
    weights, example, layers, output names and opset.
    """
    from onnxcam.exporters import torch_capture

    original: Callable[..., torch_capture.Captured] = torch_capture.capture

    def capture(watched: Any, picture: Any, targets: Any, outputs: Any, opset: Any) -> torch_capture.Captured:
        weights = hashlib.sha256()
        for name, value in watched.root.state_dict().items():
            weights.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
        key = (
            type(watched.root), weights.digest(), picture.numpy().tobytes(), picture.shape, tuple(targets),
            tuple(outputs), opset,
        )  # fmt: skip
        if key not in _captured:
            _captured[key] = original(watched, picture, targets, outputs, opset)
        model = onnx.ModelProto()
        model.CopyFrom(_captured[key].model)
        return replace(_captured[key], model=model)

    monkeypatch.setattr(torch_capture, "capture", capture)
