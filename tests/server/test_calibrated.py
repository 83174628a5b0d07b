"""A server of a calibrated file: its answers and conditions by meaning."""

from __future__ import annotations

import base64
from typing import Any

import jsonschema
import numpy as np
import pytest
from starlette.testclient import TestClient

import onnxcam
from onnxcam import image
from onnxcam.errors import SettingError
from onnxcam.network import manifest as manifests
from onnxcam.network.calibration import nodes
from onnxcam.network.calibration.conformal import Rule
from onnxcam.network.calibration.record import Calibration
from onnxcam.server import create_app
from tests.support import models

LABELS = list("abcde")


@pytest.fixture(scope="module")
def source() -> bytes:
    result = onnxcam.augment(models.tiny_cnn(), labels=LABELS, preprocess={"scale": 1 / 255}, probe=False)
    manifest = manifests.read(result)
    assert manifest is not None
    facts = {"quantiles": {"n": 99, "levels": [0.1, 0.9], "confidence": [0.01, 0.99]}}
    nodes.attach(result, manifest, Calibration(0.7, Rule("lac", 1.0), 0.1, 0.22, 99, (0.84, 0.95), facts=facts))
    manifests.write(result, manifest)
    return result.SerializeToString()


def picture() -> bytes:
    return image.encode_png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))


def schema_of(client: TestClient, name: str) -> dict[str, Any]:
    document = client.get("/openapi.json").json()
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


def test_answers_have_the_calibrated_numbers(source: bytes) -> None:
    e = onnxcam.Explainer(source).explain(picture())
    assert e.calibrated is not None and e.prediction_set
    with TestClient(create_app({"m": source})) as client:
        answer = client.post("/predict_with_gradcam", content=picture()).json()
        actual = [(one["class_index"], one["class_name"], one["confidence"]) for one in answer["calibrated"]]
        assert actual == [(index, label, pytest.approx(p, abs=1e-7)) for index, label, p in e.calibrated]
        assert [one["class_name"] for one in answer["prediction_set"]] == e.prediction_set
        assert answer["confidence"] == pytest.approx(e.predictions[0][2], abs=1e-7)
        document = client.get("/openapi.json").json()
        operation = document["paths"]["/predict_with_gradcam"]["post"]["responses"]["200"]["content"]
        schema = {**operation["application/json"]["schema"], "components": document["components"]}
        jsonschema.validate(answer, schema)
        body = {"instances": [{"b64": base64.b64encode(picture()).decode()}]}
        (prediction,) = client.post("/v1/models/m:predict", json=body).json()["predictions"]
        assert prediction["calibrated"] == answer["calibrated"]
        assert prediction["prediction_set"] == answer["prediction_set"]
        jsonschema.validate(prediction, schema_of(client, "V1Prediction"))


def test_conditions_by_meaning_decide(source: bytes) -> None:
    e = onnxcam.Explainer(source).explain(picture())
    assert e.prediction_set is not None
    several = len(e.prediction_set) != 1
    with TestClient(create_app({"m": source}, when="set > 1")) as client:
        assert client.post("/predict_with_gradcam", content=picture()).json()["fired"] is several
        for when, fired in (("top 90%", True), ("top 10%", False), ("set == 0", False), ("calibrated > 0", True)):
            answer = client.post("/predict_with_gradcam", params={"when": when}, content=picture()).json()
            assert answer["fired"] is fired, when
        refused = client.post("/predict_with_gradcam", params={"when": "risk > 1%"}, content=picture())
        assert refused.status_code == 422
        assert "shows no bound on the share of wrong predictions" in refused.json()["error"]
    plain = onnxcam.augment(models.tiny_cnn(), preprocess={"scale": 1 / 255}, probe=False).SerializeToString()
    with pytest.raises(SettingError, match="this file has no calibration"):
        create_app({"m": plain}, when="top 5%")
    with TestClient(create_app({"m": plain})) as client:
        answer = client.post("/predict_with_gradcam", content=picture()).json()
        assert not {"calibrated", "prediction_set"} & answer.keys()
