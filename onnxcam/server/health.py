"""`GET /healthz`, `GET /readyz` and `GET /metrics`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from onnxcam.server import responses
from onnxcam.server.refusals import Refusal
from onnxcam.server.state import State


def routes(state: State) -> list[BaseRoute]:
    """The routes about the server itself."""

    async def healthz(request: Request) -> Response:
        return responses.json({"status": "ok", "models": [model.name for model in state.models]})

    async def readyz(request: Request) -> Response:
        if not state.ready:
            raise Refusal(503, "the server is stopping", {"Retry-After": "1"})
        return responses.json({"status": "ready"})

    async def metrics(request: Request) -> Response:
        if not state.metrics.enabled:
            raise Refusal(404, "this server exports no metrics; start it with --metrics")
        body, content_type = state.metrics.text()
        return Response(body, media_type=None, headers={"Content-Type": content_type})

    return [
        Route("/healthz", healthz, methods=["GET"], name="healthz"),
        Route("/readyz", readyz, methods=["GET"], name="readyz"),
        Route("/metrics", metrics, methods=["GET"], name="metrics"),
    ]
