"""`GET /openapi.json`: what every route takes and answers, in OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from onnxcam.html import interface
from onnxcam.server import page, responses
from onnxcam.server.classify import ANALYZE, PREDICT
from onnxcam.server.inference_protocol import HEADER
from onnxcam.server.middleware import OPEN
from onnxcam.server.openapi_schemas import schemas
from onnxcam.server.schema_parts import Schema, ref

if TYPE_CHECKING:
    from onnxcam.server.state import State

PATH = "/openapi.json"
_JSON, _BINARY = "application/json", "application/octet-stream"
_PICTURES = (_BINARY, "image/png", "image/jpeg", "image/webp", "image/tiff", "image/bmp")
_REFUSALS = {
    400: "The body is not what its headers say: no JSON, no multipart, cut off.",
    401: "A token is needed, as `Authorization: Bearer TOKEN`.",
    403: "Pages of this origin may not send requests here.",
    404: "There is no such model, version or route.",
    405: "The route takes another method of HTTP.",
    408: "The body did not arrive in time.",
    413: "The body, the picture or the number of rows is above the server's limit.",
    415: "The server does not take bodies of this type.",
    422: "The body is understood and cannot be used: an unknown class, layer or method, no picture, a wrong shape.",
    429: "The queue is full; the header Retry-After says when to try again.",
    503: "The server is stopping, or has no execution provider.",
    504: "The time for an answer is spent.",
}
_OF_WORK = (400, 408, 413, 415, 422, 429, 503, 504)


def document(state: State) -> dict[str, Any]:
    """The whole description of a server with these models and settings."""
    from onnxcam import __version__

    names = [model.name for model in state.models]
    tasks = any(model.task is not None for model in state.models)
    components: dict[str, Any] = {"schemas": schemas(names, tasks), "responses": _refusals()}
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "onnxcam",
            "version": __version__,
            "summary": "Predictions of image models, and what they looked at.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {**_habits(names, tasks), **_kserve(names), **_inference(names), **_server(), **_page()},
        "components": components,
    }
    if state.settings.tokens:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
        for path, operations in described["paths"].items():
            for operation in operations.values():
                if path in OPEN:
                    operation["security"] = []
                else:
                    operation["responses"]["401"] = {"$ref": "#/components/responses/401"}
    return described


def routes(state: State) -> list[BaseRoute]:
    """The route of the description, which is made once."""
    content: list[bytes] = []

    async def describe(request: Request) -> Response:
        if not content:
            content.append(responses.to_json(document(state)))
        return responses.json(content[0])

    return [Route(PATH, describe, methods=["GET"], name="openapi")]


def _refusals() -> dict[str, Any]:
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return {
        str(status): {
            "description": sentence,
            "content": {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
            **({"headers": retry} if status in (429, 503, 504) else {}),
        }
        for status, sentence in _REFUSALS.items()
    }


def _operation(
    name: str,
    summary: str,
    tag: str,
    answer: str | dict[str, Any],
    *,
    refused: Sequence[int] = (),
    parameters: Sequence[Schema] = (),
    body: dict[str, Schema] | None = None,
) -> dict[str, Any]:
    """One operation: its answer is a schema's name, or a response."""
    success = _answer(answer) if isinstance(answer, str) else answer
    references = {str(status): {"$ref": f"#/components/responses/{status}"} for status in refused}
    operation: dict[str, Any] = {
        "operationId": name, "summary": summary, "tags": [tag], "responses": {"200": success, **references},
    }  # fmt: skip
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {kind: {"schema": schema} for kind, schema in body.items()},
        }
    return operation


def _answer(schema: str) -> dict[str, Any]:
    return {"description": "The answer.", "content": {_JSON: {"schema": ref(schema)}}}


def _habits(names: list[str], tasks: bool) -> dict[str, Any]:
    """`/predict_with_gradcam` and `/analyze_class`."""
    described = {}
    answers: dict[str, str | dict[str, Any]] = {PREDICT: "Answer", ANALYZE: "Answer"}
    if tasks:
        either = {"anyOf": [ref("Answer"), ref("TaskAnswer")]}
        answers[PREDICT] = {"description": "The answer.", "content": {_JSON: {"schema": either}}}
    for path, name, summary in (
        (PREDICT, "Picture", "Predict, and explain the best class"),
        (ANALYZE, "Class", "Predict, and explain one class"),
    ):
        form = schemas(names, tasks)[f"{name}Form"]
        parameters = [
            {"name": option, "in": "query", "schema": schema, "description": "where the body is the picture itself"}
            for option, schema in form["properties"].items()
            if option != "image"
        ]
        body = {_JSON: ref(f"{name}Request"), "multipart/form-data": ref(f"{name}Form")}
        body |= {kind: {"type": "string", "format": "binary"} for kind in _PICTURES}
        described[path] = {
            "post": _operation(
                path[1:], summary, "pictures", answers[path], refused=(*_OF_WORK, 404), parameters=parameters, body=body
            )
        }
    return described


