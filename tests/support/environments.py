"""Python environments of their own, for clients whose requirements clash with those of the tests.

Each is made once, under `build/environments`, and used again while its requirements stay the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "environments"
SECONDS = 600
_STARTS = 4
# what onnxcam needs to run in an environment, beside its own sources
_RUNTIME = ("onnxruntime==1.32.0", "onnx==1.23.2", "opencv-python-headless>=4.12", "numpy", "click")
_SERVER = (*_RUNTIME, "starlette", "uvicorn", "orjson", "python-multipart", "prometheus-client")
# what is installed, by the name of an environment
REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "triton": ("tritonclient[grpc,http]==2.73.0",),
    # its server is of a version that gives empty tensors to NumPy 2, and that wheel of ONNX Runtime takes NumPy 1
    "tritonserver": ("nvidia-pytriton==0.7.0", "numpy==1.26.4", "onnxruntime==1.20.1"),
    "kserve": ("kserve==0.21.0", *_RUNTIME),
    "bentoml": ("bentoml==1.4.40", *_SERVER),
    "ray_serve": ("ray[serve]==2.60.0", *_SERVER),
    "litserve": ("litserve==0.2.19", *_RUNTIME),
    "mapie": ("mapie==1.6.0",),
    "ray": ("ray[data]==2.60.0", *_RUNTIME),
    "daft": ("daft==0.7.26", "pyarrow==25.0.1", *_RUNTIME),
    "spark": ("pyspark==4.3.0", "pandas<3", "pyarrow==26.0.1", *_RUNTIME),
    "mlserver": ("mlserver==1.7.1",),  # read, not run: without its dependencies
}


def environment(name: str) -> Path:
    """The interpreter of an environment; the test is skipped, with the reason, where it cannot be made."""
    python, reason = _prepare(name)
    if reason is not None:
        pytest.skip(reason)
    return python


@cache
def _prepare(name: str) -> tuple[Path, str | None]:
    """The interpreter, and why it cannot be had."""
    requirements = REQUIREMENTS[name]
    digest = hashlib.sha256(json.dumps([sys.version, requirements]).encode()).hexdigest()[:12]
    place = FOLDER / f"{name}-{digest}"
    python = place / "bin" / "python"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes wait for the one that makes it
        if not (place / "complete").exists():
            shutil.rmtree(place, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=SECONDS)
            options = ["--no-deps"] if name == "mlserver" else []
            command = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *options]
            done = subprocess.run(
                [*command, *requirements], capture_output=True, text=True, timeout=SECONDS, check=False
            )
            if done.returncode:
                shutil.rmtree(place, ignore_errors=True)
                last = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
                return python, f"{', '.join(requirements)} cannot be installed here: {last}"
            (place / "complete").touch()
    return python, None


def run(name: str, program: str, *arguments: object, text: str | None = None) -> Any:
    """What a program prints, as JSON, in an environment; its standard error is the assertion's message."""
    command = [str(environment(name)), "-c", program, *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_engine(command: Sequence[str], seconds: float, environment: Mapping[str, str], folder: Path) -> str:
    """What a program of an engine prints; its standard error is the assertion's message.

    Ray gives its own processes 30 seconds to start, too few on a busy machine; nothing has run then: it is run again.
    """
    for _ in range(_STARTS):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, env=environment, cwd=folder
        )
        if "timed out during startup" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


def sources(folder: Path) -> dict[str, str]:
    """Environment variables under which an environment's interpreter imports onnxcam from this tree.

    Arguments:
        folder: an empty one, for a package as it is installed.
    """
    package = folder / "onnxcam"
    package.mkdir(parents=True)
    for source in [*(ROOT / "onnxcam").iterdir(), ROOT / "exporters", ROOT / "models"]:
        if source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    return os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
