"""A server that listens on a port of 127.0.0.1, for clients that need a real one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn


class LiveServer:
    """An ASGI app behind uvicorn in a thread.

    Attributes:
        url: of its root, with a slash at the end.
        port: the one it listens on, the same after `stop` and `start`.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen."""
        config = uvicorn.Config(
            self.app, host="127.0.0.1", port=self.port, log_config=None, timeout_graceful_shutdown=5
        )
        self._server = uvicorn.Server(config)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30), "the server did not start within 30 s"
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            task = asyncio.create_task(self._server.serve())
            while not self._server.started and not task.done():
                await asyncio.sleep(0.01)
            self._ready.set()
            await task

        asyncio.run(serve())

    def call(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Start a coroutine in the server's loop; returns a future of `concurrent.futures`."""

        async def run() -> Any:
            return await function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def stop(self) -> None:
        """Stop listening, and wait for it."""
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server did not stop within 30 s"
