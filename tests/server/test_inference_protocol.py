"""Open Inference Protocol v2: tensors over HTTP against the plain file and `Explainer`; what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from starlette.testclient import TestClient

import onnxcam
from onnxcam.errors import OnnxcamError
from onnxcam.explain.explainer import Explainer
from onnxcam.server import inference_protocol as protocol
from onnxcam.server import tensors
from tests.server.conftest import CAT, MODELS, Serve
from tests.support import heads, models
from tests.support.batches import distance
from tests.support.runtime import run

URL = "/v2/models/lite0/infer"
LABELS = ["cat", "dog", "crane"]


def tensor_input(name: str, array: np.ndarray, binary: bool = False) -> tuple[dict[str, Any], bytes]:
    """An input's entry and its binary data."""
    entry, blob = tensors.encode(name, array, binary)
    return {**entry, **({} if binary else {"data": entry["data"].tolist()})}, blob


def infer(
    client: TestClient, url: str = URL, *arrays: tuple[str, np.ndarray], binary: bool = False, **request: Any
) -> Any:
    """The response to a request with these inputs."""
    pairs = [tensor_input(name, array, binary) for name, array in arrays]
    head = json.dumps({"inputs": [entry for entry, _ in pairs], **request}).encode()
    headers = {protocol.HEADER: str(len(head))} if binary else {}
    return client.post(url, content=b"".join([head, *(blob for _, blob in pairs)]), headers=headers)


def values(response: Any) -> dict[str, np.ndarray]:
    """The outputs of a response, whether in JSON or in binary."""
    assert response.status_code == 200, response.text
    length = response.headers.get(protocol.HEADER)
    content = json.loads(response.content if length is None else response.content[: int(length)])
    start = 0 if length is None else int(length)
    outputs: dict[str, np.ndarray] = {}
    for entry in content["outputs"]:
        dtype = tensors.DATATYPES[entry["datatype"]]
        if "data" in entry:
            array = np.array(entry["data"], dtype)
        else:
            size = entry["parameters"]["binary_data_size"]
            array = np.frombuffer(response.content[start : start + size], dtype)
            start += size
        outputs[entry["name"]] = array.reshape(entry["shape"])
    assert length is None or start == len(response.content)
    return outputs


@pytest.fixture(scope="module")
def batch(explainer: Explainer) -> np.ndarray:
    """Three pictures."""
    return np.concatenate(
        [explainer.prepare(MODELS / name)[1] for name in ("cat.png", "coffee.png", "cat_and_coffee.png")]
    )


@pytest.fixture(scope="module")
def small() -> Explainer:
    """A tiny network: 3 classes, 32 x 32."""
    return onnxcam.Explainer(models.tiny_cnn(classes=3), labels=LABELS, preprocess="0..1", layers=["relu1", "relu2"])


@pytest.mark.slow
def test_the_map_is_an_ordinary_output(client: TestClient, explainer: Explainer, batch: np.ndarray) -> None:
    outputs = values(infer(client, URL, ("input", batch)))
    assert list(outputs) == ["logits", "heatmap", "fired"]
    logits = run(onnx.load(MODELS / "efficientnet_lite0.onnx"), input=batch)["logits"]
    assert distance(outputs["logits"], logits) <= 1e-5
    expected = explainer.attribute(batch, normalize="none", size="layer")
    assert outputs["heatmap"].dtype == np.float32 and outputs["heatmap"].shape == (3, 7, 7)
    assert np.abs(outputs["heatmap"] - expected).max() <= 1e-6 * expected.max()
    assert outputs["fired"].tolist() == [True] * 3


@pytest.mark.slow
def test_binary_data_is_the_same(client: TestClient, batch: np.ndarray) -> None:
    plain = values(infer(client, URL, ("input", batch)))
    response = infer(client, URL, ("input", batch), binary=True, parameters={"binary_data_output": True})
    assert response.headers["content-type"] == "application/octet-stream"
    for name, array in values(response).items():
        np.testing.assert_array_equal(array, plain[name])
    outputs = [{"name": "heatmap", "parameters": {"binary_data": True}}, {"name": "fired"}]
    mixed = values(infer(client, URL, ("input", batch), outputs=outputs))
    assert list(mixed) == ["heatmap", "fired"]
    np.testing.assert_array_equal(mixed["heatmap"], plain["heatmap"])


