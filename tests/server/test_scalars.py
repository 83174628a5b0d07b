"""`POST /predict_with_gradcam` of models that are no classifiers: boxes, regions, vectors and values."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from onnxcam import Explainer, image
from onnxcam.errors import ModelError
from onnxcam.monitor.hook import Monitor
from onnxcam.server import create_app, static_page
from tests.support import detectors

FORMS = {"yolo": "yolov8", "sparse": "torchvision", "segment": "segment", "embed": "embed"}
PIXELS = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8).repeat(2, 0).repeat(2, 1)
PNG = image.encode_png(PIXELS)
PICTURE = base64.b64encode(PNG).decode()


@pytest.fixture(scope="module")
def explainers() -> dict[str, Explainer]:
    return {name: Explainer(detectors.build(form), preprocess="0..1", probe=False) for name, form in FORMS.items()}


@pytest.fixture(scope="module")
def client(explainers: dict[str, Explainer]) -> Iterator[TestClient]:
    with TestClient(create_app(explainers, threads=2)) as client:
        yield client


def ask(client: TestClient, model: str, **options: Any) -> dict[str, Any]:
    response = client.post("/predict_with_gradcam", json={"image": PICTURE} | options | {"model": model})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_boxes_and_their_maps(client: TestClient, explainers: dict[str, Explainer]) -> None:
    boxes = explainers["yolo"].boxes(PIXELS)
    answer = ask(client, "yolo")
    assert answer["task"] == "detect" and [one["index"] for one in answer["boxes"]] == [one.index for one in boxes]
    assert answer["boxes"][0]["box"] == pytest.approx(boxes[0].box, abs=1e-3)
    assert (answer["prediction"], answer["confidence"]) == (boxes[0].label, pytest.approx(boxes[0].score, abs=1e-6))
    assert len(answer["maps"]) == 1 and answer["target"]["box"]["index"] == boxes[0].index
    both = ask(client, "yolo", box=[boxes[1].index, {"label": boxes[0].label}], files=["overlay", "panel", "map"])
    assert [one["target"]["box"]["index"] for one in both["maps"]] == [boxes[1].index, boxes[0].index]
    e = explainers["yolo"].explain(PIXELS, top=1)
    drawn = base64.b64decode(both["maps"][1]["gradcam_overlay"].partition(",")[2])
    np.testing.assert_array_equal(image.load(drawn).pixels, e.overlay())
    np.testing.assert_allclose(both["maps"][1]["gradcam_map"], e.raw_map, rtol=1e-5)
    assert both["gradcam_overlay"] == both["maps"][0]["gradcam_overlay"] != both["maps"][1]["gradcam_overlay"]
    assert len(ask(client, "yolo", top=3)["maps"]) == 3


def test_a_picture_without_a_box_is_an_answer_without_a_map(client: TestClient) -> None:
    """Only a box that the request names can be lacking."""
    black = base64.b64encode(image.encode_png(np.zeros_like(PIXELS))).decode()
    answer = ask(client, "sparse", image=black, when="always")
    assert (answer["boxes"], answer["maps"], answer["top_predictions"]) == ([], [], []) and answer["fired"] is False
    assert answer["prediction"] is answer["confidence"] is answer["target"] is answer["gradcam_overlay"] is None
    seen = ask(client, "sparse", top_k=3)
    assert (seen["prediction"], seen["confidence"]) == (seen["boxes"][0]["label"], seen["boxes"][0]["score"])
    assert seen["top_predictions"][0]["class_name"] == seen["prediction"] and len(seen["top_predictions"]) <= 3
    refused = client.post("/predict_with_gradcam", json={"image": black, "model": "sparse", "box": {"rank": 0}})
    assert refused.status_code == 422 and "reports no box" in refused.json()["error"]


def test_a_form_asks_the_same(client: TestClient) -> None:
    named = {"model": "yolo", "box": ["3", "label:cat"], "files": "overlay"}
    form = client.post("/predict_with_gradcam", data=named, files={"image": ("p.png", PNG)})
    assert form.status_code == 200, form.text
    plain = ask(client, "yolo", box=["3", "label:cat"], files=["overlay"])
    assert form.json()["maps"] == plain["maps"]


def test_regions_and_vectors(client: TestClient, explainers: dict[str, Explainer]) -> None:
    answer = ask(client, "segment", region=[10, 10, 90, 60], target=2)
    assert answer["target"]["scalar"]["region"] == [10, 10, 90, 60] and answer["target"]["class_index"] == 2
    assert answer["boxes"] == [] and answer["task"] == "segment"
    vector = list(range(1, detectors.DIMENSIONS + 1))
    answer = ask(client, "embed", like=vector)
    z = explainers["embed"].batch_scores(explainers["embed"].prepare(PIXELS)[1])[0].astype(float)
    expected = z @ np.array(vector) / np.linalg.norm(z) / np.linalg.norm(vector)
    assert answer["target"]["value"] == pytest.approx(expected, abs=1e-5) and answer["target"]["confidence"] is None
    assert answer["prediction"] is None and answer["top_predictions"] == []


def test_a_condition_is_one_on_the_best_box(client: TestClient, explainers: dict[str, Explainer]) -> None:
    best = explainers["yolo"].boxes(PIXELS)[0].score
    fired = ask(client, "yolo", when=f"confidence < {best + 0.01}")
    assert fired["fired"] and fired["maps"]
    quiet = ask(client, "yolo", when=f"confidence < {best - 0.01}")
    assert not quiet["fired"] and quiet["maps"] == [] and quiet["boxes"] == fired["boxes"]
    assert quiet["target"] is None and quiet["gradcam_overlay"] is None


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("yolo", {"box": 3000}, ["box 3000"]),
        ("yolo", {"box": {"size": 3}}, ["no 'size'"]),
        ("yolo", {"box": list(range(200))}, ["200 maps"]),
        ("yolo", {"box": 1, "region": [0, 0, 9, 9]}, ["exclude"]),
        ("yolo", {"when": "entropy > 0.5"}, ["entropy", "best box"]),
        ("yolo", {"class_name": "cat"}, ["class_name"]),
        ("embed", {}, ["embedding"]),
        ("embed", {"like": "/etc/passwd"}, ["list of numbers"]),
        ("embed", {"like": [True]}, ["list of numbers"]),
        ("embed", {"like": [1.0, 2.0]}, ["2 numbers"]),
        ("embed", {"like": [1.0] * detectors.DIMENSIONS, "when": "confidence < 1"}, ["quantity"]),
        ("segment", {"region": [5, 5, 5, 5]}, ["no area"]),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_sentence(
    model: str, options: dict[str, Any], words: list[str], client: TestClient
) -> None:
    response = client.post("/predict_with_gradcam", json={"image": PICTURE, "model": model, **options})
    error = response.json()["error"]
    assert response.status_code == 422, error
    assert all(word in error for word in words) and "\n" not in error, error


def test_protocols_of_classes_say_where_to_ask(client: TestClient) -> None:
    body = {"image": PICTURE, "model": "yolo"}
    answers = [
        client.get("/v2/models/yolo"),
        *(
            client.post(route, json=body)
            for route in ("/v1/models/yolo:predict", "/v2/models/yolo/infer", "/analyze_class")
        ),
    ]
    for answer in answers:
        assert answer.status_code == 422 and "/predict_with_gradcam" in answer.json()["error"], answer.url


def test_the_monitor_records_the_best_box(explainers: dict[str, Explainer], tmp_path: Path) -> None:
    app = create_app({"yolo": explainers["yolo"]}, threads=2, monitor=tmp_path / "records", when="confidence <= 1")
    with TestClient(app) as client:
        answer = ask(client, "yolo")
        (watch,) = app.state.onnxcam.observers
        watch.close(20)
    lines = [
        json.loads(line)
        for path in (tmp_path / "records").rglob("*.jsonl")
        for line in path.read_text().split("\n")
        if line
    ]
    (record,) = [line["prediction"] for line in lines if "prediction" in line]
    best = answer["boxes"][0]
    assert record["target"]["candidate"] == best["index"] == record["boxes"][0]["index"]
    assert record["target"]["box"] == pytest.approx(best["box"], abs=1e-2) and record["layer"] == answer["layer"]


def test_a_monitor_of_embeddings_and_a_page_of_boxes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"a monitor.s record .* task is .embed."):
        Monitor(detectors.build("embed"), sink="records")
    with pytest.raises(ModelError, match="a page is of a classifier"):
        static_page.browser_model(detectors.build("yolov8"), preprocess="0..1")


def test_the_page_asks_by_the_method_of_the_task(client: TestClient) -> None:
    described = {one["name"]: one for one in client.get("/viewer.json").json()["models"]}
    assert [(described[name]["task"], described[name]["method"]) for name in ("yolo", "segment")] == [
        ("detect", "layercam"), ("segment", "hirescam")
    ]  # fmt: skip
    assert "best box" in described["yolo"]["notes"][0]
    label = described["yolo"]["classes"].index(ask(client, "yolo")["prediction"])
    target = ask(client, "yolo", target=label)["target"]
    assert (target["class_index"], target["objective"]) == (label, "box_score")
