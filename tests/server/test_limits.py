"""What is refused before anything is decoded, each with its status and a sentence."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from onnxcam import image
from onnxcam.errors import SettingError
from onnxcam.server import bodies, create_app
from onnxcam.server.refusals import Refusal
from onnxcam.server.settings import Settings, parse_pixels
from tests.server.conftest import CAT, Serve

PREDICT = "/predict_with_gradcam"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_of(width: int, height: int) -> bytes:
    """A small PNG that says that it is large."""
    data = bytearray(image.encode_png(np.zeros((8, 8, 3), np.uint8)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    sentence: str = response.json()["error"]
    assert len(sentence) > 20
    return sentence


def test_a_body_above_the_limit_is_413(serve: Serve) -> None:
    client = serve(max_body="10KiB")
    response = client.post(PREDICT, content=b"x" * 20_000, headers={"Content-Type": "image/png"})
    assert "10,240" in error_of(response, 413)

    def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 1000

    error_of(client.post(PREDICT, content=chunks(), headers={"Content-Type": "image/png"}), 413)


@pytest.mark.parametrize("way", ["json", "raw", "multipart"])
def test_a_bomb_is_413_by_its_header(client: TestClient, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(cv2, "imdecode", fail)
    bomb = png_of(20_000, 20_000)
    sent: dict[str, Any] = {
        "json": {"json": {"image": b64(bomb)}},
        "raw": {"content": bomb},
        "multipart": {"files": {"image": ("bomb.png", bomb)}},
    }[way]
    assert "400,000,000" in error_of(client.post(PREDICT, **sent), 413)


def test_more_pixels_are_taken_where_the_limit_is_raised(serve: Serve) -> None:
    data = image.encode_png(np.zeros((4, 10, 3), np.uint8))
    client = serve(max_pixels=30)
    error_of(client.post(PREDICT, content=data), 413)
    assert serve(max_pixels=40).post(PREDICT, content=data).status_code == 200


def test_a_picture_above_the_usual_limit_is_taken_where_that_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bodies.take_apart(png_of(9000, 9000), "", {}, 90_000_000).options == {}
    with pytest.raises(Refusal) as refusal:
        bodies.take_apart(png_of(9000, 9000), "", {}, 50_000_000)
    assert refusal.value.status == 413


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[1]", "application/json", 422),
        (b"null", "application/json", 422),
        (b'{"image": 3}', "application/json", 422),
        (b'{"image": null}', "application/json", 422),
        (b'{"image": ""}', "application/json", 422),
        (b'{"image": "data:image/png"}', "application/json", 422),
        (b'{"image": "data:image/png;base64,"}', "application/json", 422),
        (b'{"image": "\xc3\xa4"}', "application/json", 422),
        (b'{"image": "http://127.0.0.1:1/x.png"}', "application/json", 422),
        (b'{"image": "FILE:///etc/passwd"}', "application/json", 422),
        (b"[" * 5000, "application/json", 400),
        (b"", "image/png", 422),
        (b"", "", 422),
        (b"GIF89a", "image/gif", 422),
        (CAT.read_bytes()[:5000], "image/png", 422),
        (CAT.read_bytes(), "text/plain", 415),
        (b"<xml/>", "application/xml", 415),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/form-data; boundary=b", 400),
        (
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx',
            "multipart/form-data; boundary=b",
            400,
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="layer"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            422,
        ),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 422),
    ],
)
def test_bodies_that_cannot_be_used(client: TestClient, content: bytes, content_type: str, status: int) -> None:
    error_of(client.post(PREDICT, content=content, headers={"Content-Type": content_type}), status)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_k": True},
        {"top_k": "many"},
        {"layer": 3},
        {"layer": "nowhere"},
        {"layer": []},
        {"layer": {"a": 1}},
        {"method": "nothing"},
        {"method": ["gradcam", "layercam"]},
        {"method": 1},
        {"files": ["heatmap", "everything"]},
        {"files": 3},
        {"files": [1]},
        {"when": "confidence"},
        {"when": "confidence < 2"},
        {"when": 3},
        {"normalize": "twice"},
        {"normalize": ["minmax"]},
        {"colormap": "pink"},
        {"colormap": 5},
        {"alpha": 2},
        {"alpha": "x"},
        {"alpha": []},
        {"class_name": "tabby"},
        {"url": "http://example.org"},
        {"seed": 1},
    ],
    ids=json.dumps,
)
def test_options_that_cannot_be_used(client: TestClient, options: dict[str, Any]) -> None:
    error_of(client.post(PREDICT, json={"image": b64(CAT.read_bytes()), **options}), 422)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_name": "no such thing"},
        {"class_name": ""},
        {"class_name": 3},
        {"class_index": 1000},
        {"class_index": -1},
        {"class_index": 1.0},
        {"class_index": 10**30},
        {"class_index": "x"},
        {"class_name": "tabby", "class_index": 281},
        {"class_name": "crane"},
    ],
    ids=json.dumps,
)
def test_classes_that_do_not_exist(client: TestClient, options: dict[str, Any]) -> None:
    error_of(client.post("/analyze_class", json={"image": b64(CAT.read_bytes()), **options}), 422)


def test_an_option_in_url_and_body_is_refused(client: TestClient) -> None:
    body = {"image": b64(CAT.read_bytes()), "top_k": 2}
    error_of(client.post(f"{PREDICT}?top_k=3", json=body), 422)
    assert len(client.post(f"{PREDICT}?top_k=3", content=CAT.read_bytes()).json()["top_predictions"]) == 3


def test_base64_with_line_ends_without_padding_and_of_urls(client: TestClient) -> None:
    data = CAT.read_bytes()
    texts = [base64.encodebytes(data).decode(), b64(data).rstrip("="), base64.urlsafe_b64encode(data).decode()]
    assert all(bodies.decode(text) == data for text in texts)


def test_multipart_options_and_base64_in_a_field(client: TestClient) -> None:
    data = CAT.read_bytes()
    answer = client.post(PREDICT, data={"top_k": "2", "files": "map"}, files={"image": ("cat.png", data)}).json()
    assert len(answer["top_predictions"]) == 2 and "gradcam_map" in answer and "gradcam_heatmap" not in answer
    assert bodies.take_apart(*_form({"image": b64(data)}), {}, 10**9).picture == data


def _form(fields: dict[str, str]) -> tuple[bytes, str]:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    return "".join([*parts, "--b--\r\n"]).encode(), "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    "settings",
    [
        {"when": "sometimes"},
        {"max_body": "much"},
        {"max_body": 0},
        {"max_pixels": "50 megapixels"},
        {"max_pixels": True},
        {"queue": 0},
        {"queue": "64"},
        {"queue_bytes": "1MiB"},
        {"timeout": "0s"},
        {"timeout": "soon"},
        {"tokens": "short"},
        {"tokens": ["a" * 20 + " "]},
        {"cors": "example.org"},
        {"cors": "https://example.org/"},
        {"threads": 0},
        {"rows": 0},
        {"rows": "some"},
        {"connections": 0},
        {"drain": "later"},
    ],
    ids=str,
)
def test_settings_that_cannot_be_used(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as error:
        Settings.of(**settings)
    assert "short" not in str(error.value)


def test_a_token_is_in_no_message() -> None:
    with pytest.raises(SettingError) as error:
        Settings.of(tokens="secret")
    assert "secret" not in str(error.value)


def test_pixels_are_read_with_their_unit() -> None:
    assert [parse_pixels(text) for text in (7, "50MP", "1.5 MP", "1000")] == [7, 50_000_000, 1_500_000, 1000]


def test_models_that_cannot_be_served() -> None:
    for wrong in ([], {}, {"a/b": "x.onnx"}, [3], ["a=x.onnx", "a=y.onnx"]):
        with pytest.raises(SettingError):
            create_app(wrong)
