"""Servers on small models, and clients without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import onnxcam
from onnxcam import models
from onnxcam.explain.explainer import Explainer
from onnxcam.server import create_app
from tests.server.live import LiveServer
from tests.support import browser as browsers

MODELS = Path(models.__file__).parent
CAT = MODELS / "cat.png"

Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def explainer() -> Explainer:
    """The bundled EfficientNet-Lite0, opened once."""
    return onnxcam.Explainer(str(MODELS / "efficientnet_lite0.onnx"))


@pytest.fixture
def serve(explainer: Explainer) -> Iterator[Serve]:
    """Start a server with these settings, on the bundled model unless others are named; return its client."""
    clients: list[TestClient] = []

    def start(served: Any = None, **settings: Any) -> TestClient:
        app = create_app({"lite0": explainer} if served is None else served, **{"threads": 2, "rows": 1, **settings})
        client = TestClient(app, raise_server_exceptions=True)
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve: Serve) -> TestClient:
    """A client of a server with default settings."""
    return serve()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def live(explainer: Explainer) -> Iterator[LiveServer]:
    server = LiveServer(create_app({"lite0": explainer}, threads=2))
    yield server
    server.stop()


@pytest.fixture
def page(chromium: Any, live: LiveServer) -> Iterator[Any]:
    with browsers.visit(chromium, live.url) as opened:
        yield opened
