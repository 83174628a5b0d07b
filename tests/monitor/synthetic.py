"""Records and tables whose distribution is known, so that what is read from them can be checked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.monitor.normal import Baseline
from onnxcam.monitor.table import FIELDS, Configuration, Rows

START = datetime(2026, 11, 2, tzinfo=UTC)
LABELS = ("tabby", "beagle", "espresso", "goldfish", "acorn", "barn")
CONFIGURATION = Configuration("ab" * 32, "confidence < 0.6", "gradcam", "layer4")


def rows(rng: np.random.Generator, count: int, *, share: float = 1.0, shift: float = 0.0, side: int = 5) -> Rows:
    """A table of independent rows.

    Arguments:
        kept: the probability with which a confident row is kept; rows below 0.6 are always kept.
        shift: by how many standard deviations `attention.border` is moved.
    """
    # enough traffic that `count` rows are kept of it
    traffic = int(count / (0.25 * 1 + 0.75 * share) * 1.3) + 50
    confidence = rng.beta(4, 1.8, traffic)
    low = confidence < 0.6
    rows_of_traffic = np.flatnonzero(low | (rng.random(traffic) < share))[:count]
    assert len(rows_of_traffic) == count
    confidence, low = confidence[rows_of_traffic], low[rows_of_traffic]
    values = np.full((count, len(FIELDS)), np.nan)
    names = list(FIELDS)
    values[:, names.index("confidence")] = confidence
    values[:, names.index("margin")] = confidence * rng.random(count)
    values[:, names.index("entropy")] = (1 - confidence) * rng.random(count)
    for name in ("attention.y", "attention.x"):
        values[:, names.index(name)] = np.clip(rng.normal(0.5, 0.12, count), 0, 1)
    values[:, names.index("attention.spread")] = rng.gamma(9, 0.03, count)
    values[:, names.index("attention.entropy")] = rng.beta(8, 2, count)
    values[:, names.index("attention.gini")] = rng.beta(3, 3, count)
    values[:, names.index("attention.half_area")] = rng.lognormal(-2, 0.5, count)
    values[:, names.index("attention.border")] = rng.normal(0.2, 0.08, count) + shift * 0.08
    values[:, names.index("attention.peaks")] = 1 + rng.poisson(0.7, count)
    predicted = rng.choice(len(LABELS), count, p=(0.4, 0.25, 0.2, 0.1, 0.04, 0.01))
    energy = rng.gamma(0.7, size=(count, side, side)) * _shape(predicted, side)
    zero = rng.random(count) < 0.002
    energy[zero] = np.nan
    values[zero, names.index("attention.y") : names.index("attention.peaks") + 1] = np.nan
    return Rows(
        values,
        np.where(low, 1.0, 1 / share),
        low,
        zero,
        predicted,
        predicted,
        (energy / energy.sum((1, 2), keepdims=True)).astype(np.float32),
    )


def baseline(table: Rows) -> Baseline:
    return Baseline(
        "test", CONFIGURATION, table, dict(enumerate(LABELS)), "2026-11-02", "2026-11-09", len(table), "tiny"
    )


def _shape(index: np.ndarray, side: int) -> np.ndarray:
    """Every class looks somewhere else."""
    y, x = np.mgrid[:side, :side] / side
    return np.exp(-((y - 0.15 * index[:, None, None]) ** 2 + (x - 0.5) ** 2) * 6)


def record(number: int, **changes: Any) -> dict[str, Any]:
    """One record, a minute after the one before."""
    rng = np.random.default_rng(number)
    index = int(changes.pop("index", rng.integers(3)))
    confidence = float(changes.pop("confidence", round(rng.beta(4, 2), 4)))
    low = confidence < 0.6
    when = changes.pop("when", START + timedelta(minutes=number))
    cells = rng.gamma(0.7, size=(7, 7)) * _shape(np.array([index]), 7)[0]
    document = {
        "schema": 1,
        "id": f"{number:012d}",
        "ts": when.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "request": None,
        "trace": None,
        "host": "a",
        "pid": 7,
        "model": {"name": "tiny", "sha256": CONFIGURATION.model},
        "versions": {"onnxcam": "0.1.0", "onnxruntime": "1.32.0"},
        "provider": "CPUExecutionProvider",
        "latency_ms": {"queued": 1.0, "explain": 17.0},
        "trigger": {
            "when": CONFIGURATION.when,
            "reason": "condition" if low else "baseline",
            "sample": 1.0 if low else 0.1,
        },
        "prediction": {
            "top": [{"index": index, "label": LABELS[index], "probability": confidence}],
            "confidence": confidence,
            "margin": confidence / 2,
            "entropy": 1 - confidence,
            "target": {"index": index, "label": LABELS[index]},
            "layer": "layer4",
            "method": "gradcam",
        },
        "attention": {
            "zero": False,
            "centroid": [float(rng.normal(0.5, 0.1)), float(rng.normal(0.5, 0.1))],
            "spread": float(rng.gamma(9, 0.03)),
            "entropy": float(rng.beta(8, 2)),
            "gini": float(rng.beta(3, 3)),
            "half_area": float(rng.lognormal(-2, 0.3)),
            "border": float(rng.normal(0.2, 0.05)),
            "peaks": 1 + int(rng.poisson(0.7)),
        },
        "map": {"shape": [7, 7], "values": np.round(cells / cells.max() * 255).astype(int).ravel().tolist()},
        "drift": None,
        "picture": {"sha256": None, "size": [480, 640]},
        "files": [],
        "redact": "heatmap_only",
    }
    for path, value in changes.items():
        at = document
        *parents, name = path.split("__")
        for parent in parents:
            at = at[parent]
        at[name] = value
    return document


def write(
    folder: Path, records: Iterable[dict[str, Any]], *, pid: int = 7, open_: bool = False, tail: bytes = b""
) -> Path:
    """One segment of a monitor's folder."""
    entries = list(records)
    start = entries[0]["ts"].replace("-", "").replace(":", "")
    inside = folder / "records"
    inside.mkdir(parents=True, exist_ok=True)
    path = inside / f"{start}-a-{pid}-1.jsonl{'.open' if open_ else ''}"
    path.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in entries) + tail)
    return path