@pytest.mark.slow
def test_a_class_for_each_row(client: TestClient, explainer: Explainer, batch: np.ndarray) -> None:
    for targets in ([281], [281, -1, 504], [-1]):
        outputs = values(infer(client, URL, ("input", batch), ("target", np.array(targets, np.int64))))
        target = targets if len(targets) > 1 else targets[0]
        expected = explainer.attribute(batch, target, normalize="none", size="layer")
        assert np.abs(outputs["heatmap"] - expected).max() <= 1e-6 * expected.max()


@pytest.mark.parametrize("binary", [False, True])
def test_encoded_pictures(client: TestClient, explainer: Explainer, binary: bool) -> None:
    data = CAT.read_bytes()
    entry: dict[str, Any] = {"name": "image", "shape": [1], "datatype": "BYTES"}
    blob = len(data).to_bytes(4, "little") + data
    entry |= {"parameters": {"binary_data_size": len(blob)}} if binary else {"data": [base64.b64encode(data).decode()]}
    head = json.dumps({"inputs": [entry]}).encode()
    headers = {protocol.HEADER: str(len(head))} if binary else {}
    outputs = values(client.post(URL, content=head + (blob if binary else b""), headers=headers))
    np.testing.assert_array_equal(outputs["heatmap"][0], explainer.explain(CAT).raw_map)


@pytest.mark.slow
def test_only_some_rows_are_explained(serve: Serve, explainer: Explainer, batch: np.ndarray) -> None:
    confidences = explainer.predict(batch).max(axis=1)
    threshold = float(np.median(confidences))
    client = serve(when=f"confidence < {threshold}")
    outputs = values(infer(client, URL, ("input", batch)))
    assert outputs["fired"].tolist() == (confidences < threshold).tolist() and outputs["fired"].sum() == 1
    expected = explainer.attribute(batch, normalize="none", size="layer") * outputs["fired"][:, None, None]
    assert np.abs(outputs["heatmap"] - expected).max() <= 1e-6 * expected.max()
    never = values(infer(client, URL, ("input", batch), parameters={"when": "never"}))
    assert not never["fired"].any() and never["heatmap"].shape == (3, 7, 7) and not never["heatmap"].any()
    alone = values(infer(client, URL, ("input", batch), outputs=[{"name": "fired"}]))
    np.testing.assert_array_equal(alone["fired"], outputs["fired"])


def test_many_rows_run_in_portions(serve: Serve, small: Explainer) -> None:
    client = serve({"small": small})
    x = np.random.default_rng(1234).random((19, 3, 32, 32), np.float32)
    targets = np.arange(19) % 4 - 1
    outputs = values(infer(client, "/v2/models/small/infer", ("input", x), ("target", targets)))
    expected = small.attribute(x, targets.tolist(), normalize="none", size="layer")
    assert np.abs(outputs["heatmap"] - expected).max() <= 1e-6 * expected.max()
    assert distance(outputs["logits"], small.run(x).scores) <= 1e-6


def test_parameters_ask_the_question(serve: Serve, small: Explainer) -> None:
    client = serve({"small": small})
    x = np.random.default_rng(1234).random((2, 3, 32, 32), np.float32)
    url = "/v2/models/small/versions/1/infer"
    outputs = values(infer(client, url, ("input", x), parameters={"layer": "relu1", "method": "layercam"}))
    expected = small.attribute(x, None, "layercam", "relu1", "none", "layer")
    assert outputs["heatmap"].shape == (2, 32, 32)
    assert np.abs(outputs["heatmap"] - expected).max() <= 1e-6 * expected.max()


