"""Photograph docs/images/viewer.png: the page of `onnxcam serve` in Chromium, two classes of one picture compared.

    python tools/viewer_picture.py

The bundled model and picture; needs `onnxcam[cpu,serve]`, playwright, and a Chromium on PATH (or playwright's own).
"""

from __future__ import annotations

import argparse
import shutil
import socket
import threading
from pathlib import Path

import uvicorn
from playwright.sync_api import sync_playwright

from onnxcam.server import create_app

ROOT = Path(__file__).resolve().parent.parent
MODEL, PICTURE = ROOT / "models" / "efficientnet_lite0.onnx", ROOT / "models" / "cat_and_coffee.png"
WIDTH, HEIGHT = 1180, 745


def photograph(output: Path, width: int = WIDTH, height: int = HEIGHT, scheme: str = "light") -> None:
    """Serve the model, compare its first two classes on the page, and write what the browser shows."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(str(MODEL)), log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            page.set_input_files("#file", str(PICTURE))
            page.get_by_role("status").get_by_text("what speaks for").wait_for()
            page.get_by_role("button", name="Compare with").first.click()
            page.get_by_role("status").get_by_text("beside").wait_for()
            page.locator("h1").click()  # no pointer over a button
            page.screenshot(path=str(output))
            browser.close()
    finally:
        server.should_exit = True
        thread.join(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "images" / "viewer.png")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    arguments = parser.parse_args()
    photograph(arguments.output, scheme=arguments.scheme)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
