"""Every recipe of docs/how-to/monitoring.md is run as it stands, and its records are read."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam import models, runtime
from onnxcam.monitor import counters, reading
from onnxcam.monitor.schema import problems
from tests.monitor import synthetic

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "docs" / "recipes"
SECONDS = 120

pytestmark = pytest.mark.slow


def run(name: str, *arguments: object) -> str:
    """What a recipe prints."""
    command = [sys.executable, str(RECIPES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records_in(folder: Path, count: int) -> list[reading.Record]:
    """The records of a folder: as many as promised, each good, each picture there, and the counters agree."""
    records = list(reading.records(folder))
    assert len(records) == count == counters.total(folder)["explained"]
    assert len({record["id"] for record in records}) == count
    for record in records:
        assert problems(record) == []
        for entry in record["files"]:
            assert (folder / entry["name"]).stat().st_size == entry["bytes"]
    return records


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@contextmanager
def served(command: list[str], folder: Path, port: int) -> Iterator[str]:
    """A server's address while it runs; it is asked to end as its operator would ask it."""
    environment = os.environ | {"CAM": str(folder)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for _ in range(SECONDS * 10):
            assert process.poll() is None, process.communicate()[0].decode()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(url: str, data: bytes, **headers: str) -> Any:
    call = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    with urllib.request.urlopen(call, timeout=SECONDS) as answer:
        return json.load(answer)


def test_plain_loop(tmp_path: Path) -> None:
    match = re.search(r"seen 12, explained (\d+), confident and not sampled (\d+)", run("plain_loop.py", tmp_path))
    assert match is not None and int(match[1]) + int(match[2]) == 12
    records_in(tmp_path, int(match[1]))


def test_batch_job(tmp_path: Path) -> None:
    assert "3 pictures, 3 explained" in run("batch_job.py", tmp_path)
    records = records_in(tmp_path, 3)
    assert {Path(record["request"]).name for record in records} == {"cat.png", "coffee.png", "cat_and_coffee.png"}
    assert all({entry["kind"] for entry in record["files"]} == {"input", "overlay", "heatmap"} for record in records)


def test_pytorch_model(tmp_path: Path) -> None:
    needs("torch", "onnxscript")
    assert "20 explained in ONNX Runtime" in run("pytorch_model.py", tmp_path)
    records_in(tmp_path, 20)


def test_one_worker_per_device(tmp_path: Path) -> None:
    assert run("one_worker_per_gpu.py", tmp_path, "cpu", "cpu").count("6 explained") == 2
    assert len({record["pid"] for record in records_in(tmp_path, 12)}) == 2


def test_prometheus_scrape(tmp_path: Path) -> None:
    needs("prometheus_client")
    output = run("prometheus_scrape.py", tmp_path)
    counted = {name: float(value) for name, value in re.findall(r"^onnxcam_monitor_rows_(\S+) (\S+)$", output, re.M)}
    dropped = sum(value for name, value in counted.items() if name.startswith("dropped"))
    assert counted["seen_total"] == 10 == counted["explained_total"] + dropped
    records_in(tmp_path, int(counted["explained_total"]))


def test_fastapi_app(tmp_path: Path) -> None:
    needs("fastapi", "uvicorn")
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(RECIPES), "--port", str(port), "fastapi_app:app"]
    with served(command, tmp_path, port) as address:
        for number, name in enumerate(("cat.png", "cat_and_coffee.png", "coffee.png")):
            trace = f"00-{number:032x}-0000000000000001-01"
            answer = post(
                f"{address}/predict", models.path(name).read_bytes(), X_Request_Id=f"r{number}", Traceparent=trace
            )
            assert 0 < answer["probability"] <= 1
        with urllib.request.urlopen(f"{address}/stats", timeout=SECONDS) as counted:
            assert json.load(counted)["seen"] == 3
    explained = counters.total(tmp_path)["explained"]
    records = records_in(tmp_path, explained)
    assert explained >= 1
    for record in records:
        assert record["trace"] == f"00-{int(record['request'][1:]):032x}-0000000000000001-01"


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn forks")
def test_gunicorn_app(tmp_path: Path) -> None:
    needs("gunicorn")
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(RECIPES), "--preload", "--workers", "2"]
    command += ["--config", str(RECIPES / "gunicorn_conf.py"), "--bind", f"127.0.0.1:{port}", "gunicorn_app:app"]
    picture = models.path("cat_and_coffee.png").read_bytes()
    with served(command, tmp_path, port) as address:
        pids: set[int] = set()
        for number in range(40):
            pids.add(post(address, picture, X_Request_Id=f"r{number}")["pid"])
            if len(pids) == 2 and number >= 3:
                break
    counted = counters.total(tmp_path)
    assert counted["seen"] == number + 1
    records = records_in(tmp_path, counted["explained"])
    assert {record["pid"] for record in records} <= pids


def test_triton_client(tmp_path: Path) -> None:
    """Against a stand-in that speaks the same protocol, with the model behind it."""
    session = runtime.open_session(models.path(models.MODEL), ["CPUExecutionProvider"])

    class Triton(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v2/models/efficientnet/infer"
            (tensor,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            assert tensor["datatype"] == "FP32"
            batch = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
            (logits,) = session.run(["logits"], {tensor["name"]: batch})
            output = {
                "name": "logits",
                "datatype": "FP32",
                "shape": list(logits.shape),
                "data": logits.ravel().tolist(),
            }
            body = json.dumps({"model_name": "efficientnet", "outputs": [output]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Triton)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        printed = run("triton_client.py", tmp_path, f"http://127.0.0.1:{server.server_port}", "efficientnet")
    finally:
        server.shutdown()
        server.server_close()
    assert "coffee.png: espresso" in printed and "explained 2 of 2" in printed
    records_in(tmp_path, 2)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_drift_cron(tmp_path: Path) -> None:
    from onnxcam.monitor import baseline

    (tmp_path / "baseline.json").write_text(json.dumps(baseline.build([synthetic.record(n) for n in range(700)])[0]))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "onnxcam").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxcam "$@"\n')
    (bin_ / "onnxcam").chmod(0o755)
    now = time.time()

    def cron(border: float, name: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / name
        calls = []
        for number in range(1000, 1600):
            record = synthetic.record(number, attention__border=border) if border else synthetic.record(number)
            record["ts"] = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(now - 3600 + number))
            calls.append(record)
        synthetic.write(folder, calls)
        command = ["sh", str(RECIPES / "drift_cron.sh"), str(folder), str(tmp_path / "baseline.json"), str(tmp_path)]
        environment = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=ROOT, check=False
        )

    quiet = cron(0, "quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    loud = cron(0.4, "loud")
    assert loud.returncode == 5 and "attention.border" in loud.stdout
    (page,) = tmp_path.glob("drift-*.html")
    assert "Drift" in page.read_text(encoding="utf-8")


def test_every_recipe_is_in_the_page_and_run_here() -> None:
    page = (ROOT / "docs" / "how-to" / "monitoring.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    for recipe in RECIPES.iterdir():
        if recipe.is_file() and recipe.name != "gunicorn_conf.py":
            assert f"recipes/{recipe.name}" in page
            assert recipe.stem in tests
