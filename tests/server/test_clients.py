"""Real clients against a running server: tritonclient and kserve's, each in an environment of its own; curl.

What they read is compared with `Explainer`. mlserver's OpenAPI description of the Open Inference Protocol is the schema
of what they get.
"""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from onnxcam.explain.explainer import Explainer
from tests.server.conftest import CAT, MODELS
from tests.support import environments

pytestmark = pytest.mark.slow

TRITON = """
import json, sys
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException
address, folder = sys.argv[1:]
x = np.load(f"{folder}/batch.npy")
client = http.InferenceServerClient(address)
said = {"live": client.is_server_live(), "ready": client.is_server_ready(), "model": client.is_model_ready("lite0"),
        "version": client.is_model_ready("lite0", "1"), "missing": client.is_model_ready("other"),
        "server": client.get_server_metadata(), "metadata": client.get_model_metadata("lite0")}

def tensor(binary):
    entry = http.InferInput("input", list(x.shape), "FP32")
    entry.set_data_from_numpy(x, binary_data=binary)
    target = http.InferInput("target", [len(x)], "INT64")
    target.set_data_from_numpy(np.array([281, -1, 504]), binary_data=binary)
    return [entry, target]

for name, binary in (("binary", True), ("json", False)):
    outputs = [http.InferRequestedOutput(one, binary_data=binary) for one in ("logits", "heatmap", "fired")]
    result = client.infer("lite0", tensor(binary), outputs=outputs, request_id="r7")
    for one in ("logits", "heatmap", "fired"):
        np.save(f"{folder}/{name}_{one}.npy", result.as_numpy(one))
    said[f"{name}_id"] = result.get_response()["id"]
result = client.infer("lite0", tensor(True), model_version="1", parameters={"when": "never"})
said["never"] = result.as_numpy("fired").tolist()
picture = http.InferInput("image", [1], "BYTES")
picture.set_data_from_numpy(np.array([open(sys.argv[2] + "/cat.png", "rb").read()], dtype=np.object_))
pending = client.async_infer("lite0", [picture])
np.save(f"{folder}/picture_heatmap.npy", pending.get_result().as_numpy("heatmap"))
errors = {}
for name, call in (
    ("output", lambda: client.infer("lite0", tensor(True), outputs=[http.InferRequestedOutput("other")])),
    ("missing", lambda: client.infer("other", tensor(True))),
    ("compressed", lambda: client.infer("lite0", tensor(True), request_compression_algorithm="gzip")),
):
    try:
        call()
    except InferenceServerException as error:
        errors[name] = [error.status(), error.message()]
said["errors"] = errors
print(json.dumps(said))
"""

KSERVE = """
import asyncio, base64, json, sys
import httpx, numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
url, folder = sys.argv[1:]
x = np.load(f"{folder}/batch.npy")
picture = base64.b64encode(open(f"{folder}/cat.png", "rb").read()).decode()

async def main():
    said = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as v2:
        said["live"] = await v2.is_server_live(url)
        said["ready"] = await v2.is_server_ready(url)
        said["model"] = await v2.is_model_ready(url, "lite0")
        said["missing"] = await v2.is_model_ready(url, "other")
        for name, binary in (("binary", True), ("json", False)):
            entry = InferInput("input", list(x.shape), "FP32")
            entry.set_data_from_numpy(x, binary_data=binary)
            target = InferInput("target", [len(x)], "INT64")
            target.set_data_from_numpy(np.array([281, -1, 504]), binary_data=binary)
            request = InferRequest("lite0", [entry, target], request_id="r7",
                                   parameters={"binary_data_output": binary})
            response = await v2.infer(url, request, model_name="lite0")
            said[f"{name}_id"] = response.id
            for output in response.outputs:
                np.save(f"{folder}/kserve_{name}_{output.name}.npy", output.as_numpy())
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as v1:
        said["v1_live"] = await v1.is_server_live(url)
        said["v1_ready"] = await v1.is_model_ready(url, "lite0")
        said["predict"] = await v1.infer(url, {"instances": x.tolist()}, model_name="lite0")
        said["explain"] = await v1.explain(url, "lite0", {"instances": [{"b64": picture}]})
        try:
            await v1.explain(url, "lite0", {"instances": [{"b64": "%"}]})
        except httpx.HTTPStatusError as error:
            said["error"] = [error.response.status_code, str(error)]
    print(json.dumps(said))

asyncio.run(main())
"""

