"""What docs/how-to/serve.md shows works as it stands: curl's lines, the web page in a browser, the app in FastAPI."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from starlette.testclient import TestClient

import onnxcam
from onnxcam import models
from onnxcam.explain.explainer import Explainer
from onnxcam.server import create_app
from tests.server.live import LiveServer
from tests.support import browser as browsers

MODELS = Path(models.__file__).parent
TEXT = (Path(__file__).parents[1] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
TOKEN = "correct-horse-battery-staple"
LINES = [line.replace("\\|", "|") for line in re.findall(r"`(curl .+?|jq -n .+?)` \|$", TEXT, flags=re.MULTILINE)]


def block(language: str) -> str:
    """The only block of a language."""
    blocks = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 1, language
    return str(blocks[0])


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return onnxcam.Explainer(str(MODELS / "efficientnet_lite0.onnx"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file that the page names."""
    folder = tmp_path_factory.mktemp("serve")
    cv2.imwrite(str(folder / "cat.jpg"), cv2.imread(str(MODELS / "cat.png")))
    return folder / "cat.jpg"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder, and the address of the web server that sends it: another origin than onnxcam's."""
    folder = tmp_path_factory.mktemp("site")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(scope="module")
def live(explainer: Explainer, site: tuple[Path, str]) -> Iterator[LiveServer]:
    server = LiveServer(create_app(explainer, threads=2, cors=site[1]))
    yield server
    server.stop()


def shell(line: str, folder: Path, server: LiveServer) -> str:
    for program in re.findall(r"\b(curl|jq|base64)\b", line):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    command = line.replace(ADDRESS, server.url.rstrip("/"))
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "TOKEN": TOKEN}
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, timeout=60
    )
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout.decode()


@pytest.mark.slow
def test_lines_of_curl(picture: Path, live: LiveServer, explainer: Explainer) -> None:
    e = explainer.explain(str(picture))
    tabby = explainer.explain(str(picture), target="tabby")
    answers = [shell(line, picture.parent, live) for line in LINES]
    assert len(answers) == 7
    best, _, another, body, as_json, alone, token = answers
    label, confidence = [json.loads(line) for line in best.split("\n") if line]
    assert (label, confidence) == (e.label, pytest.approx(e.probability, rel=1e-5))
    e.save(picture.parent / "out")
    assert (picture.parent / "overlay.png").read_bytes() == (
        picture.parent / "out" / "gradcam_overlay.png"
    ).read_bytes()
    assert json.loads(another)["class_index"] == tabby.target != e.target
    assert [row["class_name"] for row in json.loads(body)] == [label for _, label, _ in e.predictions[:3]]
    assert json.loads(as_json)["centroid"] == pytest.approx(e.statistics["centroid"], rel=1e-5)
    assert json.loads(alone) is False and json.loads(token) == e.label


def test_a_token_as_the_page_sends_it(picture: Path, explainer: Explainer) -> None:
    server = LiveServer(create_app(explainer, threads=1, tokens=TOKEN))
    assert json.loads(shell(LINES[-1], picture.parent, server)) == explainer.explain(str(picture)).label
    refused = shell(LINES[0].partition(" | ")[0], picture.parent, server)
    assert "Authorization: Bearer" in json.loads(refused)["error"]
    server.stop()


@pytest.mark.slow
def test_the_web_page(picture: Path, live: LiveServer, site: tuple[Path, str], explainer: Explainer) -> None:
    folder, address = site
    page_text = block("html").replace(ADDRESS, live.url.rstrip("/"))
    assert live.url.rstrip("/") in page_text
    (folder / "index.html").write_text(f'<link rel="icon" href="data:,">{page_text}', encoding="utf-8")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    e = explainer.explain(str(picture))
    with (
        browsers.chromium() as chromium,
        browsers.visit(chromium, address, expected=("status of 422",), beyond=(live.url,)) as page,
    ):
        page.set_input_files("#picture", str(picture))
        page.get_by_text(f"{e.label}: {100 * e.probability:.1f} %").wait_for()
        sizes = page.evaluate(
            "(async () => { const one = document.querySelector('img'); await one.decode();"
            " return [one.naturalHeight, one.naturalWidth]; })()"
        )
        assert tuple(sizes) == e.picture.shape[:2]
        page.set_input_files("#picture", str(folder / "notes.txt"))
        page.get_by_text("not a picture").wait_for()
        answer = page.evaluate(
            f"""async ([server, data]) => {{ {block("js")}
              const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
              return explainClass(server, new File([bytes], "cat.jpg", {{ type: "image/jpeg" }}), "tabby");
            }}""",
            [live.url.rstrip("/"), base64.b64encode(picture.read_bytes()).decode()],
        )
        tabby = explainer.explain(str(picture), target="tabby")
        assert answer["target"]["class_index"] == tabby.target
        assert answer["gradcam_heatmap"].startswith("data:image/png;base64,")


@pytest.mark.slow
def test_the_app_in_fastapi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Path) -> None:
    pytest.importorskip("fastapi")
    shutil.copy(MODELS / "efficientnet_lite0.onnx", tmp_path / "model.cam.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block("python"), names)
    with TestClient(names["app"]) as client:
        answer = client.post("/explain/predict_with_gradcam", files={"image": picture.read_bytes()}).json()
        assert answer["fired"] == (answer["confidence"] < 0.6)
        assert client.get("/explain/").status_code == 200
