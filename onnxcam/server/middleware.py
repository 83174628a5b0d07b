"""What happens around every request: its id, tokens, CORS, errors as JSON, the access log, metrics.

One layer instead of five, as each costs every request. Nothing of a picture, a query or a header but the request's id
gets into a log.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import time
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onnxcam.server import bodies, page, responses
from onnxcam.server.refusals import ClientLeft, Refusal, refusal_of
from onnxcam.server.state import State

access_log = logging.getLogger("onnxcam.server.access")
error_log = logging.getLogger("onnxcam.server")

# without a token: what load balancers ask, and the page, which asks people for theirs
OPEN = frozenset(("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", *page.PATHS.values()))
_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_LEFT = 499  # in the log alone: as nginx notes a client that did not wait
_METHODS = "GET, POST, OPTIONS"
_HEADERS = "Authorization, Content-Type, X-Request-Id, Inference-Header-Content-Length"
_EXPOSED = b"X-Request-Id, Retry-After, Inference-Header-Content-Length"


class Gateway:
    """The layer around all routes, as ASGI middleware.

    Arguments:
        app: the routes.
        state: of the server.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state
        self._tokens = [token.encode() for token in state.settings.tokens]
        self._origins = frozenset(origin.encode() for origin in state.settings.cors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of connection pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        identity = headers.get(b"x-request-id", b"")
        if not _ID.fullmatch(identity):
            identity = os.urandom(16).hex().encode()
        scope["request_id"] = identity.decode()
        extra = [(b"x-request-id", identity), *self._cors(headers.get(b"origin"))]
        status, size = 0, 0
        unread = True

        async def receive_noting() -> Message:
            nonlocal unread
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body"):
                unread = False
            return message

        async def send_with(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
                if not self._state.ready:
                    message["headers"].append((b"connection", b"close"))
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            preflight = self._preflight(scope, headers)
            if preflight is not None:
                await preflight(scope, receive, send_with)
                return
            self._authorize(scope, headers)
            await self._app(scope, receive_noting, send_with)
        except ClientLeft:
            status = status or _LEFT
        except Exception as error:
            if status:
                raise  # the answer has begun
            refusal = _refusal(error)
            if refusal.status == 500:
                error_log.exception("request %s failed", scope["request_id"])
            # what is left of the body would be taken for the next request's head
            asks_first = headers.get(b"expect", b"").lower() == b"100-continue"
            if (
                unread
                and "Connection" not in refusal.headers
                and (asks_first or not await bodies.discard(receive_noting))
            ):
                refusal.headers.setdefault("Connection", "close")
            await responses.refused(refusal)(scope, receive, send_with)
        finally:
            self._note(scope, status, size, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, size: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "unknown"
        self._state.metrics.answered(route, status, seconds)
        if access_log.isEnabledFor(logging.INFO):
            client = scope.get("client")
            record: dict[str, Any] = {
                "time": time.time(),
                "request": scope["request_id"],
                "client": client[0] if client else None,
                "method": scope["method"],
                "route": route,
                "status": status,
                "seconds": round(seconds, 6),
                "bytes": size,
            }
            access_log.info(orjson.dumps(record | scope.get("noted", {})).decode())

    def _authorize(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse a request without a valid token, where tokens are needed.

        Raises:
            Refusal: 401.
        """
        if not self._tokens or scope["path"].removeprefix(scope.get("root_path", "")) in OPEN:
            return
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        matches = [hmac.compare_digest(token.strip(), one) for one in self._tokens]  # each, so that time tells nothing
        if kind.lower() == b"bearer" and any(matches):
            return
        raise Refusal(
            401, "a token is needed; send it as header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
        )

    def _cors(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        if origin is None or not self._origins:
            return []
        if b"*" in self._origins:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
        allowed = [(b"vary", b"Origin")]
        if origin in self._origins:
            allowed += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", _EXPOSED)]
        return allowed

    def _preflight(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        """The answer to a browser that asks whether a page may send a request."""
        asks = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers and b"origin" in headers
        if not asks or not self._origins:
            return None
        if b"*" not in self._origins and headers[b"origin"] not in self._origins:
            sentence = "pages of this origin may not send requests here; allow it with --cors ORIGIN"
            return responses.json({"error": sentence}, 403)
        allowed = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Allow-Headers": _HEADERS}
        return Response(None, 204, allowed | {"Access-Control-Max-Age": "600"})


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, HTTPException):
        sentences = {
            404: "no such route; GET /openapi.json lists them",
            405: "the route does not take this method of HTTP; GET /openapi.json lists what it takes",
        }
        return Refusal(error.status_code, sentences.get(error.status_code, str(error.detail)), error.headers)
    return refusal_of(error)
