"""onnxruntime-web where `tests.support.runtimes` installs it; skips visibly without Node or a network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import runtimes

FOLDER = Path(__file__).parents[2] / "build" / "runtimes"


def package() -> Path:
    """The folder of the package onnxruntime-web; the test is skipped where it cannot be installed."""
    try:
        installed = runtimes.node(FOLDER)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"onnxruntime-web cannot be installed by npm: {error}")
    if installed is None:
        pytest.skip("Node is not installed")
    return FOLDER / "node_modules" / "onnxruntime-web"
