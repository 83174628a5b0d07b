"""Around every request: ids, tokens, CORS, the access log, metrics, health, several models, the monitor."""

from __future__ import annotations

import base64
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

import onnxcam
from onnxcam import image
from onnxcam.errors import SettingError
from onnxcam.server import create_app
from onnxcam.server.settings import read_tokens
from tests.server.conftest import Serve
from tests.support.models import tiny_cnn

PREDICT = "/predict_with_gradcam"
TOKEN = "0123456789abcdef0123456789abcdef"
RAW = {"scale": 1.0 / 255, "mean": [0.0], "std": [1.0], "color": "RGB", "resize": {"mode": "stretch", "size": [32, 32]}}


def picture(seed: int = 0) -> bytes:
    return image.encode_png(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.cam.onnx"
    onnx.save(onnxcam.augment(tiny_cnn(), preprocess=RAW, labels=list("abcde")), path)
    return path


def test_a_request_id_is_kept_or_made(serve: Serve, tiny: Path) -> None:
    client = serve(str(tiny))
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
    for forged in ("a" * 200, "a b", "<script>", ""):
        assert re.fullmatch(
            "[0-9a-f]{32}", client.get("/healthz", headers={"X-Request-Id": forged}).headers["x-request-id"]
        )


def test_tokens_are_asked_for_everywhere_but_at_health(serve: Serve, tiny: Path) -> None:
    client = serve(str(tiny), tokens=[TOKEN, TOKEN[::-1]], metrics=True)
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    for headers in (
        {},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN}x"},
    ):
        for method, path in (("POST", PREDICT), ("GET", "/metrics"), ("GET", "/nowhere")):
            response = client.request(method, path, headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in response.text and list(response.json()) == ["error"]
    for token in (TOKEN, TOKEN[::-1]):
        response = client.post(PREDICT, content=picture(), headers={"Authorization": f"bearer {token}"})
        assert response.status_code == 200


def test_tokens_are_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# of the web app\n{TOKEN}\n\n  {TOKEN[::-1]}  \n")
    assert read_tokens(tmp_path / "tokens") == [TOKEN, TOKEN[::-1]]
    (tmp_path / "empty").write_text("# none\n")
    for name in ("empty", "missing"):
        with pytest.raises(SettingError):
            read_tokens(tmp_path / name)


def test_no_origin_is_allowed_by_default(serve: Serve, tiny: Path) -> None:
    client = serve(str(tiny))
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.get("/healthz", headers=headers).headers
    assert "access-control-allow-origin" not in client.options(PREDICT, headers=headers).headers


def test_pages_of_an_origin_may_read_answers(serve: Serve, tiny: Path) -> None:
    client = serve(str(tiny), cors=["https://example.org"], tokens=TOKEN)
    good, bad = {"Origin": "https://example.org"}, {"Origin": "https://example.com"}
    asks = {"Access-Control-Request-Method": "POST"}
    preflight = client.options(PREDICT, headers=good | asks)  # browsers send no token with it
    assert preflight.status_code == 204 and preflight.headers["access-control-allow-origin"] == good["Origin"]
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert client.options(PREDICT, headers=bad | asks).status_code == 403
    response = client.post(PREDICT, content=picture(), headers=good | {"Authorization": f"Bearer {TOKEN}"})
    assert response.headers["access-control-allow-origin"] == good["Origin"] and response.headers["vary"] == "Origin"
    # errors can be read too
    assert client.post(PREDICT, headers=good).headers["access-control-allow-origin"] == good["Origin"]
    assert "access-control-allow-origin" not in client.get("/healthz", headers=bad).headers


def test_the_access_log_tells_the_request_and_nothing_of_the_picture(
    serve: Serve, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "onnxcam.server")
    client = serve(str(tiny), tokens=TOKEN)
    data = picture()
    text = base64.b64encode(data).decode()
    headers = {"X-Request-Id": "one", "Authorization": f"Bearer {TOKEN}"}
    client.post(f"{PREDICT}?top_k=2", json={"image": text}, headers=headers)
    client.post(PREDICT, json={"image": text[:100]}, headers=headers)
    client.get(f"/secret-{text[:20]}", headers=headers)
    records = [json.loads(record.getMessage()) for record in caplog.records if record.name.endswith("access")]
    assert [(r["request"], r["method"], r["route"], r["status"]) for r in records] == [
        ("one", "POST", PREDICT, 200),
        ("one", "POST", PREDICT, 422),
        ("one", "GET", "unknown", 404),
    ]
    assert records[0]["model"] == "tiny" and records[0]["fired"] is True and records[0]["seconds"] > 0
    everything = caplog.text
    assert not any(text[at : at + 12] in everything for at in range(0, 200, 4))
    assert TOKEN not in everything and "top_k" not in everything


def test_metrics_count_requests_and_predictions(serve: Serve, tiny: Path) -> None:
    client = serve(str(tiny), metrics=True, when="confidence < 0")
    client.post(PREDICT, content=picture())
    client.post(f"{PREDICT}?when=always", content=picture())
    client.post(PREDICT, content=b"no picture")
    for n in range(5):
        client.get(f"/made-up-{n}")
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['onnxcam_server_requests_total{route="/predict_with_gradcam",status="200"}'] == "2.0"
    assert values['onnxcam_server_requests_total{route="/predict_with_gradcam",status="422"}'] == "1.0"
    assert values['onnxcam_server_requests_total{route="unknown",status="404"}'] == "5.0"
    assert values['onnxcam_server_predictions_total{model="tiny"}'] == "2.0"
    assert values['onnxcam_server_explained_total{model="tiny"}'] == "1.0"
    assert values["onnxcam_server_requests_waiting"] == "0.0"
    assert serve(str(tiny)).get("/metrics").status_code == 404


def test_readiness_ends_before_the_server_does(serve: Serve, tiny: Path) -> None:
    client = serve(str(tiny))
    state: Any = client.app.state.onnxcam  # type: ignore[attr-defined]
    assert client.get("/readyz").status_code == 200
    state.scheduler.drain()
    ready, work = client.get("/readyz"), client.post(PREDICT, content=picture())
    assert ready.status_code == work.status_code == 503 and ready.headers["connection"] == "close"
    assert client.get("/healthz").status_code == 200


def test_several_models(serve: Serve, tiny: Path, tmp_path: Path) -> None:
    onnx.save(onnxcam.augment(tiny_cnn(classes=3, seed=5), preprocess=RAW, labels=list("xyz")), tmp_path / "other.onnx")
    client = serve([f"first={tiny}", str(tmp_path / "other.onnx")])
    assert client.get("/healthz").json()["models"] == ["first", "other"]
    data = picture()
    assert client.post(PREDICT, content=data).json()["model"] == "first"
    answer = client.post(f"{PREDICT}?model=other", content=data).json()
    assert answer["model"] == "other" and answer["prediction"] in "xyz" and len(answer["top_predictions"]) == 3
    assert "'other'" in client.post(f"{PREDICT}?model=third", content=data).json()["error"]


def test_two_models_of_one_name_are_refused(tiny: Path) -> None:
    with pytest.raises(SettingError):
        create_app([str(tiny), str(tiny)])


def test_the_app_can_be_mounted_under_a_path(tiny: Path) -> None:
    app = Starlette(routes=[Mount("/cam", create_app(str(tiny), tokens=TOKEN))])
    with TestClient(app) as client:  # a mounted app has no lifespan
        assert client.get("/cam/healthz").status_code == 200
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post(f"/cam{PREDICT}", content=picture(), headers=headers).status_code == 200
        assert client.post(f"/cam{PREDICT}", content=picture()).status_code == 401


def test_the_monitor_records_what_meets_the_condition(serve: Serve, tiny: Path, tmp_path: Path) -> None:
    client = serve(str(tiny), monitor=tmp_path / "records", when="confidence < 1")
    state: Any = client.app.state.onnxcam  # type: ignore[attr-defined]
    answer = client.post(PREDICT, content=picture(), headers={"X-Request-Id": "seven"}).json()
    (watch,) = state.observers
    (stats,) = watch.stats().values()
    assert stats["seen"] == 1
    watch.close(20)
    lines = [
        json.loads(line) for path in (tmp_path / "records").rglob("*.jsonl") for line in path.read_text().splitlines()
    ]
    (record,) = [line for line in lines if "prediction" in line]
    assert record["request"] == "seven"
    assert record["prediction"]["confidence"] == pytest.approx(answer["confidence"], abs=1e-6)


def test_sixteen_bits_grey_and_rotated_pictures_are_read_as_explain_does(
    serve: Serve, tiny: Path, tmp_path: Path
) -> None:
    import cv2
    from PIL import Image

    client, explainer = serve(str(tiny)), onnxcam.Explainer(str(tiny))
    rng = np.random.default_rng(4)
    cv2.imwrite(str(tmp_path / "deep.png"), rng.integers(0, 65536, (30, 40, 3), np.uint16))
    cv2.imwrite(str(tmp_path / "grey.png"), rng.integers(0, 256, (30, 40), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    for path in sorted(tmp_path.iterdir()):
        answer = client.post(PREDICT, content=path.read_bytes(), params={"files": "overlay,grayscale"}).json()
        e = explainer.explain(str(path))
        folder = tmp_path / path.stem
        e.save(folder)
        for name in ("overlay", "grayscale"):
            sent = base64.b64decode(answer[f"gradcam_{name}"].partition(",")[2])
            assert sent == (folder / f"gradcam_{name}.png").read_bytes()
        assert answer["warnings"] == e.warnings


def test_prepared_arrays_are_taken_too(serve: Serve, tiny: Path, tmp_path: Path) -> None:
    client, explainer = serve(str(tiny)), onnxcam.Explainer(str(tiny))
    batch = np.random.default_rng(2).normal(size=(1, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "x.npy", batch)
    answer = client.post(PREDICT, content=(tmp_path / "x.npy").read_bytes(), params={"files": "map"}).json()
    assert np.array_equal(np.asarray(answer["gradcam_map"], np.float32), explainer.attribute(batch, size="layer")[0])


def test_the_box_of_a_map_is_what_it_covers_of_the_picture(serve: Serve) -> None:
    crop = {**RAW, "resize": {"mode": "shortest", "size": 64}, "crop": {"size": [32, 32], "anchor": "center"}}
    fit = {**RAW, "resize": {"mode": "letterbox", "size": [32, 32], "pad_value": 0}}
    data = image.encode_png(np.zeros((64, 128, 3), np.uint8))
    boxes = []
    for preprocess in (RAW, crop, fit):
        explainer = onnxcam.Explainer(tiny_cnn(), preprocess=preprocess, probe=False)
        boxes.append(serve(explainer).post(PREDICT, content=data, params={"files": "map"}).json()["gradcam_map_box"])
    assert boxes == [[0, 0, 128, 64], [48, 16, 80, 48], [0, -32, 128, 96]]


def test_a_regression_has_a_value_and_no_confidence(serve: Serve) -> None:
    explainer = onnxcam.Explainer(tiny_cnn(classes=1), preprocess=RAW, kind="regression", probe=False)
    answer = serve(explainer).post(PREDICT, content=picture(), params={"files": "map"}).json()
    expected = explainer.explain(picture())
    assert answer["confidence"] is None and answer["target"]["confidence"] is None
    (top,) = answer["top_predictions"]
    assert top["value"] == pytest.approx(expected.probability) and top["confidence"] is None
