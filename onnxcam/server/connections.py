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
_LINGER = 1.0  # seconds in which a client that is refused may still send, so that it reads why
_CLOSING = "Connection: close\r\n"


_lingering = 0  # connections of this process that are refused and not yet closed


class Connection(_Protocol):  # type: ignore[misc]
    """One connection of a client, of `Settings.connections` at most."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._head: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        settings = config.loaded_app.state.onnxcam.settings
        self._limit = settings.connections
        self._patience = min(HEAD_SECONDS, settings.timeout)

    def connection_made(self, transport: Any) -> None:
        """Take the connection, or answer 503 where there are too many."""
        if len(self.connections) < self._limit:
            super().connection_made(transport)
            self._head = self.loop.call_later(self._patience, self._too_slow)
            return
        self.transport = transport
        self._refused = True
        sentence = f"the server has {self._limit} connections, its most; try again later"
        self._refuse(503, "Service Unavailable", sentence)

    _refused = _lingers = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        global _lingering
        self._stop_timer()
        if self._lingers:
            self._lingers = False
            _lingering -= 1
        if self in self.connections:
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
                self._head = self.loop.call_later(self._patience, self._too_slow)
        super().data_received(data)
        if self.cycle is not cycle:
            self._stop_timer()
            self._head_bytes = 0
        elif idle and self._head_bytes > HEAD_BYTES and not self._refused and not self.transport.is_closing():
            self._refuse(431, "Request Header Fields Too Large", f"the request's head has more than {HEAD_BYTES} bytes")

    def eof_received(self) -> None:
        """Go on answering a client that has sent all it will send."""
        if not self._refused:
            super().eof_received()

    def shutdown(self) -> None:
        """Close the connection after the answer under way."""
        self._stop_timer()
        if not self._refused:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, "Bad Request", "this is not a valid HTTP/1.1 request")

    def _too_slow(self) -> None:
        self._head = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            if self._head_bytes:
                self._refuse(408, "Request Timeout", f"the request's head did not arrive within {self._patience:g} s")
            else:
                self.transport.close()

    def _refuse(self, status: int, phrase: str, sentence: str) -> None:
        """Answer and close; closed at once, data still on its way would reset the connection before it is read."""
        global _lingering
        self._refused = True
        self._stop_timer()
        self.transport.write(raw(status, phrase, sentence))
        if _lingering >= self._limit or not self.transport.can_write_eof():
            self.transport.close()
            return
        _lingering += 1
        self._lingers = True
        self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.close)

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