MLSERVER = """
import importlib.metadata, json
files = importlib.metadata.files("mlserver")
(found,) = [one for one in files if str(one).endswith("rest/openapi/dataplane.json")]
print(found.locate().read_text("utf-8"))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of `onnxcam serve` with the bundled model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "onnxcam", "serve", f"lite0={MODELS / 'efficientnet_lite0.onnx'}"]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "the server has ended"
            try:
                with urllib.request.urlopen(f"{url}/healthz", timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        assert process.wait(30) in (0, -15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, explainer: Explainer) -> Path:
    """What the clients send: a batch of three prepared pictures, and an encoded one."""
    place = tmp_path_factory.mktemp("clients")
    names = ("cat.png", "coffee.png", "cat_and_coffee.png")
    np.save(place / "batch.npy", np.concatenate([explainer.prepare(MODELS / name)[1] for name in names]))
    shutil.copy(CAT, place / "cat.png")
    return place


@pytest.fixture(scope="module")
def expected(folder: Path, explainer: Explainer) -> dict[str, np.ndarray]:
    x = np.load(folder / "batch.npy")
    maps = explainer.attribute(x, [281, -1, 504], normalize="none", size="layer")
    return {"logits": explainer.run(x).scores, "heatmap": maps, "fired": np.ones(3, bool)}


def close(actual: np.ndarray, expected: np.ndarray) -> bool:
    return bool(actual.dtype == expected.dtype and np.abs(actual - expected).max() <= 1e-6 * np.abs(expected).max())


def test_tritonclient(server: str, folder: Path, expected: dict[str, np.ndarray], explainer: Explainer) -> None:
    output = environments.run("triton", TRITON, server.removeprefix("http://"), folder)
    assert all(output[name] is True for name in ("live", "ready", "model", "version")) and output["missing"] is False
    assert output["server"]["extensions"] == ["binary_tensor_data"]
    assert [entry["name"] for entry in output["metadata"]["outputs"]] == ["logits", "heatmap", "fired"]
    for form in ("binary", "json"):
        assert output[f"{form}_id"] == "r7"
        for name in ("logits", "heatmap"):
            assert close(np.load(folder / f"{form}_{name}.npy"), expected[name])
        assert np.load(folder / f"{form}_fired.npy").tolist() == [True] * 3
    assert output["never"] == [False] * 3
    np.testing.assert_array_equal(np.load(folder / "picture_heatmap.npy")[0], explainer.explain(CAT).raw_map)
    assert {name: status for name, (status, _) in output["errors"].items()} == {
        "output": "422", "missing": "404", "compressed": "415",
    }  # fmt: skip
    assert "it has logits, heatmap, fired" in output["errors"]["output"][1]


@pytest.mark.parametrize("binary", [True, False])
def test_requests_as_the_client_of_kserve_sends_them(
    client: TestClient, folder: Path, expected: dict[str, np.ndarray], binary: bool
) -> None:
    """To the byte those of kserve 0.21's `InferenceRESTClient`, which `test_kserve` runs; nothing is installed here."""
    headers = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "python-httpx/0.28.1"}
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/lite0/ready", "/", "/v1/models/lite0")
    live, ready, model, v1_live, v1_model = (client.get(path, headers=headers).json() for path in paths)
    assert live["live"] is True and ready["ready"] is True and model["ready"] is True and v1_model["ready"] is True
    assert v1_live["status"].lower() == "alive"
    x, target = np.load(folder / "batch.npy"), np.array([281, -1, 504])
    inputs: list[dict[str, Any]] = []
    for name, datatype, array in (("input", "FP32", x), ("target", "INT64", target)):
        content = {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.ravel().tolist()}
        inputs.append({"name": name, "shape": list(array.shape), "datatype": datatype, **content})
    request = {"id": "r7", "model_name": "lite0", "inputs": inputs, "parameters": {"binary_data_output": binary}}
    body, kind = json.dumps(request, separators=(",", ":")).encode(), "application/json"
    if binary:
        kind = "application/octet-stream"
        headers["inference-header-content-length"] = str(len(body))
        body += x.tobytes() + target.tobytes()
    answer = client.post("/v2/models/lite0/infer", content=body, headers=headers | {"content-type": kind})
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    document, start = json.loads(answer.content[:length]), length
    assert answer.status_code == 200 and document["id"] == "r7"
    assert [output["name"] for output in document["outputs"]] == ["logits", "heatmap", "fired"]
    for output in document["outputs"]:
        dtype = {"FP32": np.float32, "BOOL": np.bool_}[output["datatype"]]
        if binary:
            size = output["parameters"]["binary_data_size"]
            array, start = np.frombuffer(answer.content[start : start + size], dtype), start + size
        else:
            array = np.array(output["data"], dtype)
        array = array.reshape(output["shape"])
        assert array.tolist() == [True] * 3 if output["name"] == "fired" else close(array, expected[output["name"]])
    if binary:
        return
    headers["content-type"] = kind
    body = json.dumps({"instances": x.tolist()}, separators=(",", ":")).encode()
    predictions = client.post("/v1/models/lite0:predict", content=body, headers=headers).json()["predictions"]
    assert [one["class_index"] for one in predictions] == expected["logits"].argmax(axis=1).tolist()
    for text, status in ((base64.b64encode(CAT.read_bytes()).decode(), 200), ("%", 422)):
        body = json.dumps({"instances": [{"b64": text}]}, separators=(",", ":")).encode()
        answer = client.post("/v1/models/lite0:explain", content=body, headers=headers)
        assert answer.status_code == status
        assert set(answer.json()) == ({"predictions", "explanations"} if status == 200 else {"error"})


