"""JSON responses, made in worker threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from onnxcam.server.refusals import Refusal

JSON = "application/json"


def to_json(content: Any) -> bytes:
    """JSON of a document; numbers that are not finite are null, and arrays are lists."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response of a document, or of JSON that `to_json` made in a worker thread."""
    body = content if isinstance(content, bytes) else to_json(content)
    return Response(body, status, None if headers is None else dict(headers), JSON)


def refused(refusal: Refusal) -> Response:
    """The response of a refusal."""
    return json({"error": refusal.sentence}, refusal.status, refusal.headers)
