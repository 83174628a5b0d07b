"""`GET /`: the page that explains pictures in a browser, by the routes of the server that sent it.

A client that does not ask for HTML gets JSON there: KServe's V1 client asks `GET /` whether the server lives.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from onnxcam import __version__
from onnxcam.cam import registry
from onnxcam.errors import OnnxcamError
from onnxcam.html import interface
from onnxcam.server import responses
from onnxcam.server.models import Model
from onnxcam.server.state import State

BACKEND, FACTS = "backend.js", "viewer.json"
_SOURCES = {**{name: name for name in interface.FILES}, BACKEND: "http_backend.js"}
# they say nothing about the models
PATHS = {name: "/" if name == interface.INDEX else f"/{name}" for name in _SOURCES}
_NOTES = {
    "detect": ["This model is a detector: each box has a map of its own, and of a class its best box is explained."],
    "segment": ["This model divides pictures: of each class its own pixels are explained, or the class in a part."],
}
_HTML = frozenset(("text/html", "application/xhtml+xml"))
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": interface.policy(frame_ancestors="'none'"),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes(state: State) -> list[Route]:
    """The page, its files, and the facts about the models that it offers to choose from."""
    answers = [
        Route(path, _sender(interface.read(_SOURCES[name]), interface.TYPES[PurePath(name).suffix]), methods=["GET"])
        for name, path in PATHS.items()
        if name != interface.INDEX
    ]
    answers.append(Route(PATHS[interface.INDEX], _index(), methods=["GET"]))
    return [*answers, Route(f"/{FACTS}", _facts(state), methods=["GET"])]


def _index() -> Callable[[Request], Any]:
    """The page for who names HTML, as browsers do; who takes anything gets what KServe's V1 client expects."""
    vary = {"Vary": "Accept"}
    page = _sender(interface.read(interface.INDEX), interface.TYPES[PurePath(interface.INDEX).suffix], vary)

    async def send(request: Request) -> Response:
        if _names_html(request.headers.get("accept", "")):
            response: Response = await page(request)
            return response
        return responses.json({"status": "alive"}, headers=vary | {"X-Content-Type-Options": "nosniff"})

    return send


def _names_html(accept: str) -> bool:
    """Whether an Accept header names HTML with a quality above zero (RFC 9110, 12.5.1)."""
    for entry in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        qualities = [part.removeprefix("q=").strip() for part in parameters if part.startswith("q=")]
        if kind in _HTML and not any(re.fullmatch(r"0(\.0*)?", quality) for quality in qualities):
            return True
    return False


def _sender(content: bytes, kind: str, more: Mapping[str, str] | None = None) -> Callable[[Request], Any]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = _HEADERS | {"ETag": tag} | dict(more or {})

    async def send(request: Request) -> Response:
        # a proxy that compresses makes the tag a weak one
        tags = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
        if tag in tags:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return send


def _facts(state: State) -> Callable[[Request], Any]:
    content: list[bytes] = []

    def measure(_: Any) -> bytes:
        described = [describe(model) for model in state.models]
        facts = {"onnxcam": __version__, "max_body": state.settings.max_body, "monitored": bool(state.observers)}
        return responses.to_json(facts | {"models": described})

    async def send(request: Request) -> Response:
        if not content:
            content.append(await state.scheduler.submit(measure, size=0, receive=request.receive))
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return responses.json(content[0], headers=headers)

    return send


def describe(model: Model) -> dict[str, Any]:
    """What the page needs to know of a model: its classes, and the layers and methods that it can be asked for."""
    from onnxcam.network.network import list_layers  # it imports onnx, and a server answers sooner without

    explainer = model.explainer
    layers = explainer.layers
    try:
        names = [layer.name for layer in list_layers(explainer.source)]
    except OnnxcamError:
        names = []  # a graph that cannot be read further: those of the file remain
    stored = explainer.methods
    default = registry.USUAL if registry.USUAL in stored or not stored else stored[0]
    if model.task is not None:
        default = registry.default_method(explainer.terms.readout)
    return {
        "name": model.name,
        "layers": [*(name for name in names if name not in layers), *layers],
        "layer": layers[-1],
        "methods": list(dict.fromkeys([*stored, *registry.methods(registry.GRAPH), *registry.methods()])),
        "method": default,
        "classes": model.labels,
        "class_count": explainer.classes,
        "kind": explainer.manifest["scores"]["kind"],
        "targets": "any",
        "task": model.task,
        "notes": _NOTES.get(model.task or "", []),
    }
