"""The two habit routes: fields, equality with `Explainer`, ways to send a picture."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from onnxcam.explain.explainer import Explainer
from onnxcam.server import classify
from tests.server.conftest import CAT, Serve


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png(url: str) -> bytes:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(data)


def test_prediction_and_maps_equal_those_of_explainer(client: TestClient, explainer: Explainer, tmp_path: Path) -> None:
    names = ["heatmap", "overlay", "grayscale", "panel", "input", "map"]
    response = client.post("/predict_with_gradcam", json={"image": b64(CAT.read_bytes()), "files": names})
    assert response.status_code == 200
    answer = response.json()
    e = explainer.explain(str(CAT))
    e.save(tmp_path)
    for name in ("heatmap", "overlay", "grayscale"):
        assert png(answer[f"gradcam_{name}"]) == (tmp_path / f"gradcam_{name}.png").read_bytes()
    assert png(answer["gradcam_panel"]) == (tmp_path / "panel.png").read_bytes()
    assert png(answer["gradcam_input"]) == (tmp_path / "input.png").read_bytes()
    assert [(p["class_index"], p["class_name"], p["confidence"]) for p in answer["top_predictions"]] == e.predictions
    assert [p["rank"] for p in answer["top_predictions"]] == [1, 2, 3, 4, 5]
    assert (answer["prediction"], answer["confidence"]) == e.predictions[0][1:]
    assert (answer["layer"], answer["method"], answer["fired"]) == (e.layer, "gradcam", True)
    assert answer["statistics"] == json.loads(json.dumps(e.statistics))
    assert answer["warnings"] == e.warnings
    batch = explainer.prepare(str(CAT))[1]
    expected = explainer.attribute(batch, size="layer")[0]
    assert np.array_equal(np.asarray(answer["gradcam_map"], np.float32), expected)


def test_ways_to_send_a_picture_give_one_answer(client: TestClient) -> None:
    data = CAT.read_bytes()
    ways: list[dict[str, Any]] = [
        {"json": {"image": b64(data)}},
        {"json": {"image": "data:image/png;base64," + b64(data)}},
        {"files": {"image": ("cat.png", data)}},
        {"content": data, "headers": {"Content-Type": "image/png"}},
        {"content": data},
    ]
    answers = [client.post("/predict_with_gradcam", **way) for way in ways]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1


def test_a_class_is_explained_by_name_or_index(client: TestClient, explainer: Explainer, tmp_path: Path) -> None:
    e = explainer.explain(str(CAT), target="tiger cat")
    e.save(tmp_path)
    image = b64(CAT.read_bytes())
    by_name = client.post("/analyze_class", json={"image": image, "class_name": "tiger cat"}).json()
    by_index = client.post("/analyze_class", json={"image": image, "class_index": e.target}).json()
    assert by_name == by_index
    assert by_name["target"]["class_index"] == e.target
    assert png(by_name["gradcam_heatmap"]) == (tmp_path / "gradcam_heatmap.png").read_bytes()


def test_only_what_meets_the_condition_is_explained(serve: Serve) -> None:
    client = serve(when="confidence < 0.01")
    image = b64(CAT.read_bytes())
    answer = client.post("/predict_with_gradcam", json={"image": image}).json()
    assert answer["fired"] is False
    assert answer["gradcam_heatmap"] is None and answer["gradcam_overlay"] is None and answer["statistics"] is None
    assert len(answer["top_predictions"]) == 5
    assert client.post("/predict_with_gradcam", json={"image": image, "when": "always"}).json()["fired"] is True


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "models": ["lite0"]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"image": "https://example.org/cat.png"}, 422),
        ({"image": "%%%"}, 422),
        ({"image": b64(b"not a picture")}, 422),
        ({"image": b64(CAT.read_bytes()), "layer": "nowhere"}, 422),
        ({"image": b64(CAT.read_bytes()), "model": "other"}, 404),
        ({"image": b64(CAT.read_bytes()), "topk": 3}, 422),
    ],
)
def test_a_request_that_cannot_be_answered_gets_a_sentence(client: TestClient, body: Any, status: int) -> None:
    response = client.post("/predict_with_gradcam", json=body)
    assert response.status_code == status
    assert set(response.json()) == {"error"} and len(response.json()["error"]) > 20


def test_equal_options_of_a_url_are_read_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[dict[str, Any]] = []
    inner = classify.read_options

    def reading(state: Any, submission: Any, of_class: bool) -> Any:
        read.append(submission.options)
        return inner(state, submission, of_class)

    monkeypatch.setattr(classify, "read_options", reading)
    data, counts = CAT.read_bytes(), []
    for url in (
        "/predict_with_gradcam?top_k=3&files=map&alpha=0.25",
        "/predict_with_gradcam?top_k=4&files=map&alpha=0.25",
        "/predict_with_gradcam?files=&alpha=0.25&class_name=cat",
        "/analyze_class?class_name=tiger cat&files=&alpha=0.25",
        f"/analyze_class?class_name=unicorn{'s' * 2000}",
    ):
        answers = [client.post(url, content=data) for _ in range(2)]
        assert answers[0].json() == answers[1].json()
        counts.append((answers[0].status_code, len(answers[0].json().get("top_predictions", ())), len(read)))
        read.clear()
    assert counts == [(200, 3, 1), (200, 4, 1), (422, 0, 2), (200, 5, 1), (422, 0, 2)]
    as_json = [client.post("/predict_with_gradcam", json={"image": b64(data), "top_k": k, "files": []}) for k in (2, 2)]
    assert [len(one.json()["top_predictions"]) for one in as_json] == [2, 2] and len(read) == 2
