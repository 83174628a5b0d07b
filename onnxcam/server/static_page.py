"""Write the page that explains pictures in a browser, without a server: a folder of static files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files as resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from onnxcam import __version__, files, image
from onnxcam.errors import LabelsError, ModelError, OutputError, PictureError, label_count
from onnxcam.explain.preparation import Preparation
from onnxcam.network import manifest as manifests
from onnxcam.network.opening import open_model
from onnxcam.server.web_runtime import GRAPHICS_SCRIPT, WebRuntime
from onnxcam.targets.readout import Readout

MOST_PICTURES = 100
_READABLE = ("PNG", "JPEG", "WebP", "GIF", "BMP")  # by browsers
_BACKENDS = ("backend.js", "http_backend.js", "local_backend.js")
_LARGEST = 2**31 - 1  # bytes of a model
# what the page says until its program runs, which it never does from a file
_STATUS = '<p id="status" role="status" aria-live="polite">'
_UNSTARTED = (
    "This page has not started. Opened as a file it cannot: browsers run no modules from files. Serve its folder, for "
    "example by <code>python -m http.server</code>, and open it there."
)


def browser_model(
    source: Any,
    *,
    layers: Sequence[str] | None = None,
    methods: Sequence[str] = ("gradcam",),
    labels: Sequence[str] | None = None,
    preprocess: Any = None,
    input_size: Sequence[int] | None = None,
    scores: str | None = None,
    kind: str | None = None,
) -> tuple[bytes, dict[str, Any]]:
    """An explainable file as onnxruntime-web needs it, any class an ordinary input; and its manifest.

    Arguments: as of `onnxcam.Explainer`.

    Raises:
        ModelError: not a usable classifier, or larger than 2 GiB.
        PreprocessError: nothing says how pictures become tensors.
        LayerError, MethodError, LabelsError: as their names say.
    """
    from onnxcam.graph.large_model import LargeModel
    from onnxcam.graph.load import load

    model = open_model(
        source, layers=layers, methods=methods, require_methods=True, classes=None, preprocess=preprocess,
        input_size=input_size, scores=scores, kind=kind,
    )  # fmt: skip
    manifest = json.loads(json.dumps(model.manifest))
    Readout.from_manifest(manifest["scores"]).require_classes("a page")
    entry = manifest["input"]
    preparation = Preparation.of(entry, preprocess, None, None)
    if preparation.preprocess is None:
        raise preparation.unknown()
    entry["preprocess"] = preparation.preprocess.to_dict()
    if labels is not None:
        if len(labels) != manifest["scores"]["classes"]:
            raise LabelsError(label_count(len(labels), manifest["scores"]["classes"]))
        manifest["labels"] = list(labels)
    if isinstance(model.source, LargeModel):
        raise ModelError("the model is larger than 2 GiB, more than a browser can open; quantize it first")
    proto = load(model.source)
    name = manifest["target"]["name"]
    if manifest["target"]["mode"] == "optional":
        defaults = [place for place, value in enumerate(proto.graph.initializer) if value.name == name]
        for place in reversed(defaults):
            del proto.graph.initializer[place]
        manifest["target"]["mode"] = "required"
    manifests.write(proto, manifest)
    data = proto.SerializeToString()
    if len(data) > _LARGEST:
        raise ModelError("the model is larger than 2 GiB, more than a browser can open; quantize it first")
    return data, manifest


def write_page(
    directory: str | os.PathLike[str],
    model: tuple[bytes, dict[str, Any]],
    name: str,
    runtime: WebRuntime,
    pictures: Sequence[str | os.PathLike[str]] = (),
    *,
    note: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Write the page.

    Arguments:
        directory: where to; it is made if need be, and files of the same names are replaced.
        model: what `browser_model` returns.
        name: of the model, as the page shows it.
        runtime: of `onnxcam.server.web_runtime`.
        pictures: examples, copied as they are.
        note: called with a sentence for each picture that is left out.

    Returns:
        the names of the files, relative, with slashes. All are written or, after an error, none of them.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    folder = Path(directory)
    content = dict(_program())
    content |= {f"runtime/{file}": data for file, data in runtime.files.items()}
    data, manifest = model
    stem = _plain(name) or "model"
    place = f"models/{stem}.cam.onnx"
    content[place] = data
    samples: list[dict[str, str]] = []
    for title, encoded, ending in _samples(pictures, note):
        url = f"pictures/{len(samples) + 1:02}_{_plain(title)}.{ending}"
        content[url] = encoded
        samples.append({"name": title, "url": url})
    entry = {
        "name": name,
        "url": place,
        "bytes": len(data),
        "sha256": _digest(data),
        "manifest": manifest,
        "targets": "any",
    }
    contents = {
        "format": 1,
        "version": __version__,
        "runtime": runtime.version,
        "webgpu": GRAPHICS_SCRIPT in runtime.files,
        "models": [entry],
        "pictures": samples,
    }
    content["contents.json"] = json.dumps(contents, ensure_ascii=True, separators=(",", ":")).encode()
    content["service_worker.js"] = _service_worker(content)
    for parent in sorted({(folder / file).parent for file in content}):
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the folder {str(parent)!r} cannot be made ({error.strerror}); name another one"
            ) from error
    with files.FileSet() as written:
        for file, piece in content.items():
            written.write(folder / file, [piece])
    return sorted(content)


def _program() -> Iterator[tuple[str, bytes]]:
    """The page's own files, with the backend that needs no server."""

    def walk(folder: Traversable, before: str) -> Iterator[tuple[str, bytes]]:
        for item in sorted(folder.iterdir(), key=lambda item: item.name):
            if item.is_dir():
                yield from walk(item, f"{before}{item.name}/")
            elif item.name.endswith((".html", ".css", ".js", ".svg")):
                yield f"{before}{item.name}", item.read_bytes()

    for name, data in walk(resources("onnxcam.html") / "viewer", ""):
        if name == "local_backend.js":
            yield "backend.js", data
        elif name == "index.html":
            yield name, data.replace(_STATUS.encode(), f"{_STATUS}{_UNSTARTED}".encode())
        elif name not in (*_BACKENDS, "local/service_worker.js"):
            yield name, data