def test_without_maps_nothing_is_differentiated(
    serve: Serve, small: Explainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve({"small": small})
    monkeypatch.setattr(type(small), "batch_maps", lambda *_: pytest.fail("a map was computed"))
    x = np.zeros((1, 3, 32, 32), np.float32)
    assert list(values(infer(client, "/v2/models/small/infer", ("input", x), outputs=[{"name": "logits"}]))) == [
        "logits"
    ]


@pytest.mark.slow
def test_outputs_are_those_of_the_file(serve: Serve) -> None:
    """Of every kind of head: what the server calls by the name of a file's output is what the file computes."""
    x = np.random.default_rng(1234).random((3, 3, 12, 12), np.float32)
    explainers: dict[str, Explainer] = {}
    plain: dict[str, onnx.ModelProto] = {}
    for number, (_, recipe) in enumerate(heads.RECIPES.items()):
        model = heads.build(recipe, 5)
        try:
            explainers[f"m{number}"] = onnxcam.Explainer(model, preprocess="0..1", probe=False)
        except OnnxcamError:
            continue
        plain[f"m{number}"] = model
    client = serve(explainers)
    compared = 0
    for name, model in plain.items():
        outputs = values(infer(client, f"/v2/models/{name}/infer", ("x", x), outputs=None))
        metadata = client.get(f"/v2/models/{name}").json()
        for entry in metadata["outputs"]:
            actual = outputs[entry["name"]]
            assert tensors.datatype(actual.dtype) == entry["datatype"]
            assert len(actual.shape) == len(entry["shape"])
            assert all(there in (-1, here) for there, here in zip(entry["shape"], actual.shape, strict=True))
        for output in model.graph.output:
            if output.name in outputs:
                expected = run(model, x=x)[output.name]
                tolerance = 1e-3 if expected.dtype == np.float16 else 1e-5
                assert distance(outputs[output.name], expected.reshape(3, -1)) <= tolerance, (name, output.name)
                compared += 1
    assert compared >= 20


def test_metadata(client: TestClient) -> None:
    assert client.get("/v2").json() == client.get("/v2/").json()
    server = client.get("/v2").json()
    assert (server["name"], server["extensions"]) == ("onnxcam", ["binary_tensor_data"])
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models").json() == {"models": ["lite0"]}
    model = client.get("/v2/models/lite0").json()
    assert model == client.get("/v2/models/lite0/versions/1").json()
    assert model["inputs"] == [
        {"name": "input", "datatype": "FP32", "shape": [-1, 3, 224, 224]},
        {"name": "target", "datatype": "INT64", "shape": [-1]},
    ]
    assert [entry["name"] for entry in model["outputs"]] == ["logits", "heatmap", "fired"]
    assert client.get("/v2/models/lite0/ready").json() == {"name": "lite0", "ready": True}
    for path in ("/v2/models/other", "/v2/models/lite0/versions/2", "/v2/models/other/ready"):
        response = client.get(path)
        assert response.status_code == 404 and response.json()["error"]


TENSOR: dict[str, Any] = {"name": "input", "shape": [1, 3, 32, 32], "datatype": "FP32"}
CLASS: dict[str, Any] = {"name": "target", "datatype": "INT64"}
PICTURE: dict[str, Any] = {"name": "image", "shape": [1], "datatype": "BYTES"}
ZEROS: dict[str, Any] = {**TENSOR, "data": [0] * 3072}


def with_input(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{**ZEROS, **changes}]}


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ([], 422, "not a JSON object"),
        ({}, 422, '"inputs" is missing'),
        ({"inputs": {}}, 422, '"inputs" is missing'),
        ({"inputs": [{}]}, 422, '"name"'),
        ({"inputs": [ZEROS, ZEROS]}, 422, "there twice"),
        ({"inputs": [ZEROS] * 17}, 422, "at most 16"),
        (with_input(name="picture"), 422, "no input 'picture'; it takes 'input'"),
        (with_input(data=[0]), 422, "has data of 1 values"),
        (with_input(data=None), 422, "neither `data`"),
        (with_input(datatype="FP64"), 422, "float64; the model takes float32"),
        (with_input(shape=[3, 32, 32]), 422, "add the batch axis"),
        (with_input(shape=[0, 3, 32, 32], data=[]), 422, "no rows"),
        (with_input(shape=[65, 1], data=[0] * 65), 413, "65 rows, and the server takes at most 64"),
        (with_input(parameters={"binary_data_size": 4}), 422, "0 bytes follow the JSON"),
        (with_input(parameters={"shared_memory_region": "x"}), 422, "an extension that this server does not have"),
        (with_input(parameters=[]), 422, "not an object"),
        ({**with_input(), "id": 7}, 422, '"id" is not a text'),
        ({**with_input(), "outputs": [{"name": "other"}]}, 422, "no output 'other'; it has logits, heatmap, fired"),
        ({**with_input(), "outputs": [{"name": "fired"}, {"name": "fired"}]}, 422, "there twice"),
        ({**with_input(), "outputs": [{"name": "fired", "parameters": {"binary_data": 1}}]}, 422, "not true or false"),
        ({**with_input(), "outputs": [{"name": "fired", "parameters": {"classification": 3}}]}, 422, "an extension"),
        ({**with_input(), "parameters": {"methd": "x"}}, 422, "unknown parameter 'methd'"),
        ({**with_input(), "parameters": {"method": "x"}}, 422, "method"),
        ({**with_input(), "parameters": {"layer": "x"}}, 422, "x"),
        ({**with_input(), "parameters": {"layer": ["relu1", "relu2"]}}, 422, "one layer by one method"),
        ({**with_input(), "parameters": {"when": "confidence"}}, 422, "confidence"),
        ({**with_input(), "parameters": {"when": 3}}, 422, "when"),
        ({**with_input(), "parameters": {"binary_data_output": 1}}, 422, "not true or false"),
        ({"inputs": [ZEROS, {**CLASS, "shape": [1], "data": [9]}]}, 422, "9"),
        ({"inputs": [ZEROS, {**CLASS, "shape": [2], "data": [0, 1]}]}, 422, "expected INT64"),
        ({"inputs": [ZEROS, {**CLASS, "shape": [1], "datatype": "FP32", "data": [0]}]}, 422, "expected INT64"),
        ({"inputs": [ZEROS, {**PICTURE, "data": ["x"]}]}, 422, "give either"),
        ({"inputs": [{**PICTURE, "data": ["%%%"]}]}, 422, "base64"),
        ({"inputs": [{**PICTURE, "data": ["http://x/y.png"]}]}, 422, "fetches"),
        ({"inputs": [{**PICTURE, "data": ["YWJj"]}]}, 422, ""),
        ({"inputs": [{**PICTURE, "shape": [65], "data": ["YWJj"] * 65}]}, 413, "65 rows"),
        ({"inputs": [{**TENSOR, "datatype": "BYTES", "shape": [1], "data": ["x"]}]}, 422, "pictures are the input"),
    ],
)  # fmt: skip
def test_refused(serve: Serve, small: Explainer, content: Any, status: int, message: str) -> None:
    response = serve({"small": small}).post("/v2/models/small/infer", json=content)
    assert (response.status_code, set(response.json())) == (status, {"error"}), response.text
    assert message in response.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "99999999", "²"])
