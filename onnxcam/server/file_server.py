"""Serve the files of a page on this machine alone, with the headers that threads in WebAssembly need."""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from onnxcam.errors import OnnxcamError

HOST = "127.0.0.1"
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked again, so that a page made anew is seen
}
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
_IDLE = 60  # seconds until a silent connection is closed


class _Handler(SimpleHTTPRequestHandler):
    """Answers with the files that were named, and nothing else of their folder."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    extensions_map = SimpleHTTPRequestHandler.extensions_map | _TYPES

    def __init__(self, *args: Any, names: Collection[str], **kwargs: Any) -> None:
        self._names = names
        super().__init__(*args, **kwargs)

    def send_head(self) -> Any:
        host = (self.headers.get("Host") or "").partition(":")[0]
        if host not in (HOST, "localhost"):  # a page elsewhere whose name leads to this machine
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        name = unquote(urlsplit(self.path).path).lstrip("/") or "index.html"
        if name not in self._names:
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        self.path = f"/{urlsplit(self.path).path.lstrip('/') or 'index.html'}"
        return super().send_head()

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: which pictures somebody looks at is nobody's business."""


class _Server(ThreadingHTTPServer):
    """A server whose visitors may leave in the middle of a file."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that broke; anything else is a bug, and is printed as one."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def listen(folder: str | Path, names: Collection[str], port: int) -> ThreadingHTTPServer:
    """A server of these files of a folder on 127.0.0.1; `serve_forever` answers until it is shut down.

    Arguments:
        folder: where the files are.
        names: of the files, relative, with slashes.
        port: 0 for any that is free.

    Raises:
        OnnxcamError: the port cannot be listened on.
    """
    handler = partial(_Handler, directory=str(folder), names=frozenset(names))
    try:
        server = _Server((HOST, port), handler)
    except OSError as error:
        raise OnnxcamError(
            f"port {port} of {HOST} cannot be listened on ({error.strerror}); name another one with --port"
        ) from error
    return server