def _service_worker(content: dict[str, bytes]) -> bytes:
    """The worker that keeps the page's files: what it keeps, and a version that changes with any of them."""
    program = (resources("onnxcam.html") / "viewer" / "local" / "service_worker.js").read_bytes()
    all_of_it = hashlib.sha256(program)
    for name, data in sorted(content.items()):
        all_of_it.update(f"{name} {_digest(data)}\n".encode())
    page = {"version": all_of_it.hexdigest()[:16], "files": sorted(content)}
    return f"const PAGE = {json.dumps(page)};\n".encode() + program


def _samples(
    pictures: Sequence[str | os.PathLike[str]], note: Callable[[str], None]
) -> Iterator[tuple[str, bytes, str]]:
    """Name, bytes and ending of each picture that a browser reads."""
    if len(pictures) > MOST_PICTURES:
        note(f"of {len(pictures):,} pictures the first {MOST_PICTURES} are taken as examples")
    for path in list(map(Path, pictures))[:MOST_PICTURES]:
        header = image.peek(path)
        if header is None or header.format not in _READABLE:
            note(f"{str(path)!r} is left out: it is no picture that browsers read ({', '.join(_READABLE)})")
            continue
        if header.pixels > image.MAX_PIXELS:
            note(f"{str(path)!r} is left out: it has {header.pixels:,} pixels, more than {image.MAX_PIXELS:,}")
            continue
        try:
            image.load(path)
            encoded = files.read_bytes(path, _LARGEST)
        except (PictureError, files.FileError, OSError) as error:
            note(f"{error}; it is left out")
            continue
        yield path.stem, encoded, {"JPEG": "jpg"}.get(header.format, header.format.lower())


def _plain(name: str) -> str:
    """A name of letters, digits, dots, dashes and underscores, as every host of files takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
