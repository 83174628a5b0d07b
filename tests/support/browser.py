"""A real browser for the pages that onnxcam writes: headless Chromium, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


@contextmanager
def page(path: Path, width: int = 1200, height: int = 900) -> Iterator[Any]:
    """Open a page from its file; fails if its console shows anything, or it asks for anything but itself.

    Skips the test where there is no Chromium.
    """
    api = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium is installed")
    said: list[str] = []
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=_FLAGS)
        try:
            opened = browser.new_page(viewport={"width": width, "height": height})
            opened.on("console", lambda message: said.append(message.text))
            opened.on("pageerror", lambda error: said.append(str(error)))
            opened.on("request", lambda request: said.append(request.url) if _beyond(request.url, path) else None)
            opened.goto(path.as_uri())
            yield opened
        finally:
            browser.close()
    assert not said, said


def _beyond(url: str, path: Path) -> bool:
    return url != path.as_uri() and not url.startswith("data:")
