"""KServe's V1 protocol: predictions and explanations of tensors and of pictures, against `Explainer`."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import onnxcam
from onnxcam.explain.explainer import Explainer
from tests.server.conftest import CAT, MODELS, Serve
from tests.server.test_classify import png
from tests.support import models

LABELS = ["cat", "dog", "crane"]
URL = "/v1/models/lite0"


def b64(name: str) -> dict[str, str]:
    return {"b64": base64.b64encode((MODELS / name).read_bytes()).decode()}


@pytest.fixture(scope="module")
def small() -> Explainer:
    return onnxcam.Explainer(models.tiny_cnn(classes=3), labels=LABELS, preprocess="0..1", layers=["relu1", "relu2"])


def test_models(client: TestClient) -> None:
    assert client.get("/v1/models").json() == {"models": ["lite0"]}
    assert client.get(URL).json() == {"name": "lite0", "ready": True}
    assert client.get("/v1/models/other").status_code == 404
    response = client.get(f"{URL}:predict")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.slow
def test_pictures(client: TestClient, explainer: Explainer) -> None:
    body = {"instances": [b64("cat.png"), {"image_bytes": b64("coffee.png")}, {"image": b64("cat.png")["b64"]}]}
    predicted = client.post(f"{URL}:predict", json=body).json()
    assert set(predicted) == {"predictions"}
    answer = client.post(f"{URL}:explain", json=body).json()
    assert set(answer) == {"predictions", "explanations"}
    for name, one, prediction, explanation in zip(
        ("cat.png", "coffee.png", "cat.png"), predicted["predictions"], answer["predictions"], answer["explanations"],
        strict=True,
    ):  # fmt: skip
        e = explainer.explain(MODELS / name)
        assert (one["prediction"], prediction["prediction"]) == (e.label, e.label)
        assert [p["class_index"] for p in prediction["top_predictions"]] == [index for index, _, _ in e.predictions]
        tensor = explainer.prepare(MODELS / name)[1]
        scores = explainer.run(tensor).scores[0]
        for scored in (one["scores"], prediction["scores"]):
            assert np.abs(np.array(scored) - scores).max() <= 1e-5 * np.abs(scores).max()
        expected = explainer.attribute(tensor, size="layer")[0]
        np.testing.assert_array_equal(np.array(explanation["gradcam_map"], np.float32), expected)
        assert explanation["target"]["class_index"] == e.target and explanation["fired"] is True
        assert len(explanation["gradcam_map_box"]) == 4


def test_tensors_are_instances_without_the_batch_axis(serve: Serve, small: Explainer) -> None:
    client = serve({"small": small})
    x = np.random.default_rng(1234).random((11, 3, 32, 32), np.float32)
    body = {"instances": x.tolist(), "parameters": {"layer": "relu1", "method": "layercam", "class_name": "dog"}}
    answer = client.post("/v1/models/small:explain", json=body).json()
    expected = small.attribute(x, 1, "layercam", "relu1", size="layer")
    for row, explanation in enumerate(answer["explanations"]):
        actual = np.array(explanation["gradcam_map"], np.float32)
        assert np.abs(actual - expected[row]).max() <= 1e-6
        assert explanation["target"]["class_name"] == "dog"
        assert explanation["gradcam_map_box"] == [0, 0, 32, 32]
    body = {"instances": x.tolist(), "parameters": {"top_k": 2}}
    predictions = client.post("/v1/models/small:predict", json=body).json()["predictions"]
    p = small.predict(x)
    for row, prediction in enumerate(predictions):
        assert prediction["class_index"] == p[row].argmax() and len(prediction["top_predictions"]) == 2
        assert abs(prediction["confidence"] - p[row].max()) <= 1e-6


def test_files_of_pictures(client: TestClient, explainer: Explainer, tmp_path: Any) -> None:
    body = {"instances": [b64("cat.png")], "parameters": {"files": ["overlay"], "class_index": 504}}
    (explanation,) = client.post(f"{URL}:explain", json=body).json()["explanations"]
    explainer.explain(CAT, 504).save(tmp_path)
    assert png(explanation["gradcam_overlay"]) == (tmp_path / "gradcam_overlay.png").read_bytes()
    assert "gradcam_map" not in explanation


def test_only_unsure_predictions_are_explained(serve: Serve, small: Explainer) -> None:
    client = serve({"small": small}, when="never")
    body: dict[str, Any] = {"instances": np.zeros((2, 3, 32, 32)).tolist()}
    answer = client.post("/v1/models/small:explain", json=body).json()
    assert [one["fired"] for one in answer["explanations"]] == [False, False]
    assert [one["gradcam_map"] for one in answer["explanations"]] == [None, None]
    body["parameters"] = {"when": "always"}
    answer = client.post("/v1/models/small:explain", json=body).json()
    assert all(one["fired"] and one["gradcam_map"] is not None for one in answer["explanations"])


ZEROS = np.zeros((1, 3, 32, 32)).tolist()


@pytest.mark.parametrize("verb", ["predict", "explain"])
@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ([], 422, "not a JSON object"),
        ({}, 422, '"instances" is missing'),
        ({"instances": []}, 422, '"instances" is missing'),
        ({"instances": [1, 2]}, 422, "holds no lists"),
        ({"instances": [[1, 2], [3]]}, 422, "different lengths"),
        ({"instances": [["a"]]}, 422, "holds texts"),
        ({"instances": [[[[None]]]]}, 422, "holds null"),
        ({"instances": [[1.0, 2.0]]}, 422, "the model takes"),
        ({"instances": [*ZEROS, {"b64": "YWJj"}]}, 422, "neither a tensor nor a picture"),
        ({"instances": [{"b64": 3}]}, 422, "expected a text"),
        ({"instances": [{"b64": "%%"}]}, 422, "base64"),
        ({"instances": [{"b64": "file:///etc/passwd"}]}, 422, "fetches nothing"),
        ({"instances": [{"b64": "YWJj"}]}, 422, ""),
        ({"instances": [{"url": "http://x"}]}, 422, "neither a tensor nor a picture"),
        ({"instances": [{}]}, 422, "neither a tensor nor a picture"),
        ({"instances": ZEROS * 65}, 413, "at most 64"),
        ({"instances": ZEROS, "parameter": {}}, 422, "unknown 'parameter'"),
        ({"instances": ZEROS, "parameters": []}, 422, "not an object"),
        ({"instances": ZEROS, "parameters": {"clas": 1}}, 422, "unknown 'clas'"),
        ({"instances": ZEROS, "parameters": {"top_k": 0}}, 422, "top_k"),
    ],
)
def test_refused(serve: Serve, small: Explainer, verb: str, content: Any, status: int, message: str) -> None:
    response = serve({"small": small}).post(f"/v1/models/small:{verb}", json=content)
    assert (response.status_code, set(response.json())) == (status, {"error"}), response.text
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    "parameters",
    [{"method": "x"}, {"method": ["gradcam"]}, {"layer": "x"}, {"class_name": "x"}, {"class_index": 9},
     {"class_name": "cat", "class_index": 0}, {"files": ["x"]}, {"when": "x"}, {"normalize": "x"}, {"alpha": 2}],
)  # fmt: skip
def test_refused_options(serve: Serve, small: Explainer, parameters: dict[str, Any]) -> None:
    body = {"instances": ZEROS, "parameters": parameters}
    response = serve({"small": small}).post("/v1/models/small:explain", json=body)
    assert (response.status_code, set(response.json())) == (422, {"error"}), response.text
