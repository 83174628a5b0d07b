"""`/openapi.json`: valid OpenAPI, of every route, and what servers really answer is what it says."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route
from starlette.testclient import TestClient

import onnxcam
from onnxcam import image
from onnxcam.explain.explainer import Explainer
from onnxcam.server import inference_protocol, tensors
from tests.server.conftest import CAT, Serve
from tests.support import detectors, models

TOKEN = "a-token-of-the-tests-0123456789"
PICTURE = base64.b64encode(CAT.read_bytes()).decode()
ZEROS = np.zeros((1, 3, 32, 32)).tolist()
TENSOR = {"name": "input", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [0] * 3072}
EVERY = ["heatmap", "overlay", "grayscale", "panel", "input", "map"]
V2 = "/v2/models/{model}"


@pytest.fixture(scope="module")
def small() -> Explainer:
    return onnxcam.Explainer(
        models.tiny_cnn(classes=3), labels=["cat", "dog", "crane"], preprocess="0..1", layers=["relu1", "relu2"]
    )


@pytest.fixture
def client(serve: Serve, small: Explainer) -> TestClient:
    return serve({"small": small}, max_body="1MiB", max_pixels=10**6)


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json())


def schema(document: dict[str, Any], part: dict[str, Any]) -> Draft202012Validator:
    """A schema of the document, its references resolved."""
    return Draft202012Validator({**part, "components": document["components"]})


def described(document: dict[str, Any], path: str, response: Any) -> None:
    """Check a response against what the document says of its route and status."""
    operation = document["paths"][path][response.request.method.lower()]
    assert str(response.status_code) in operation["responses"], (path, response.status_code, response.text)
    part = operation["responses"][str(response.status_code)]
    if "$ref" in part:
        part = document["components"]["responses"][part["$ref"].rpartition("/")[2]]
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in part["content"], (path, kind)
    if kind == "application/json":
        schema(document, part["content"][kind]["schema"]).validate(response.json())
    for name in part.get("headers", {}):
        optional = name == inference_protocol.HEADER and kind == "application/json"
        assert name.lower() in response.headers or optional


@pytest.mark.slow
def test_it_is_valid(client: TestClient, document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()
    for name, part in document["components"]["schemas"].items():
        Draft202012Validator.check_schema(part)
        assert part.get("type") == "object", name


def test_every_schema_is_named_by_a_route(document: dict[str, Any]) -> None:
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named == set(document["components"]["schemas"])


def test_it_has_every_route(client: TestClient, document: dict[str, Any]) -> None:
    routes = [route for route in client.app.routes if isinstance(route, Route)]  # type: ignore[attr-defined]
    actual = {(route.path, method) for route in routes for method in route.methods or () if method != "HEAD"}
    assert {(path, name.upper()) for path, entry in document["paths"].items() for name in entry} == actual
    names = [operation["operationId"] for entry in document["paths"].values() for operation in entry.values()]
    assert len(set(names)) == len(names)


def test_the_routes_without_a_body(client: TestClient, document: dict[str, Any]) -> None:
    checked = 0
    for path, entry in document["paths"].items():
        if "get" in entry:
            response = client.get(path.replace("{model}", "small").replace("{version}", "1"))
            assert response.status_code == (404 if path == "/metrics" else 200)
            described(document, path, response)
            checked += 1
    assert checked >= 15
    for path in ("/v1/models/{model}", V2, f"{V2}/ready", f"{V2}/versions/{{version}}"):
        described(document, path, client.get(path.replace("{model}", "other").replace("{version}", "1")))
    described(document, "/v1/models/{model}", client.get("/v1/models/small:predict"))


JSON_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/predict_with_gradcam", {"image": PICTURE}),
    ("/predict_with_gradcam", {"image": PICTURE, "files": EVERY, "top_k": 2, "layer": "relu1", "method": "layercam"}),
    ("/predict_with_gradcam", {"image": PICTURE, "files": "map, overlay", "layer": ["relu1", "relu2"], "alpha": 0.3}),
    ("/predict_with_gradcam", {"image": PICTURE, "files": [], "when": "never", "model": "small", "normalize": "max"}),
    ("/analyze_class", {"image": PICTURE, "class_name": "dog", "colormap": "viridis"}),
    ("/analyze_class", {"image": PICTURE, "class_index": 0, "when": "confidence < 0.1", "files": EVERY}),
    ("/v1/models/{model}:predict", {"instances": ZEROS}),
    ("/v1/models/{model}:predict", {"instances": [{"b64": PICTURE}], "parameters": {"top_k": 1}}),
    ("/v1/models/{model}:explain", {"instances": ZEROS, "parameters": {"class_name": "cat", "files": EVERY}}),
    ("/v1/models/{model}:explain", {"instances": [{"image_bytes": {"b64": PICTURE}}], "parameters": None}),
    ("/v1/models/{model}:explain", {"instances": ZEROS, "parameters": {"when": "never"}}),
    (f"{V2}/infer", {"inputs": [TENSOR]}),
    (f"{V2}/infer", {"inputs": [TENSOR], "id": "7", "outputs": [{"name": "heatmap"}], "parameters": {"when": "never"}}),
    (f"{V2}/versions/{{version}}/infer", {"inputs": [TENSOR], "outputs": []}),
]


@pytest.mark.parametrize(("path", "content"), JSON_REQUESTS)
def test_requests_that_it_allows_are_answered_as_it_says(
    client: TestClient, document: dict[str, Any], path: str, content: dict[str, Any]
) -> None:
    part = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema(document, part).validate(content)
    response = client.post(path.replace("{model}", "small").replace("{version}", "1"), json=content)
    assert response.status_code == 200, response.text
    described(document, path, response)


@pytest.fixture(scope="module")
def of_tasks() -> dict[str, Explainer]:
    """A model of every task, and a classifier."""
    forms = {"yolo": "yolov8", "segment": "segment", "embed": "embed", "cnn": "classifier"}
    explainers = {
        name: Explainer(detectors.build(form), preprocess="0..1", probe=False) for name, form in forms.items()
    }
    return explainers | {
        "values": Explainer(detectors.build("regress-3"), preprocess="0..1", task="regress", probe=False)
    }


VECTOR = list(range(1, detectors.DIMENSIONS + 1))
TASK_REQUESTS: list[dict[str, Any]] = [
    {"model": "yolo"},
    {"model": "yolo", "box": 3, "part": "x0", "files": EVERY},
    {"model": "yolo", "box": [{"rank": 0, "part": "score*iou"}, "rank:1", 7], "contrast": {"rank": 1}},
    {"model": "yolo", "top": 2, "target": None, "when": "never", "files": ["map"]},
    {"model": "segment", "region": [10, 10, 90, 60], "target": 2},
    {"model": "segment", "region": "10,10,90,60"},
    {"model": "embed", "like": VECTOR, "contrast": VECTOR[::-1]},
    {"model": "values", "output": "value0[1]"},
    {"model": "values", "output": {"output": "value0", "index": 2, "sign": -1}},
    {"model": "cnn"},
]


@pytest.mark.slow
def test_of_models_of_every_task_it_has_the_options_that_the_server_takes(
    serve: Serve, of_tasks: dict[str, Explainer]
) -> None:
    client = serve(of_tasks)
    document = dict(client.get("/openapi.json").json())
    OpenAPIV31SpecValidator(document).validate()
    post = document["paths"]["/predict_with_gradcam"]["post"]
    # what the server itself lists where it does not know an option
    message = client.post("/predict_with_gradcam", json={"image": PICTURE, "model": "yolo", "no such": 1}).json()[
        "error"
    ]
    accepted = set(message.partition("; there are ")[2].split(", "))
    named = set(document["components"]["schemas"]["PictureRequest"]["properties"])
    assert named == accepted == set(document["components"]["schemas"]["PictureForm"]["properties"])
    assert {one["name"] for one in post["parameters"]} == named - {"image"}
    pixels = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    picture, best = base64.b64encode(image.encode_png(pixels)).decode(), of_tasks["yolo"].boxes(pixels)[0]
    for content in [*TASK_REQUESTS, {"model": "yolo", "target": best.label}]:
        content = {"image": picture, **content}
        schema(document, post["requestBody"]["content"]["application/json"]["schema"]).validate(content)
        response = client.post("/predict_with_gradcam", json=content)
        assert response.status_code == 200, (content["model"], response.text)
        described(document, "/predict_with_gradcam", response)
        form = schema(document, document["components"]["schemas"]["TaskAnswer"])
        assert form.is_valid(response.json()) == (content["model"] != "cnn")
    for content in (
        {"box": -1},
        {"box": []},
        {"part": "x9"},
        {"region": [1, 2, 3]},
        {"like": []},
        {"top": 0},
        {"task": 1},
    ):
        content = {"image": PICTURE, "model": "yolo", **content}
        body = schema(document, post["requestBody"]["content"]["application/json"]["schema"])
        assert list(body.iter_errors(content)), content
        assert client.post("/predict_with_gradcam", json=content).status_code == 422, content


REFUSED: list[tuple[str, Any]] = [
    ("/predict_with_gradcam", {}),
    ("/predict_with_gradcam", {"image": 7}),
    ("/predict_with_gradcam", {"image": ""}),
    ("/predict_with_gradcam", {"image": PICTURE, "other": 1}),
    ("/predict_with_gradcam", {"image": PICTURE, "files": ["json"]}),
    ("/predict_with_gradcam", {"image": PICTURE, "files": "map;"}),
    ("/predict_with_gradcam", {"image": PICTURE, "top_k": 0}),
    ("/predict_with_gradcam", {"image": PICTURE, "method": ["gradcam"]}),
    ("/predict_with_gradcam", {"image": PICTURE, "normalize": "l2"}),
    ("/predict_with_gradcam", {"image": PICTURE, "alpha": 2}),
    ("/predict_with_gradcam", {"image": PICTURE, "colormap": "x"}),
    ("/predict_with_gradcam", {"image": PICTURE, "class_index": 1}),
    ("/analyze_class", {"image": PICTURE}),
    ("/analyze_class", {"image": PICTURE, "class_index": 1, "class_name": "cat"}),
    ("/analyze_class", {"image": PICTURE, "class_index": -1}),
    ("/analyze_class", {"image": PICTURE, "class_name": 3}),
    ("/v1/models/{model}:predict", {"instances": []}),
    ("/v1/models/{model}:predict", {"instances": [1]}),
    ("/v1/models/{model}:predict", {"instances": ZEROS * 65}),
    ("/v1/models/{model}:explain", {"instances": [{"b64": PICTURE, "key": 1}]}),
    ("/v1/models/{model}:explain", {"instances": ZEROS, "parameters": {"files": ["x"]}}),
    ("/v1/models/{model}:explain", {"instances": ZEROS, "extra": 1}),
    (f"{V2}/infer", {"inputs": []}),
    (f"{V2}/infer", {"inputs": [{**TENSOR, "datatype": "BF16"}]}),
    (f"{V2}/infer", {"inputs": [{**TENSOR, "shape": [-1]}]}),
    (f"{V2}/infer", {"inputs": [{**TENSOR, "data": "x"}]}),
    (f"{V2}/infer", {"inputs": [TENSOR], "outputs": [{"name": 1}]}),
    (f"{V2}/infer", {"inputs": [TENSOR], "id": 1}),
    (f"{V2}/infer", {"inputs": [TENSOR], "parameters": {"binary_data_output": "yes"}}),
]


@pytest.mark.parametrize(("path", "content"), REFUSED)
def test_requests_that_it_does_not_allow_are_refused_as_it_says(
    client: TestClient, document: dict[str, Any], path: str, content: Any
) -> None:
    part = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert list(schema(document, part).iter_errors(content))
    response = client.post(path.replace("{model}", "small"), json=content)
    assert 400 <= response.status_code < 500
    described(document, path, response)


@pytest.mark.parametrize("path", ["/predict_with_gradcam", "/v1/models/{model}:explain", f"{V2}/infer"])
def test_other_refusals(client: TestClient, document: dict[str, Any], path: str) -> None:
    url = path.replace("{model}", "small")
    encoded = {"Content-Encoding": "gzip"} if "model" in path else {"Content-Type": "video/mp4"}
    for status, request in (
        (400, {"content": b"{", "headers": {"Content-Type": "application/json"}}),
        (413, {"content": b"0" * (1 << 20) + b"0"}),
        (415, {"content": b"{}", "headers": encoded}),
    ):
        response = client.post(url, **request)  # type: ignore[arg-type]
        assert response.status_code == status, response.text
        described(document, path, response)


def test_binary_data_and_other_bodies(client: TestClient, document: dict[str, Any]) -> None:
    entry, blob = tensors.encode("input", np.zeros((1, 3, 32, 32), np.float32), True)
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    schema(document, document["components"]["schemas"]["inference_request"]).validate(json.loads(head))
    headers = {inference_protocol.HEADER: str(len(head)), "Content-Type": "application/octet-stream"}
    response = client.post("/v2/models/small/infer", content=head + blob, headers=headers)
    described(document, f"{V2}/infer", response)
    length = int(response.headers[inference_protocol.HEADER])
    schema(document, document["components"]["schemas"]["inference_response"]).validate(
        json.loads(response.content[:length])
    )
    path = "/predict_with_gradcam"
    for request in (
        {"files": {"image": ("cat.png", CAT.read_bytes())}, "data": {"files": "map", "top_k": "2", "alpha": "0.5"}},
        {"content": CAT.read_bytes(), "headers": {"Content-Type": "image/png"}, "params": {"files": "map"}},
    ):
        response = client.post(path, **request)  # type: ignore[arg-type]
        assert response.status_code == 200 and "gradcam_map" in response.json()
        described(document, path, response)


@pytest.mark.slow
def test_tokens_are_described(serve: Serve, small: Explainer) -> None:
    client = serve({"small": small}, tokens=[TOKEN])
    assert client.get("/openapi.json").status_code == 401
    document = client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    OpenAPIV31SpecValidator(document).validate()
    assert document["security"] == [{"token": []}]
    for path, entry in document["paths"].items():
        for method, operation in entry.items():
            url = path.replace("{model}", "small").replace("{version}", "1")
            response = client.request(method, url)
            is_open = operation.get("security") == []
            assert (response.status_code == 401) == (not is_open), path
            if not is_open:
                described(document, path, response)
