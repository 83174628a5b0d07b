"""The files of onnxruntime-web that a page needs: from a folder, from the cache, or fetched once by npm."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path
from typing import NamedTuple

from onnxcam import files
from onnxcam.errors import RuntimeUnavailable

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# of the package's archive, as the registry states it, and of the files that are used
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
GRAPHICS_SCRIPT, GRAPHICS_BINARY = "ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"
GRAPHICS = {
    GRAPHICS_SCRIPT: "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2",
    GRAPHICS_BINARY: "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
DIGESTS = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    BINARY: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
LICENSE, NOTICES = "LICENSE.txt", "ThirdPartyNotices.txt"
CACHE = "ONNXCAM_CACHE"  # environment variable: the folder of what is fetched
COMMAND = f"npm pack {PACKAGE}@{VERSION} && tar xzf {PACKAGE}-{VERSION}.tgz && onnxcam page … --runtime package"
_LARGEST = 64 << 20  # bytes of one file
_SECONDS = 600


class WebRuntime(NamedTuple):
    """onnxruntime-web.

    Attributes:
        version: as its package says; `unknown` if it does not.
        files: content by name: script, WebAssembly, licence and the notices of third parties where there are some.
        tested: whether script and WebAssembly are those that onnxcam is tested with.
    """

    version: str
    files: Mapping[str, bytes]
    tested: bool


def find(folder: str | os.PathLike[str] | None = None, *, webgpu: bool = False) -> WebRuntime:
    """Read the runtime's files.

    Arguments:
        webgpu: whether those that run a model on the graphics processor are needed too.
        folder: where they are: the package, its `dist`, or a folder with `node_modules`. None: the cache, else npm
            fetches `VERSION`, whose digest is checked, into the cache.

    Raises:
        RuntimeUnavailable: they are not there, or cannot be fetched; the message has the command to run.
    """
    digests = DIGESTS | (GRAPHICS if webgpu else {})
    if folder is not None:
        return _from_folder(Path(folder), digests)
    cache = cache_folder() / f"{PACKAGE}-{VERSION}"
    stored = _stored(cache, digests)
    if stored is None:
        stored = _fetched(digests)
        cache.mkdir(parents=True, exist_ok=True)
        with files.FileSet() as written:
            for name, data in stored.items():
                written.write(cache / name, [data])
    return WebRuntime(VERSION, stored | _licences(), tested=True)


def cache_folder() -> Path:
    """The folder of what is fetched: `$ONNXCAM_CACHE`, or the system's usual one for this user."""
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "onnxcam" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "onnxcam"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxcam"


def _from_folder(folder: Path, digests: Mapping[str, str]) -> WebRuntime:
    places = (folder, folder / "dist", folder / PACKAGE / "dist", folder / "node_modules" / PACKAGE / "dist")
    place = next((place for place in places if all((place / name).is_file() for name in digests)), None)
    if place is None:
        raise RuntimeUnavailable(
            f"{str(folder)!r} does not hold {' and '.join(digests)}, files of {PACKAGE}; get them with `{COMMAND}`"
        )
    content = {name: files.read_bytes(place / name, _LARGEST) for name in digests}
    tested = all(_digest(data) == digests[name] for name, data in content.items())
    version = VERSION if tested else _version(place.parent / "package.json")
    return WebRuntime(version, content | _licences(), tested)


def _version(file: Path) -> str:
    try:
        package = json.loads(files.read_text(file, 1 << 20))
        return str(package["version"])[:40]
    except (files.FileError, OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _stored(cache: Path, digests: Mapping[str, str]) -> dict[str, bytes] | None:
    """The files in the cache; None where one is missing, or is not what it was."""
    try:
        content = {name: files.read_bytes(cache / name, _LARGEST) for name in digests}
    except (files.FileError, OSError):
        return None
    return content if all(_digest(data) == digests[name] for name, data in content.items()) else None


def _fetched(digests: Mapping[str, str]) -> dict[str, bytes]:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeUnavailable(
            f"the page needs {PACKAGE} {VERSION}, and there is no npm to fetch it with; where there is one, run "
            f"`{COMMAND}`"
        )
    with tempfile.TemporaryDirectory() as place:
        # a folder without a package.json of its own, so that no project is read or changed
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent"]
        try:
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeUnavailable(f"npm could not fetch {PACKAGE} {VERSION} ({error}); run `{COMMAND}`") from error
        archive = next(iter(Path(place).glob("*.tgz")), None)
        if done.returncode or archive is None:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            reason = lines[0].strip()[:200] if lines else f"exit status {done.returncode}"
            raise RuntimeUnavailable(
                f"npm could not fetch {PACKAGE} {VERSION} ({reason}); with a network, or where it is allowed, run "
                f"`{COMMAND}`"
            )
        return _unpacked(archive, digests)


def _unpacked(archive: Path, digests: Mapping[str, str]) -> dict[str, bytes]:
    """The files that are used of the package's archive, if it is the one that is expected."""
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha512").digest()
    content = {}
    if f"sha512-{base64.b64encode(digest).decode()}" == INTEGRITY:
        with tarfile.open(archive) as package:
            for name in digests:
                member = package.extractfile(f"package/dist/{name}")
                content[name] = b"" if member is None else member.read(_LARGEST)
    if {name: _digest(data) for name, data in content.items()} != digests:
        raise RuntimeUnavailable(
            f"what npm delivered as {PACKAGE} {VERSION} is not what onnxcam is tested with (another digest); is "
            "another registry configured? `onnxcam page … --runtime DIR` takes the files of a folder that you trust"
        )
    return content


def _licences() -> dict[str, bytes]:
    """The licence of ONNX Runtime, which its package for the web lacks, and the notices of that for Python."""
    text = (resources("onnxcam.html") / "viewer" / "local" / "runtime_license.txt").read_bytes()
    python = importlib.util.find_spec("onnxruntime")
    notices = Path(python.origin).parent / NOTICES if python is not None and python.origin else None
    if notices is None or not notices.is_file():
        return {LICENSE: text}
    return {LICENSE: text, NOTICES: files.read_bytes(notices, _LARGEST)}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
