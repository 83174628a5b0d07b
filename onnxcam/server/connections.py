"""Limits on connections, below HTTP: how many there are, and how long and large the head of a request may be.

uvicorn limits neither time nor, with httptools, size before a request has begun; a client that sends a byte now and
then would hold a connection for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from onnxcam.server import responses

_Protocol: Any = AutoHTTPProtocol

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 << 10
_CLOSING = "Connection: close\r\n"


class Connection(_Protocol):  # type: ignore[misc]
    """One connection of a client, of `Settings.connections` at most."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._head: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._limit = config.loaded_app.state.onnxcam.settings.connections

    def connection_made(self, transport: Any) -> None:
        """Take the connection, or answer 503 where there are too many."""
        if len(self.connections) >= self._limit:
            transport.write(
                raw(503, "Service Unavailable", f"the server has {self._limit} connections, its most; try again later")
            )
            transport.close()
            self._refused = True
            self.transport = transport
            return
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    _refused = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        if not self._refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request; its head has to come within time and size."""
        if self._refused:
            return
        cycle = self.cycle
        idle = cycle is None or cycle.response_complete
        if idle:
            self._head_bytes += len(data)
            if self._head is None:
                self._head = self.loop.call_later(HEAD_SECONDS, self._too_slow)
        super().data_received(data)
        if self.cycle is not cycle:
            self._stop_timer()
            self._head_bytes = 0
        elif idle and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, "Request Header Fields Too Large", f"the request's head has more than {HEAD_BYTES} bytes")

    def eof_received(self) -> None:
        """Go on answering a client that has sent all it will send."""
        if not self._refused:
            super().eof_received()

    def shutdown(self) -> None:
        """Close the connection after the answer under way."""
        self._stop_timer()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "Bad Request", "this is not a valid HTTP/1.1 request")

    def _too_slow(self) -> None:
        self._head = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            if self._head_bytes:
                self._refuse(408, "Request Timeout", f"the request's head did not arrive within {HEAD_SECONDS:g} s")
            else:
                self.transport.close()

    def _refuse(self, status: int, phrase: str, sentence: str) -> None:
        self.transport.write(raw(status, phrase, sentence))
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def raw(status: int, phrase: str, sentence: str) -> bytes:
    """A whole response of HTTP/1.1, after which the connection is closed."""
    body = responses.to_json({"error": sentence})
    retry = "Retry-After: 1\r\n" if status == 503 else ""
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return (head + retry + _CLOSING + "\r\n").encode() + body
