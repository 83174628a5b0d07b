"""Requests drawn from the server's own OpenAPI, and pictures by strategies of our own: no fault of the server."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from onnxcam.server import create_app
from tests.image.pictures import encode, smooth
from tests.server.flood import multipart, part
from tests.server.running import PREPROCESS, ROUTE
from tests.support.examples import examples
from tests.support.explainable import augment
from tests.support.models import tiny_cnn

ROUTES = (ROUTE, "/analyze_class")
STATUSES = {200, 400, 404, 405, 413, 415, 422, 429}
FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "BMP": "image/bmp", "GIF": "image/gif"}


def whole(draw: st.DrawFn) -> tuple[bytes, str]:
    """An encoded picture, and its type."""
    size = draw(st.sampled_from([(1, 1), (3, 50), (32, 32), (48, 64), (200, 120)]))
    kind = draw(st.sampled_from(sorted(FORMATS)))
    return encode(smooth(*size), kind), FORMATS[kind]


def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The same, cut off, of another type, or with bytes that differ."""
    way = draw(st.sampled_from(["cut", "text", "flip", "more"]))
    at = draw(st.integers(0, len(data) - 1))
    match way:
        case "cut":
            return data[:at]
        case "text":
            return draw(st.binary(max_size=200))
        case "flip":
            return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        case _:
            return data + draw(st.binary(max_size=50))


def options_of(draw: st.DrawFn, of_class: bool, valid: bool) -> dict[str, Any]:
    """Options, right or of any type."""
    right: dict[str, Any] = {
        "top_k": st.integers(1, 10),
        "files": st.lists(st.sampled_from(["heatmap", "overlay", "grayscale", "panel", "input", "map"]), max_size=3),
        "when": st.sampled_from(["always", "never", "confidence < 0.6"]),
        "method": st.sampled_from(["gradcam", "hirescam", "layercam"]),
        "normalize": st.sampled_from(["minmax", "max", "none"]),
        "alpha": st.floats(0, 1),
        "colormap": st.sampled_from(["jet", "viridis", "gray"]),
    }
    junk = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
        st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )  # fmt: skip
    names = draw(st.lists(st.sampled_from(sorted(right)), unique=True, max_size=3))
    options = {name: draw(right[name] if valid else st.one_of(right[name], junk)) for name in names}
    if of_class:
        options["class_index"] = draw(st.integers(0, 4) if valid else junk)
    return options


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes, str]:
    """A route with its query, a body and its type; half of them are right."""
    route = draw(st.sampled_from(ROUTES))
    valid = draw(st.booleans())
    data, kind = whole(draw)
    if not valid and draw(st.booleans()):
        data = damaged(draw, data)
    options = options_of(draw, route == "/analyze_class", valid)
    form = draw(st.sampled_from(["JSON", "data URL", "multipart", "raw"]))
    texts = {name: ",".join(v) if isinstance(v, list) and all(isinstance(i, str) for i in v) else v
             for name, v in options.items()}  # fmt: skip
    if form == "raw":
        query = "&".join(f"{name}={quote(str(value), errors='replace')}" for name, value in texts.items())
        return f"{route}?{query}", data, kind
    if form == "multipart":
        fields = [part(name, str(value).encode(errors="replace")) for name, value in texts.items()]
        body, content_type = multipart(*fields, part("image", data, '; filename="a"'), end=valid or draw(st.booleans()))
        return route, body, content_type
    text = base64.b64encode(data).decode()
    image: Any = f"data:{kind};base64,{text}" if form == "data URL" else text
    if not valid and draw(st.integers(0, 3)) == 0:
        image = draw(st.one_of(st.none(), st.integers(), st.text(max_size=20)))
    return route, json.dumps({"image": image, **options}).encode(), "application/json"


@pytest.fixture(scope="module")
def client() -> Any:
    """A client of a server of a small model."""
    model = augment(tiny_cnn(), preprocess=PREPROCESS, methods=("gradcam", "hirescam", "layercam"), probe=False)
    with TestClient(create_app({"tiny": model.SerializeToString()}, threads=1), raise_server_exceptions=True) as client:
        yield client


def check(reply: Any) -> None:
    """An answer is a map or a sentence."""
    assert reply.status_code in STATUSES, (reply.status_code, reply.text[:500])
    if reply.status_code != 200 and reply.request.method != "HEAD":
        content = reply.json()
        assert list(content) == ["error"] and isinstance(content["error"], str), content
        assert len(content["error"]) > 10 and "Traceback" not in content["error"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, pytest.param(3000, marks=pytest.mark.soak)])
def test_pictures_of_every_kind(client: TestClient, count: int) -> None:
    """At least 30 % of the requests are answered 200, so that the work itself is tried and not its refusal alone."""
    statuses: Counter[int] = Counter()

    @examples(count)
    @given(requests())
    def run(drawn: tuple[str, bytes, str]) -> None:
        url, body, kind = drawn
        reply = client.post(url, content=body, headers={"content-type": kind})
        check(reply)
        statuses[reply.status_code] += 1

    run()
    print(dict(statuses))
    assert statuses[200] >= 0.3 * statuses.total(), statuses


@pytest.mark.slow
def test_every_route_of_the_openapi(client: TestClient) -> None:
    """Schemathesis draws what each route's schema allows, and what it does not."""
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    statuses: Counter[int] = Counter()
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 8
    for operation in operations:

        @examples(12)
        @given(case=operation.as_strategy())
        def run(case: Any) -> None:
            arguments = case.as_transport_kwargs(base_url="http://testserver")
            arguments.pop("cookies", None)
            names = {"method", "url", "params", "headers"} & arguments.keys()
            reply = client.request(**{name: arguments[name] for name in names}, content=_content(arguments))
            check(reply)
            statuses[reply.status_code] += 1

        run()
    assert statuses.total() > 2 * len(operations), statuses


def _content(arguments: dict[str, Any]) -> bytes | None:
    """The body of a case, as bytes."""
    if "json" in arguments:
        return json.dumps(arguments["json"]).encode()
    data = arguments.get("data")
    return data if isinstance(data, bytes) else str(data).encode(errors="replace") if data is not None else None
