"""Stand-ins for the monitor's tests: a clock that is set by hand, sinks that keep, fail or hang, small pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxcam.monitor import record as records
from onnxcam.monitor.predictions import Row
from onnxcam.monitor.row_explainer import Settings
from onnxcam.network.explainable import augment
from tests.support.models import tiny_cnn

CLASSES, SIZE = 5, 32
# a probe would load ONNX Runtime, and some tests fork
PLAIN = tiny_cnn(classes=CLASSES, size=SIZE).SerializeToString()
MODEL = augment(PLAIN, probe=False).SerializeToString()
# the same with pictures so small that a prediction costs next to nothing
SMALL_PLAIN = tiny_cnn(classes=CLASSES, size=8, width=2).SerializeToString()
SMALL = augment(SMALL_PLAIN, probe=False).SerializeToString()
ALWAYS = "confidence <= 1"
UNLIMITED: dict[str, Any] = {"rate": None, "daily_budget": None, "duplicates": 0}


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Collector:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.files: list[dict[str, bytes]] = []
        self.closed = 0

    def write(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        self.records.append(record)
        self.files.append(dict(files))

    def close(self, timeout: float) -> None:
        self.closed += 1


class Gate:
    """A sink that hangs until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()

    def write(self, record: dict[str, Any], files: Mapping[str, bytes]) -> None:
        self.entered.set()
        self.open.wait()

    def close(self, timeout: float) -> None: ...


class Stub:
    """Stands in for `RowExplainer` where many explanations are wanted and their content does not matter."""

    def __init__(self, settings: Settings, pause: Callable[[], None] = lambda: None) -> None:
        self._settings = settings

    def __call__(self, row: Row, waited: float) -> tuple[dict[str, Any], dict[str, bytes]]:
        record = records.build(
            model={"name": "stub", "sha256": self._settings.sha256},
            provider="CPUExecutionProvider",
            trigger={"when": self._settings.when, "reason": row.reason, "sample": row.sample},
            probabilities=row.probabilities,
            confidence=row.quantities["confidence"],
            margin=row.quantities["margin"],
            entropy=row.quantities["entropy"],
            target=int(row.quantities["label"]),
            layer="stub",
            method="gradcam",
            raw_map=np.ones((2, 2)),
            latency_ms={"queued": waited * 1e3, "explain": 0.0},
            observed=row.observed,
            request=row.request,
            trace=row.trace,
        )
        return record, {}


def pictures(rows: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """A batch of noise, float32 `[rows, 3, size, size]`."""
    return np.random.default_rng(seed).normal(size=(rows, 3, size, size)).astype(np.float32)


def logits(rows: int, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    """Scores, float32 `[rows, CLASSES]`."""
    return np.random.default_rng(seed).normal(scale=spread, size=(rows, CLASSES)).astype(np.float32)


def balanced(stats: Mapping[str, Any]) -> bool:
    """Promise 4: every row that was seen is in exactly one place."""
    places = stats["confident"] + sum(stats["dropped"].values()) + stats["explained"] + stats["failed"]
    return bool(stats["seen"] == places + stats["queued"] + stats["running"])
