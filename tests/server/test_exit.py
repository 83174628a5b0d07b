"""A server that ends while a thread of its own is inside ONNX Runtime ends well."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.server.conftest import CAT, MODELS

# the measurement begins after a second without requests; the other thread with the first prediction without a map
PROGRAM = """
import sys, threading
import onnxruntime
from pathlib import Path
from starlette.testclient import TestClient
from onnxcam.server import create_app, gain

model, picture, rows = sys.argv[1:]
began, name = threading.Event(), "onnxcam-server-gain" if rows == "auto" else "onnxcam-server-head"
def notice(function):
    def call(*arguments, **keywords):
        if threading.current_thread().name == name:
            began.set()
        return function(*arguments, **keywords)
    return call
session = onnxruntime.InferenceSession
session.run, session.__init__ = notice(session.run), notice(session.__init__)
with TestClient(create_app(model, threads=1, rows=rows if rows == "auto" else int(rows))) as client:
    if rows != "auto":
        files = {"image": Path(picture).read_bytes()}
        assert client.post("/predict_with_gradcam", files=files, data={"when": "never"}).status_code == 200
    assert began.wait(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["auto", "1"])
def test_the_process_ends_with_status_0(rows: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(MODELS / "efficientnet_lite0.onnx"), str(CAT), rows]
    result = subprocess.run(command, capture_output=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, b"")
