"""Records and pictures to write, and what a folder of them really holds, read without the code under test."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam.monitor import record

PNG = b"\x89PNG\r\n\x1a\n"


def make(**changes: Any) -> dict[str, Any]:
    """A record as the worker makes them."""
    fields: dict[str, Any] = {
        "model": {"name": "resnet", "sha256": "0" * 64},
        "provider": "CPUExecutionProvider",
        "trigger": {"when": "confidence < 0.6", "reason": "condition", "sample": 1.0},
        "probabilities": np.array([0.2, 0.5, 0.3], np.float32),
        "confidence": 0.5,
        "margin": 0.2,
        "entropy": 0.94,
        "target": 1,
        "layer": "layer4",
        "method": "gradcam",
        "raw_map": np.arange(12.0).reshape(3, 4),
        "latency_ms": {"queued": 1.25, "explain": 17.0},
        "labels": ["cat", "dög", "毛"],
    }
    return record.build(**(fields | changes))


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a segment: whatever ends in a newline must be one."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def records_in(root: Path) -> list[dict[str, Any]]:
    """Every record of a folder, of open and closed segments."""
    records = []
    for path in sorted((root / "records").iterdir()):
        if path.name.endswith((".jsonl", ".jsonl.open")):
            records += lines(path)
    return records


def faults(root: Path) -> list[str]:
    """What is wrong with the files that the records of a folder name."""
    wrong = []
    for one in records_in(root):
        for entry in one["files"]:
            path = root / entry["name"]
            if not path.is_file():
                wrong.append(f"{one['id']}: {entry['name']} is missing")
            elif len(path.read_bytes()) != entry["bytes"] or sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                wrong.append(f"{one['id']}: {entry['name']} is not what the record says")
    return wrong


def size(root: Path) -> int:
    """Bytes of everything in a folder."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
