"""A real browser for the pages that onnxcam writes: headless Chromium, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]


@contextmanager
def chromium(flags: Sequence[str] = _FLAGS) -> Iterator[Any]:
    """Start the browser, which several pages may share: the system's, or the one that playwright has downloaded.

    Skips the test where there is none.

    Arguments:
        flags: of its command line.
    """
    api = pytest.importorskip("playwright.sync_api", reason="pages are not tested: playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with api.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=executable, args=list(flags))
        except api.Error as error:
            if executable is not None:
                raise
            pytest.skip(f"pages are not tested: no Chromium is installed ({str(error).splitlines()[0]})")
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(
    browser: Any,
    url: str,
    width: int = 1200,
    height: int = 900,
    scheme: str = "light",
    expected: Sequence[str] = (),
    beyond: Sequence[str] = (),
) -> Iterator[Any]:
    """Open a page; fails if its console shows anything, or it asks for anything but what lies beside it.

    Arguments:
        browser: of `chromium`.
        scheme: of colours: `light` or `dark`.
        expected: parts of the console's lines that a test brings about, such as the status of a refused request.
        beyond: beginnings of other addresses that the page is meant to ask.
    """
    messages: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    try:
        opened = context.new_page()
        opened.set_default_timeout(20_000)
        opened.on("console", lambda message: messages.append(message.text))
        opened.on("pageerror", lambda error: messages.append(str(error)))

        def note(request: Any) -> None:
            if _beyond(request.url, url) and not request.url.startswith(tuple(beyond)):
                messages.append(request.url)

        opened.on("request", note)
        opened.goto(url)
        yield opened
    finally:
        context.close()
    # the last tells what tests do that look at what is drawn
    tolerated = (*expected, "Multiple readback operations using getImageData")
    messages = [line for line in messages if not any(part in line for part in tolerated)]
    assert not messages, messages


@contextmanager
def page(path: Path, width: int = 1200, height: int = 900) -> Iterator[Any]:
    """Open a page from its file, in a browser of its own; fails as `visit` does. Skips where there is no Chromium."""
    with chromium() as browser, visit(browser, path.as_uri(), width, height) as opened:
        yield opened


def _beyond(url: str, page_url: str) -> bool:
    if url.startswith("data:"):
        return False
    if page_url.startswith("file:"):
        return url != page_url
    # objects in memory are named by their origin: blob:http://127.0.0.1:8000/…
    return urlsplit(url.removeprefix("blob:"))[:2] != urlsplit(page_url)[:2]
