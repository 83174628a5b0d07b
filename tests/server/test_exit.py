"""A server that ends while a thread of its own is inside ONNX Runtime ends well."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.server.conftest import CAT, MODELS

# the measurement begins after a second without requests; the other thread with the first prediction without a map
PROGRAM = """
import sys, threading
from starlette.testclient import TestClient
from onnxcam.server import create_app, gain

began, pays = threading.Event(), gain.pays
gain.pays = lambda *arguments: (began.set(), pays(*arguments))[1]
with TestClient(create_app(sys.argv[1], threads=1, rows=sys.argv[3] if sys.argv[3] == "auto" else 1)) as client:
    if sys.argv[3] == "auto":
        assert began.wait(60)
    else:
        files = {"image": open(sys.argv[2], "rb").read()}
        assert client.post("/predict_with_gradcam", files=files, data={"when": "never"}).status_code == 200
"""


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["auto", "1"])
def test_the_process_ends_with_status_0(rows: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(MODELS / "efficientnet_lite0.onnx"), str(CAT), rows]
    result = subprocess.run(command, capture_output=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, b"")
