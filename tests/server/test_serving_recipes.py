"""Every recipe of docs/recipes/serving is run as it stands, in an environment of its own where it needs one."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from onnxcam.explain.explainer import Explainer
from tests.server.conftest import CAT, MODELS
from tests.support import environments
from tests.test_recipes import free_port

RECIPES = environments.ROOT / "docs" / "recipes" / "serving"
PAGE = environments.ROOT / "docs" / "how-to" / "platforms.md"
SECONDS = 180

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="process groups")]


@contextmanager
def running(
    command: Sequence[object], address: str, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A server while it runs, and its address once it answers; it is ended as its operator would end it."""
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*map(str, command)], env=environment, cwd=folder, stdout=file, stderr=file, start_new_session=True
        )
    try:
        for _ in range(SECONDS * 4):
            assert process.poll() is None, log.read_text("utf-8", "replace")[-3000:]
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    break
            except OSError:
                pass
            time.sleep(0.25)
        else:
            pytest.fail(f"it does not answer: {log.read_text('utf-8', 'replace')[-3000:]}")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def post(url: str, body: bytes | dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    raw = isinstance(body, bytes)
    headers = {"Content-Type": "image/png" if raw else "application/json"}
    call = urllib.request.Request(url, body if raw else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(call, timeout=SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return environments.sources(tmp_path_factory.mktemp("sources"))


def check_mounted(address: str, explainer: Explainer) -> None:
    """The routes of our server below a path: prediction, map, page and description."""
    status, answer = post(f"{address}/predict_with_gradcam?files=map&when=always", CAT.read_bytes())
    assert status == 200
    expected = explainer.attribute(explainer.prepare(CAT)[1], size="layer")[0]
    assert np.abs(np.array(answer["gradcam_map"], np.float32) - expected).max() <= 1e-6
    assert post(f"{address}/predict_with_gradcam", b"no picture")[0] == 422
    status, answer = post(
        f"{address}/v1/models/lite0:explain", {"instances": [{"b64": base64.b64encode(CAT.read_bytes()).decode()}]}
    )
    assert status == 200 and len(answer["explanations"]) == 1
    with urllib.request.urlopen(f"{address}/openapi.json", timeout=30) as described:
        assert "/predict_with_gradcam" in json.load(described)["paths"]
    index = urllib.request.Request(f"{address}/", headers={"Accept": "text/html"})
    with urllib.request.urlopen(index, timeout=30) as page:
        assert page.headers["content-type"].startswith("text/html")


def test_fastapi_app(tmp_path: Path, explainer: Explainer) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", RECIPES, "--port", port, "fastapi_app:app"]
    with running(command, address, tmp_path):
        check_mounted(f"{address}/cam", explainer)


@pytest.mark.soak  # their environments take a minute each to install
def test_bentoml_service(tmp_path: Path, sources: dict[str, str], explainer: Explainer) -> None:
    python, port = environments.environment("bentoml"), free_port()
    address = f"http://127.0.0.1:{port}"
    home = {"BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "true"}
    command = [python, "-m", "bentoml", "serve", "bentoml_service:Cam", "--working-dir", RECIPES, "--port", port]
    with running(command, f"{address}/readyz", tmp_path, sources | home):
        check_mounted(f"{address}/cam", explainer)
        assert post(f"{address}/names", {}) == (200, ["lite0"])


@pytest.mark.soak
def test_litserve_api(tmp_path: Path, sources: dict[str, str], explainer: Explainer) -> None:
    python, port = environments.environment("litserve"), free_port()
    address = f"http://127.0.0.1:{port}"
    with running([python, RECIPES / "litserve_api.py", port], f"{address}/health", tmp_path, sources):
        status, answer = post(f"{address}/predict", {"image": base64.b64encode(CAT.read_bytes()).decode()})
        e = explainer.explain(CAT)
        assert (status, answer["class"]) == (200, e.label)
        assert abs(answer["confidence"] - e.predictions[0][2]) <= 1e-6
        assert base64.b64decode(answer["overlay"])[:4] == b"\x89PNG"
        assert post(f"{address}/predict", {"image": "%"})[0] == 422
        assert post(f"{address}/predict", {"image": "YWJj"})[0] == 422


@pytest.mark.soak
def test_ray_serve(tmp_path: Path, sources: dict[str, str], explainer: Explainer) -> None:
    python, port = environments.environment("ray_serve"), free_port()
    address = f"http://127.0.0.1:{port}"
    program = (
        "import signal, sys, ray; from ray import serve; import ray_serve\nsignal.signal(signal.SIGTERM, lambda *_: "
        "sys.exit(0))\nray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << "
        "20)\nserve.start(http_options={'host': '127.0.0.1', 'port': int(sys.argv[1])})\nserve.run(ray_serve.app, "
        "blocking=True)"
    )
    settings = {"PYTHONPATH": f"{sources['PYTHONPATH']}:{RECIPES}", "RAY_USAGE_STATS_ENABLED": "0"}
    # one machine, one user: a token would be written into the home folder
    settings["RAY_AUTH_MODE"] = "disabled"
    # Ray gives its agent 15 s to start, which compiling the modules afresh can take
    compiled = {"PYTHONPYCACHEPREFIX": str(python.parent.parent / "pycache"), "PYTHONDONTWRITEBYTECODE": ""}
    with running([python, "-c", program, port], f"{address}/healthz", tmp_path, sources | settings | compiled):
        for _ in range(SECONDS):  # the proxy answers 404 until the replicas are ready
            with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{address}/readyz", timeout=30):
                break
            time.sleep(1)
        check_mounted(address, explainer)


@pytest.mark.soak
def test_kserve_model(tmp_path: Path, sources: dict[str, str], explainer: Explainer) -> None:
    python, port = environments.environment("kserve"), free_port()
    address = f"http://127.0.0.1:{port}"
    command = [python, RECIPES / "kserve_model.py", "--http_port", port, "--enable_grpc", "false"]
    with running(command, f"{address}/v1/models/lite0", tmp_path, sources):
        body = {"instances": [{"b64": base64.b64encode(CAT.read_bytes()).decode()}]}
        status, answer = post(f"{address}/v1/models/lite0:explain", body)
        e = explainer.explain(CAT)
        assert (status, answer["predictions"][0]["class"]) == (200, e.label)
        np.testing.assert_allclose(answer["explanations"][0]["map"], e.raw_map, atol=1e-6)
        status, answer = post(f"{address}/v1/models/lite0:predict", body)
        assert (status, answer["predictions"][0]["class"]) == (200, e.label)
        assert post(f"{address}/v1/models/lite0:explain", {"instances": [{"b64": "%"}]})[0] == 400


def test_kserve_service(tmp_path: Path, explainer: Explainer) -> None:
    """The container's command and probes, with the file where the platform would put it."""
    service = yaml.safe_load((RECIPES / "kserve_service.yaml").read_text("utf-8"))
    (container,) = service["spec"]["predictor"]["containers"]
    port = free_port()
    replaced = {
        "lite0=/mnt/models/model.cam.onnx": f"lite0={MODELS / 'efficientnet_lite0.onnx'}",
        "0.0.0.0": "127.0.0.1",
        str(container["ports"][0]["containerPort"]): str(port),
    }
    words = [replaced.get(word, word) for word in [*container["command"][1:], *container["args"]]]
    assert len(set(replaced) & {*container["command"], *container["args"]}) == 3
    address = f"http://127.0.0.1:{port}"
    probes = [container[name]["httpGet"]["path"] for name in ("livenessProbe", "readinessProbe")]
    with running([sys.executable, "-m", "onnxcam", *words], f"{address}{probes[1]}", tmp_path):
        check_mounted(address, explainer)
        for path in [*probes, "/metrics"]:
            with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
                assert answer.status == 200


def test_every_recipe_is_in_the_page_and_run_here() -> None:
    page, tests = PAGE.read_text("utf-8"), Path(__file__).read_text("utf-8")
    for recipe in RECIPES.iterdir():
        if recipe.is_file():
            assert f"recipes/serving/{recipe.name}" in page
            assert f"def test_{recipe.stem}(" in tests