@pytest.mark.soak  # its environment takes more than a minute to install; the test above is its sample
def test_kserve(server: str, folder: Path, expected: dict[str, np.ndarray], explainer: Explainer) -> None:
    output = environments.run("kserve", KSERVE, server, folder)
    assert (
        all(output[name] is True for name in ("live", "ready", "model", "v1_live", "v1_ready"))
        and output["missing"] is False
    )
    for form in ("binary", "json"):
        assert output[f"{form}_id"] == "r7"
        for name in ("logits", "heatmap"):
            assert close(np.load(folder / f"kserve_{form}_{name}.npy"), expected[name])
        assert np.load(folder / f"kserve_{form}_fired.npy").tolist() == [True] * 3
    p = explainer.predict(np.load(folder / "batch.npy"))
    assert [one["class_index"] for one in output["predict"]["predictions"]] == p.argmax(axis=1).tolist()
    (explanation,) = output["explain"]["explanations"]
    tensor = explainer.prepare(CAT)[1]
    maps = explainer.attribute(tensor, size="layer")
    np.testing.assert_array_equal(np.array(explanation["gradcam_map"], np.float32), maps[0])
    assert output["error"][0] == 422 and "base64" in output["error"][1]


def request(url: str, body: Any = None) -> tuple[int, Any]:
    """Status and document of a response."""
    call = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    try:
        with urllib.request.urlopen(call, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_protocols_own_description(server: str, folder: Path) -> None:
    """Every response that mlserver's `dataplane.json` gives a schema for fits it, and so do the requests."""
    document = environments.run("mlserver", MLSERVER)
    components = document["components"]
    for part in components["schemas"].values():
        part.pop("x-examples", None)
    components["schemas"]["TensorData"] = {"type": "array"}  # "bytes", its other kind, is no type of JSON Schema
    x = np.load(folder / "batch.npy")[:1]
    tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    bodies = {"infer": {"id": "r7", "inputs": [tensor], "outputs": [{"name": "heatmap"}, {"name": "logits"}]}}

    def fits(name: str, value: Any) -> None:
        resolved = json.loads(json.dumps({"$ref": f"#/components/schemas/{name}", "components": components}))
        Draft202012Validator(resolved).validate(value)

    fits("InferenceRequest", bodies["infer"])
    checked = 0
    for path, entry in document["paths"].items():
        name = path.rpartition("/")[2]
        if name.startswith(("generate", "infer_stream")):
            continue  # of language models
        url = server + path.replace("{model_name}", "lite0").replace("{model_version}", "1")
        status, answer = request(url, bodies.get(name))
        assert status == 200, (path, answer)
        operation = entry["post" if name in bodies else "get"]
        content = operation["responses"]["200"].get("content", {})
        if content:
            fits(content["application/json"]["schema"]["$ref"].rpartition("/")[2], answer)
            checked += 1
    assert checked >= 5
    for path, body, schema in (
        ("/v2/models/other", None, "MetadataModelErrorResponse"),
        ("/v2/models/lite0/infer", {"inputs": []}, "InferenceErrorResponse"),
    ):
        status, answer = request(server + path, body)
        assert status in (404, 422)
        fits(schema, answer)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: str, tmp_path: Path, explainer: Explainer) -> None:
    (tmp_path / "instances.json").write_text(
        json.dumps({"instances": [{"b64": base64.b64encode(CAT.read_bytes()).decode()}]}), "utf-8"
    )
    command = ["curl", "--fail", "--silent", "--show-error", "--data-binary", f"@{tmp_path / 'instances.json'}"]
    done = subprocess.run([*command, f"{server}/v1/models/lite0:explain"], capture_output=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    assert answer["predictions"][0]["prediction"] == explainer.explain(CAT).label


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v2/models/other/infer", {}, 404),
        ("POST", "/nowhere", {}, 404),
        ("PUT", "/predict_with_gradcam", {}, 405),
        ("POST", "/v1/models/lite0:predict", {"Content-Encoding": "gzip"}, 415),
    ],
)
def test_a_connection_goes_on_after_a_body_that_was_not_wanted(
    server: str, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=30)
    for _ in range(2):
        connection.request(method, path, b"0" * 3_000_000, headers)
        response = connection.getresponse()
        assert (response.status, list(json.loads(response.read()))) == (status, ["error"])
        connection.request("GET", "/v1/models")
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())) == (200, {"models": ["lite0"]})
    connection.close()
