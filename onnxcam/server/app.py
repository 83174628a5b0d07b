"""The app: models, queue and routes put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from onnxcam.explain.folder import cores
from onnxcam.server import classify, health, inference_protocol, kserve, openapi, page
from onnxcam.server.gain import Measurement, apply
from onnxcam.server.metrics import Metrics
from onnxcam.server.middleware import Gateway
from onnxcam.server.models import open_models
from onnxcam.server.scheduler import Scheduler
from onnxcam.server.settings import AUTO, Settings
from onnxcam.server.state import State

# modules with `routes(state) -> list[BaseRoute]`, in the order in which paths are matched
PROTOCOLS = (classify, health, kserve, inference_protocol, openapi, page)


def build(models: Any, settings: Settings, monitor: Any = None, opening: Mapping[str, Any] | None = None) -> Starlette:
    """The app of `onnxcam.server.create_app`; `opening` are further arguments of each `Explainer`."""
    places = settings.threads or cores()
    # one more, which reads or draws a picture while another one waits for the interpreter's lock
    threads = settings.threads or places + 1
    scheduler = Scheduler(threads, settings.queue, settings.queue_bytes, settings.timeout, places)
    metrics = Metrics(settings.metrics)
    metrics.watch(scheduler)
    state = State(settings, open_models(models, settings.when, places, opening), scheduler, metrics)
    measurement = Measurement(state.models, scheduler)
    for model in state.models:
        rows = model.explainer.batch_size if settings.rows == AUTO else int(settings.rows)
        if rows is not None:
            apply(model, rows, scheduler)
    watch = None
    if monitor is not None:
        from onnxcam.server.watching import Watch

        watch = Watch(state.models, monitor, settings.when)
        state.observers.append(watch)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if settings.rows == AUTO:
            measurement.start()
        try:
            yield
        finally:
            measurement.stop()
            scheduler.close()
            if watch is not None:
                watch.close()

    routes: list[BaseRoute] = [route for protocol in PROTOCOLS for route in protocol.routes(state)]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gateway, state=state)],
        exception_handlers={HTTPException: _raise},
        lifespan=lifespan,
    )
    app.state.onnxcam = state
    return app


async def _raise(request: Request, error: Exception) -> Response:
    """Leave errors of routing to `Gateway`, which answers all of them alike."""
    raise error
