"""The rows of the coverage matrix, stored as JSON in benchmarks/coverage, each with its date and versions."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.architectures import KERAS, TORCH

ROWS = Path(__file__).with_name("coverage")
PACKAGES = ("onnxcam", "onnxruntime", "onnx", "torch", "torchvision", "onnxscript")
KERAS_PACKAGES = ("keras", "tensorflow_cpu", "tf2onnx")
Row = dict[str, Any]


def tasks(names: Sequence[str] = ()) -> list[str]:
    """Everything to measure, or the tasks of some names: each architecture, then each light model."""
    from tests.support.onnx_models import NAMES

    every = [f"torchvision:{name}" for name in sorted(TORCH)] + [f"light:{name}" for name in sorted(NAMES)]
    every += [f"keras:{name}" for name in sorted(KERAS)]
    return [task for task in every if not names or task in names or task.partition(":")[2] in names]


def read(task: str) -> Row | None:
    """The stored record of a task, None where it was not measured."""
    path = _path(task)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write(task: str, measured: dict[str, Row], seconds: float) -> None:
    """Store the rows of a task with today's date and the installed versions."""
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": _versions(task),
        "seconds": seconds,
        "passed": all(row["passed"] and not row.get("refused") for row in measured.values()),
        "rows": measured,
    }
    ROWS.mkdir(parents=True, exist_ok=True)
    part = _path(task).with_suffix(".part")
    part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    part.replace(_path(task))


def remove(task: str) -> None:
    """Forget a task's rows, so that a crash does not leave the old ones."""
    _path(task).unlink(missing_ok=True)


def failed(task: str, reason: str) -> dict[str, Row]:
    """Rows of a task that could not be measured."""
    kinds = ("light",) if task.startswith("light:") else ("default", "middle")
    return {kind: {"passed": False, "reason": reason} for kind in kinds}


def _versions(task: str) -> dict[str, str]:
    of_torch = ("torch", "torchvision", "onnxscript")
    names = PACKAGES if task.startswith("torchvision:") else [name for name in PACKAGES if name not in of_torch]
    names = [*names, *KERAS_PACKAGES] if task.startswith("keras:") else names
    return {name: importlib.metadata.version(name) for name in names}


def _path(task: str) -> Path:
    return ROWS / (task.replace(":", ".") + ".json")
