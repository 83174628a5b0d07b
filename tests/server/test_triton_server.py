"""`onnxcam triton`: the repository in a real Triton Inference Server, on the CPU, asked by Triton's own clients.

nvidia-pytriton's wheel carries the server with its Python backend, not the one of ONNX Runtime, which is in NVIDIA's
containers alone. A Python-based backend of that name, which runs `model.onnx` as it stands, takes its place: the
configuration, the protocols, shapes, types and the dynamic batching are Triton's.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from onnxcam.explain.explainer import Explainer
from onnxcam.server import triton
from tests.server.conftest import MODELS
from tests.support import environments
from tests.test_recipes import free_port

pytestmark = [
    pytest.mark.soak,  # its environment takes a minute to install
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the wheel is one for Linux on x86-64"
    ),
]

# joins the requests of a batch, as the backend of ONNX Runtime does
BACKEND = """
import sys
sys.path.insert(0, {site!r})
import json, os
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = config["input"], [output["name"] for output in config["output"]]

    def execute(self, requests):
        feeds = {{}}
        for entry in self.inputs:
            rows = [pb_utils.get_input_tensor_by_name(request, entry["name"]).as_numpy() for request in requests]
            joined = np.concatenate(rows)
            if "reshape" in entry:
                joined = joined.reshape([len(joined), *map(int, entry["reshape"].get("shape", []))])
            feeds[entry["name"]] = joined
        with open({log!r}, "a") as log:
            print(len(joined), file=log)
        ends = np.cumsum([len(one) for one in rows])[:-1]
        results = [np.split(result, ends) for result in self.session.run(self.outputs, feeds)]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(n, r[k]) for n, r in zip(self.outputs, results)])
            for k in range(len(requests))
        ]
"""

ASK = """
import concurrent.futures, json, sys
import numpy as np
import tritonclient.grpc, tritonclient.http
from tritonclient.utils import InferenceServerException
folder, name, *addresses = sys.argv[1:]
x, target = np.load(f"{folder}/x.npy"), np.array([281, -1, 504], np.int64)[:, None]
said = {"errors": {}}

def tensors(kind, rows, target=target, binary=True):
    entries = []
    for name, array in (("input", x[rows]), ("target", target[rows])):
        tensor = kind.InferInput(name, list(array.shape), {"f": "FP32", "i": "INT64"}[array.dtype.kind])
        tensor.set_data_from_numpy(array, **({"binary_data": binary} if kind is tritonclient.http else {}))
        entries.append(tensor)
    return entries

for kind, address in zip((tritonclient.http, tritonclient.grpc), addresses):
    short = kind.__name__.rpartition(".")[2]
    client = kind.InferenceServerClient(address)
    said[short] = [client.is_server_ready(), client.is_model_ready(name)]
    result = client.infer(name, tensors(kind, slice(None)))
    for output in ("logits", "heatmap"):
        np.save(f"{folder}/{short}_{output}.npy", result.as_numpy(output))

    def one(row):
        answer = kind.InferenceServerClient(address).infer(name, tensors(kind, slice(row % 3, row % 3 + 1)))
        return answer.as_numpy("heatmap")[0].tolist()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        said[f"{short}_each"] = list(pool.map(one, range(12)))

client = tritonclient.http.InferenceServerClient(addresses[0])
kind = tritonclient.http
named = client.infer(name, tensors(kind, slice(None)), outputs=[kind.InferRequestedOutput("logits", class_count=1)])
said["names"] = [row[0].decode().split(":")[2] for row in named.as_numpy("logits")]
wrong = kind.InferInput("input", [1, 3, 100, 100], "FP32")
wrong.set_data_from_numpy(np.zeros((1, 3, 100, 100), np.float32))
for case, entries in {
    "no target": tensors(kind, slice(None))[:1],
    "float target": tensors(kind, slice(None), target.astype(np.float32)),
    "another size": [wrong, tensors(kind, slice(1))[1]],
}.items():
    try:
        client.infer(name, entries)
    except InferenceServerException as error:
        said["errors"][case] = error.status()
print(json.dumps(said))
"""


def test_a_triton_server_batches_and_explains(tmp_path: Path, explainer: Explainer) -> None:
    python = environments.environment("tritonserver")
    (site,) = (python.parent.parent / "lib").glob("python*/site-packages")
    carried, log = site / "pytriton" / "tritonserver", tmp_path / "batches"
    backends = tmp_path / "backends"
    shutil.copytree(carried / "backends" / "python", backends / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(carried / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    (backends / "onnxruntime").mkdir()
    (backends / "onnxruntime" / "model.py").write_text(BACKEND.format(site=str(site), log=str(log)), "utf-8")
    triton.Repository.of(str(MODELS / "efficientnet_lite0.onnx"), "lite0").write(tmp_path / "repository")
    names = ("cat.png", "coffee.png", "cat_and_coffee.png")
    x = np.concatenate([explainer.prepare(MODELS / name)[1] for name in names])
    np.save(tmp_path / "x.npy", x)
    ports = [free_port() for _ in range(2)]
    command = [carried / "bin" / "tritonserver", f"--model-repository={tmp_path / 'repository'}"]
    command += [f"--backend-directory={backends}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    command += [f"--http-port={ports[0]}", f"--grpc-port={ports[1]}", "--allow-metrics=false"]
    libraries = f"{site / 'nvidia_pytriton.libs'}:{Path(sys.base_prefix) / 'lib'}"
    environment = os.environ | {"LD_LIBRARY_PATH": libraries}
    with (tmp_path / "log").open("wb") as file:
        process = subprocess.Popen([*map(str, command)], env=environment, stdout=file, stderr=file)
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "log").read_text("utf-8", "replace")[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v2/health/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        addresses = [f"127.0.0.1:{port}" for port in ports]
        output = environments.run("tritonserver", ASK, tmp_path, "lite0", *addresses)
    finally:
        process.terminate()
        process.wait(60)
    maps = explainer.attribute(x, [281, -1, 504], normalize="none", size="layer")
    scores = explainer.run(x).scores
    for protocol in ("http", "grpc"):
        assert output[protocol] == [True, True]
        for name, expected in (("logits", scores), ("heatmap", maps)):
            assert (
                np.abs(np.load(tmp_path / f"{protocol}_{name}.npy") - expected).max() <= 1e-5 * np.abs(expected).max()
            )
        each = np.array(output[f"{protocol}_each"], np.float32)
        assert np.abs(each - maps[np.arange(12) % 3]).max() <= 1e-5 * maps.max()
    assert output["names"] == [explainer.labels[index] for index in scores.argmax(axis=1)]  # type: ignore[index]
    assert output["errors"] == dict.fromkeys(("no target", "float target", "another size"), "400")
    assert max(map(int, log.read_text().split())) > 3, "requests of several clients shared a run"