def _path(name: str, values: Sequence[str]) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": list(values)}}


def _kserve(names: list[str]) -> dict[str, Any]:
    model, tag = _path("model", names), "KServe V1"
    body = {_JSON: ref("InstancesRequest")}
    refused = (*_OF_WORK, 404)
    one = "/v1/models/{model}"
    return {
        "/v1/models": {"get": _operation("v1_models", "List the models", tag, "ModelList")},
        one: {
            "get": _operation(
                "v1_model_ready", "Say whether a model is ready", tag, "ModelReady", refused=(404, 405, 503),
                parameters=[model],
            )
        },
        f"{one}:predict": {
            "post": _operation(
                "v1_predict", "Predict", tag, "Predictions", refused=refused, parameters=[model], body=body
            )
        },
        f"{one}:explain": {
            "post": _operation(
                "v1_explain", "Predict and explain", tag, "Explanations", refused=refused, parameters=[model], body=body
            )
        },
    }  # fmt: skip


def _inference(names: list[str]) -> dict[str, Any]:
    """The Open Inference Protocol, v2."""
    tag = "Open Inference Protocol v2"
    binary = {
        "name": HEADER,
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "bytes of the JSON, where binary data follows it",
    }
    answer = _answer("inference_response")
    answer["content"][_BINARY] = {"schema": {"type": "string", "format": "binary"}}
    answer["headers"] = {HEADER: {"schema": {"type": "integer"}, "description": binary["description"]}}
    body = {_JSON: ref("inference_request"), _BINARY: {"type": "string", "format": "binary"}}
    described: dict[str, Any] = {}
    for path in ("/v2", "/v2/"):
        name = "v2" if path == "/v2" else "v2_slash"
        described[path] = {"get": _operation(name, "Describe the server", tag, "metadata_server_response")}
    described["/v2/health/live"] = {
        "get": _operation("v2_live", "Say whether the server is alive", tag, "live_server_response")
    }
    ready = _operation("v2_ready", "Say whether the server answers", tag, "ready_server_response")
    ready["responses"]["503"] = _answer("ready_server_response")
    described["/v2/health/ready"] = {"get": ready}
    described["/v2/models"] = {"get": _operation("v2_models", "List the models", tag, "ModelList")}
    for suffix, version in (("", []), ("/versions/{version}", [_path("version", ["1"])])):
        path, name = f"/v2/models/{{model}}{suffix}", "_version" if version else ""
        where = [_path("model", names), *version]
        described[path] = {
            "get": _operation(
                f"v2_model{name}", "Describe a model's tensors", tag, "metadata_model_response", refused=(404,),
                parameters=where,
            )
        }  # fmt: skip
        ready = _operation(
            f"v2_model_ready{name}", "Say whether a model is ready", tag, "ModelReady", refused=(404,), parameters=where
        )
        ready["responses"]["503"] = _answer("ModelReady")
        described[f"{path}/ready"] = {"get": ready}
        described[f"{path}/infer"] = {
            "post": _operation(
                f"v2_infer{name}", "Predict and explain tensors or pictures", tag, answer, refused=(*_OF_WORK, 404),
                parameters=[*where, binary], body=body,
            )
        }  # fmt: skip
    return described


def _server() -> dict[str, Any]:
    metrics = {
        "description": "Metrics in Prometheus' text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
    description = {"description": "This document.", "content": {_JSON: {"schema": {"type": "object"}}}}
    return {
        "/healthz": {"get": _operation("healthz", "Say that the server is alive", "server", "Health")},
        "/readyz": {"get": _operation("readyz", "Say whether it answers", "server", "Readiness", refused=(503,))},
        "/metrics": {"get": _operation("metrics", "Counters and histograms", "server", metrics, refused=(404,))},
        PATH: {"get": _operation("openapi", "Describe the routes", "server", description)},
    }


def _page() -> dict[str, Any]:
    """The page and its files."""
    described: dict[str, Any] = {}
    for name, path in page.PATHS.items():
        kind = interface.TYPES[PurePath(name).suffix].partition(";")[0]
        file = {"description": "A file of the page.", "content": {kind: {"schema": {"type": "string"}}}}
        operation = _operation(f"page_{name}", f"Get the page's {name}", "page", file)
        operation["responses"]["304"] = {"description": "It has not changed."}
        if name == interface.INDEX:
            operation["summary"] = "Get the page; JSON where the header Accept names no HTML"
            alive = {"type": "object", "properties": {"status": {"const": "alive"}}, "required": ["status"]}
            operation["responses"]["200"]["content"][_JSON] = {"schema": alive}
        described[path] = {"get": operation}
    facts = {"description": "What the page offers.", "content": {_JSON: {"schema": {"type": "object"}}}}
    described[f"/{page.FACTS}"] = {
        "get": _operation("page_facts", "Get what the page offers", "page", facts, refused=(429, 503, 504))
    }
    return described
