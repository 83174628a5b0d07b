"""`onnxcam page`: the files it writes, the runtime it finds or fetches, and the server of its files."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxcam
from onnxcam import image
from onnxcam.cli import main
from onnxcam.errors import OnnxcamError, RuntimeUnavailable
from onnxcam.graph.load import save
from onnxcam.network import manifest as manifests
from onnxcam.server import file_server, static_page, web_runtime
from tests.page.test_preprocess import rough
from tests.support import models
from tests.support.javascript import VIEWER
from tests.support.runtime import run

SCRIPT, BINARY = b"export const InferenceSession = {};", b"\0asm"


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder that looks like the package of another version."""
    folder = tmp_path / "node_modules" / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{"version": "9.8.7"}')
    (folder / "dist" / web_runtime.SCRIPT).write_bytes(SCRIPT)
    (folder / "dist" / web_runtime.BINARY).write_bytes(BINARY)
    return tmp_path / "node_modules"


def page(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["page", *map(str, arguments)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "birds.cam.onnx"
    labels = [f"bird {place}" for place in range(5)]
    save(onnxcam.augment(models.tiny_cnn(), labels=labels, preprocess="0..1", probe=False), path)
    return path


def test_the_folder_has_all_that_the_page_needs(tmp_path: Path, model: Path, runtime: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    image.write_png(photos / "Señor Löwe.png", rough(30, 40))
    (photos / "cut off.png").write_bytes((photos / "Señor Löwe.png").read_bytes()[:60])
    output = tmp_path / "out" / "page"
    result = page(model, "-o", output, "--runtime", runtime, "--pictures", photos, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    written = {str(path.relative_to(output)).replace(os.sep, "/") for path in output.rglob("*") if path.is_file()}
    assert set(record["files"]) == written and record["runtime"] == {
        "name": "onnxruntime-web", "version": "9.8.7", "tested": False,
    }  # fmt: skip
    assert "9.8.7 was taken as it is" in result.stderr and "cut off" in result.stderr
    program = {str(path.relative_to(VIEWER)).replace(os.sep, "/") for path in VIEWER.rglob("*.*") if path.is_file()}
    program -= {"http_backend.js", "local_backend.js", "local/runtime_license.txt"}
    composed = {"local/service_worker.js"}
    assert program - composed <= written and not composed & written
    assert (output / "backend.js").read_bytes() == (VIEWER / "local_backend.js").read_bytes()
    assert b"Microsoft" in (output / "runtime" / "LICENSE.txt").read_bytes()
    contents = json.loads((output / "contents.json").read_text())
    (entry,), (sample,) = contents["models"], contents["pictures"]
    assert contents["webgpu"] is False
    assert sample["name"] == "Señor Löwe" and sample["url"].isascii()
    assert (output / sample["url"]).read_bytes() == (photos / "Señor Löwe.png").read_bytes()
    data = (output / entry["url"]).read_bytes()
    assert (entry["name"], entry["bytes"]) == ("birds", len(data))
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert entry["manifest"] == manifests.read(onnx.load_from_string(data))
    # the worker that works offline keeps every file but itself
    worker = (output / "service_worker.js").read_text().partition("\n")
    page_files = json.loads(worker[0].removeprefix("const PAGE = ").removesuffix(";"))
    assert set(page_files["files"]) == written - {"service_worker.js"}
    assert worker[2] == (VIEWER / "local" / "service_worker.js").read_text()


def test_nothing_of_the_page_asks_for_anything_elsewhere() -> None:
    program = dict(static_page._program())
    assert {"index.html", "page.js", "backend.js", "local/worker.js"} <= program.keys()
    for name, data in program.items():
        text = data.decode().replace("http://www.w3.org/2000/svg", "")
        lines = [
            line for line in text.splitlines() if "http" in line and not line.lstrip().startswith(("//", "*", "/*"))
        ]
        assert not [line for line in lines if "://" in line], name


def test_the_page_says_why_it_does_not_start_from_a_file() -> None:
    index = dict(static_page._program())["index.html"].decode()
    assert index.count("browsers run no modules from files") == 1
    assert 'id="status"' in index.partition("This page has not started")[0][-60:]


def test_the_version_changes_with_any_file(tmp_path: Path, model: Path, runtime: Path) -> None:
    versions = set()
    for place, name in enumerate(("a", "b", "a")):
        assert page(model, "-o", tmp_path / str(place), "--runtime", runtime, "--name", name).exit_code == 0
        versions.add((tmp_path / str(place) / "service_worker.js").read_text().partition("\n")[0])
    assert len(versions) == 2


@pytest.mark.parametrize("form", ["plain", "optional", "required", "constant", "gated"])
def test_any_class_is_an_input_whatever_the_file_was(form: str) -> None:
    tiny = models.tiny_cnn()
    options: dict[str, Any] = {"gate": "confidence < 0.9"} if form == "gated" else {}
    target = {"constant": 2}.get(form, form)
    source = (
        tiny if form == "plain" else onnxcam.augment(tiny, target="optional" if form == "gated" else target, **options)
    )
    data, manifest = static_page.browser_model(source, preprocess="0..1", labels=list("abcde"))
    assert manifest["target"]["mode"] == "required" and manifest["labels"] == list("abcde")
    assert not manifest.get("gate") and manifest["input"]["preprocess"]["scale"] == pytest.approx(1 / 255)
    onnx.checker.check_model(onnx.load_from_string(data))
    batch = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    output = manifest["layers"][-1]["heatmaps"]["gradcam"]
    want = onnxcam.Explainer(tiny)
    for index in (0, 3, -1):
        actual = run(data, {"input": batch, "target": np.array([index])}, outputs=[output])
        raw = want.attribute(batch, index, normalize="none", size="layer")
        np.testing.assert_allclose(actual[output], raw, rtol=0, atol=1e-6 * max(float(raw.max()), 1e-6))


def test_layers_and_methods_are_added(tmp_path: Path, model: Path, runtime: Path) -> None:
    options = ("--runtime", runtime, "--layer", "relu1", "--layer", "relu2", "--method", "hirescam")
    result = page(model, "-o", tmp_path / "page", *options)
    assert result.exit_code == 0, result.output
    (entry,) = json.loads((tmp_path / "page" / "contents.json").read_text())["models"]
    assert {layer["name"] for layer in entry["manifest"]["layers"]} == {"relu1", "relu2"}
    assert all("hirescam" in layer["heatmaps"] for layer in entry["manifest"]["layers"])


def test_errors_have_their_exit_codes(tmp_path: Path, model: Path, runtime: Path) -> None:
    plain = tmp_path / "plain.onnx"
    onnx.save(models.tiny_cnn(), plain)
    output = tmp_path / "page"
    cases: list[tuple[int, str, tuple[Any, ...]]] = [
        (2, "does not say how pictures become tensors", (plain, "-o", output, "--runtime", runtime)),
        (2, "nolayer", (model, "-o", output, "--runtime", runtime, "--layer", "nolayer")),
        (2, "nomethod", (model, "-o", output, "--runtime", runtime, "--method", "nomethod")),
        (3, "missing.onnx", (tmp_path / "missing.onnx", "-o", output, "--runtime", runtime)),
        (4, "npm pack onnxruntime-web@", (model, "-o", output, "--runtime", model.parent / "nowhere")),
        (4, web_runtime.GRAPHICS_SCRIPT, (model, "-o", output, "--runtime", runtime, "--webgpu")),
        (2, "cannot be stored in an ONNX file", (model, "-o", output, "--runtime", runtime, "--method", "scorecam")),
        (1, "cannot be made", (model, "-o", model / "page", "--runtime", runtime)),
    ]
    for code, message, arguments in cases:
        result = page(*arguments)
        assert result.exit_code == code and message in result.stderr, (message, result.exit_code, result.stderr)
        assert not output.exists()


# ---- the runtime: cache and npm


def archive(content: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as package:
        for name, data in content.items():
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(data)
            package.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An npm that writes down how it is called and delivers a package, whose digests are those expected."""
    data = archive({web_runtime.SCRIPT: SCRIPT, web_runtime.BINARY: BINARY})
    place = tmp_path / "bin"
    place.mkdir()
    (place / "package.tgz").write_bytes(data)
    program = place / "npm"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> "{place}/calls"\n[ -e "{place}/offline" ] && echo "npm error network" >&2 '
        f'&& exit 1\ncp "{place}/package.tgz" onnxruntime-web.tgz\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv(web_runtime.CACHE, str(tmp_path / "cache"))
    integrity = f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"
    monkeypatch.setattr(web_runtime, "INTEGRITY", integrity)
    digests = {web_runtime.SCRIPT: SCRIPT, web_runtime.BINARY: BINARY}
    monkeypatch.setattr(
        web_runtime, "DIGESTS", {name: hashlib.sha256(one).hexdigest() for name, one in digests.items()}
    )
    return place


def calls(npm: Path) -> list[str]:
    return (npm / "calls").read_text().splitlines() if (npm / "calls").exists() else []


def test_npm_is_asked_once_and_its_files_are_kept(npm: Path, tmp_path: Path) -> None:
    first = web_runtime.find()
    assert first.files[web_runtime.SCRIPT] == SCRIPT and first.tested and web_runtime.LICENSE in first.files
    assert calls(npm) == [f"pack onnxruntime-web@{web_runtime.VERSION} --ignore-scripts --silent"]
    (npm / "offline").touch()
    assert web_runtime.find().files == first.files
    assert len(calls(npm)) == 1
    # a file of the cache that is damaged is not used
    file = next((tmp_path / "cache").rglob(web_runtime.BINARY))
    file.write_bytes(b"something else")
    with pytest.raises(RuntimeUnavailable, match=r"npm error network.*npm pack"):
        web_runtime.find()
    (npm / "offline").unlink()
    assert web_runtime.find().files == first.files and file.read_bytes() == BINARY


def test_another_package_than_the_pinned_one_is_refused(npm: Path, tmp_path: Path) -> None:
    (npm / "package.tgz").write_bytes(archive({web_runtime.SCRIPT: b"evil()", web_runtime.BINARY: BINARY}))
    with pytest.raises(RuntimeUnavailable, match="another digest"):
        web_runtime.find()
    assert not list((tmp_path / "cache").rglob("*.mjs"))


def test_without_npm_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(web_runtime.CACHE, str(tmp_path / "cache"))
    result = page(model, "-o", tmp_path / "page")
    assert result.exit_code == 4 and "there is no npm" in result.stderr and web_runtime.COMMAND in result.stderr
    assert not (tmp_path / "page").exists()


def test_the_tested_version_is_that_of_the_other_tests() -> None:
    from tests.support import runtimes

    assert runtimes.VERSIONS["onnxruntime-web"] == web_runtime.VERSION


@pytest.mark.slow
def test_the_pinned_digests_are_those_of_the_package(web: Path) -> None:
    for webgpu in (False, True):
        runtime = web_runtime.find(web, webgpu=webgpu)
        assert runtime.tested and runtime.version == web_runtime.VERSION
        assert (web_runtime.GRAPHICS_BINARY in runtime.files) == webgpu


# ---- the server of the files


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, int]]:
    folder = tmp_path / "site"
    (folder / "local").mkdir(parents=True)
    for name in ("index.html", "page.js", "local/a b.mjs", "x.wasm", "secret.txt"):
        (folder / name).write_text(name)
    (tmp_path / "outside.txt").write_text("outside")
    server = file_server.listen(folder, ["index.html", "page.js", "local/a b.mjs", "x.wasm"], 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield "127.0.0.1", server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def answer(address: tuple[str, int], path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_files_are_served_isolated_with_their_types(address: tuple[str, int]) -> None:
    types = {
        "/": "text/html",
        "/page.js?v=1": "text/javascript",
        "/local/a%20b.mjs": "text/javascript",
        "/x.wasm": "application/wasm",
    }
    for path, kind in types.items():
        status, headers, body = answer(address, path)
        assert (status, headers.get_content_type()) == (200, kind) and body
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"


def test_nothing_else_is_served(address: tuple[str, int]) -> None:
    for path in (
        "/secret.txt",
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/local/",
        "/local",
        "//outside.txt",
        "/nothing",
    ):
        assert answer(address, path)[0] == 404, path
    assert answer(address, "/", Host="evil.example")[0] == 421
    assert answer(address, "/", "POST")[0] == 501
    assert answer(address, "/", "HEAD")[::2] == (200, b"")


def test_a_port_in_use_is_said(address: tuple[str, int], tmp_path: Path) -> None:
    with pytest.raises(OnnxcamError, match="--port"):
        file_server.listen(tmp_path, [], address[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_answers_until_it_is_interrupted(model: Path, runtime: Path, tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "onnxcam", "page", model, "-o", tmp_path / "page", "--runtime", runtime]
    with subprocess.Popen(
        [*map(str, command), "--serve", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            port = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            if port:
                break
        else:
            raise AssertionError("the address is not said")
        status, headers, body = answer(("127.0.0.1", int(port[1])), "/")
        assert status == 200 and headers["Cross-Origin-Embedder-Policy"] == "require-corp" and b"<title>" in body
        # a visitor who leaves in the middle of a file is none of the terminal's business
        with socket.create_connection(("127.0.0.1", int(port[1]))) as leaving:
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            leaving.sendall(b"GET /models/birds.cam.onnx HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        process.send_signal(number)
        try:
            rest = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 0 and rest.strip() == "Stopped."