def test_a_wrong_header_length(client: TestClient, length: str) -> None:
    response = client.post(URL, content=b"{}", headers={protocol.HEADER: length.encode("utf-8")})  # type: ignore[dict-item]
    assert response.status_code == 400 and protocol.HEADER in response.json()["error"]


def test_bytes_that_belong_to_no_input(serve: Serve, small: Explainer) -> None:
    head = json.dumps(with_input()).encode()
    client = serve({"small": small})
    response = client.post("/v2/models/small/infer", content=head + b"1234", headers={protocol.HEADER: str(len(head))})
    assert response.status_code == 422 and "4 bytes after the JSON" in response.json()["error"]


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    response = client.post(URL, content=b"", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415 and "compressed" in response.json()["error"]


def test_infinities_are_said(serve: Serve, small: Explainer) -> None:
    client = serve({"small": small})
    x = np.full((1, 3, 32, 32), 3e38, np.float32)
    response = infer(client, "/v2/models/small/infer", ("input", x))
    assert response.status_code == 422 and "NaN or an infinity" in response.json()["error"]
    outputs = values(infer(client, "/v2/models/small/infer", ("input", x), parameters={"binary_data_output": True}))
    assert not np.isfinite(outputs["logits"]).all()
    # the map alone is zero, and would say nothing of it
    rows = np.concatenate([np.zeros_like(x), x])
    response = infer(client, "/v2/models/small/infer", ("input", rows), outputs=[{"name": "heatmap"}])
    assert response.status_code == 422 and "the scores of row 1 are not finite" in response.json()["error"]
    response = infer(
        client, "/v2/models/small/infer", ("input", rows), outputs=[{"name": "heatmap"}], parameters={"when": "never"}
    )
    assert response.status_code == 200


def test_the_models_usual_names_are_taken(serve: Serve, tmp_path: Path) -> None:
    """A model whose scores are called as our map is keeps its name; ours gets a prefix."""
    model = models.tiny_cnn(classes=3)
    name = model.graph.output[0].name
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            if output == name:
                node.output[place] = "heatmap"
    model.graph.output[0].name = "heatmap"
    client = serve({"odd": onnxcam.Explainer(model, preprocess="0..1")})
    outputs = values(infer(client, "/v2/models/odd/infer", ("input", np.zeros((1, 3, 32, 32), np.float32))))
    assert list(outputs) == ["heatmap", "onnxcam.heatmap", "fired"]
    assert outputs["heatmap"].shape == (1, 3) and outputs["onnxcam.heatmap"].shape == (1, 16, 16)
