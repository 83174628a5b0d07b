"""Finds the states in which an installation looks whole and is not, and the command that mends each."""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from onnxcam.errors import DependencyError, listing

# nothing else of onnxcam is imported up here: a doctor that needs NumPy cannot say that NumPy is missing

PYTHON_FLOOR = (3, 11)
# as in pyproject.toml: from security advisories for onnx, keras, torch and opencv, from what is tested for the rest
FLOORS = {
    "numpy": "1.26",
    "onnx": "1.21",
    "onnxruntime": "1.20",
    "opencv-python": "4.12",
    "isal": "1.7",
    "torch": "2.10",
    "keras": "3.13.2",
    "tensorflow": "2.20",
}
OPENCV_FLAVOURS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# listed by every build, and chosen by nobody unasked: a cloud client, and engines that take minutes to start
_NOT_TRIED = ("AzureExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: what it is.
        ok: onnxcam works with it as it is.
        detail: what was found.
        remedy: the shell command that mends it; with `ok`, advice that may be left.
    """

    name: str
    ok: bool
    detail: str
    remedy: str | None = None


def diagnose() -> list[Finding]:
    """Everything looked at, in the order to mend it in. Never raises: a check that fails is a finding."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings += check()
        except Exception as error:
            name = check.__name__.removeprefix("_")
            findings.append(Finding(name, False, f"looking at it failed: {type(error).__name__}: {error}"))
    return findings


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing has to be mended."""
    return all(finding.ok for finding in findings)


def report(findings: list[Finding]) -> dict[str, Any]:
    """The findings as JSON holds them."""
    return {"healthy": healthy(findings), "python": sys.executable, "findings": [asdict(f) for f in findings]}


def _python() -> list[Finding]:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] >= PYTHON_FLOOR:
        return [Finding("python", True, found)]
    floor = ".".join(map(str, PYTHON_FLOOR))
    return [Finding("python", False, f"{found}; onnxcam needs {floor} or newer", f"python{floor} -m venv .venv")]


def _numpy() -> list[Finding]:
    return [_required("numpy", "numpy")]


def _onnx() -> list[Finding]:
    return [_required("onnx", "onnx")]


def _required(module: str, distribution: str) -> Finding:
    floor = FLOORS[distribution]
    install = f'pip install "{distribution}>={floor}"'
    try:
        found = str(importlib.import_module(module).__version__)
    except ModuleNotFoundError as error:
        if error.name != module:
            return Finding(distribution, False, f"needs {error.name}, which is missing", f"pip install {error.name}")
        return Finding(distribution, False, "not installed", install)
    except Exception as error:
        again = f"pip uninstall -y {distribution} && {install}"
        return Finding(distribution, False, f"installed but broken ({_brief(error)})", again)
    if _older(found, floor):
        return Finding(distribution, False, f"{found} is older than {floor}", install)
    return Finding(distribution, True, found)


def _onnxruntime() -> list[Finding]:
    flavours = _runtime_flavours()
    said = " and ".join(f"{name} {version}" for name, version in flavours.items())
    remove = f"pip uninstall -y {' '.join(flavours)} && " if flavours else ""
    # of several, the one with more in it was wanted: nobody adds a GPU build by accident
    keep = next((name for name in flavours if name != "onnxruntime"), "onnxruntime")
    reinstall = f'{remove}pip install "{keep}>={FLOORS["onnxruntime"]}"'
    if len(flavours) > 1:
        rest = "they share one folder, so one hides the other and removing one breaks both; keep one"
        return [Finding("onnxruntime", False, f"{said} are installed together: {rest}", reinstall)]
    try:
        module = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if not flavours and error.name == "onnxruntime":
            return [Finding("onnxruntime", False, "not installed", _CPU_OR_GPU)]
        return [Finding("onnxruntime", False, f"{said or 'its folder'} is half removed ({error})", reinstall)]
    except Exception as error:
        return [Finding("onnxruntime", False, f"{said or 'it'} cannot be loaded ({_brief(error)})", reinstall)]
    if not hasattr(module, "InferenceSession"):
        left = f"{said} is recorded as installed, but" if said else "no distribution is recorded, and"
        return [Finding("onnxruntime", False, f"{left} most of its files are gone", reinstall)]
    version = str(module.__version__)
    if _older(version, FLOORS["onnxruntime"]):
        return [Finding("onnxruntime", False, f"{said or version} is older than {FLOORS['onnxruntime']}", reinstall)]
    return [Finding("onnxruntime", True, said or f"{version}, not installed by pip")]


_CPU_OR_GPU = 'pip install "onnxcam[cpu]"  # or, for NVIDIA GPUs: pip install "onnxcam[gpu]"'


def _runtime_flavours() -> dict[str, str]:
    """Distributions that put files into the folder `onnxruntime`, with their versions."""
    found = {}
    for distribution in metadata.distributions():
        name = _canonical(distribution.metadata["Name"] or "")
        if name.startswith(("onnxruntime", "ort-nightly")):
            record = distribution.read_text("RECORD")
            if record is None or "onnxruntime/capi/" in record:
                found[name] = distribution.version
    return dict(sorted(found.items()))


def _providers() -> list[Finding]:
    try:
        ort: Any = importlib.import_module("onnxruntime")
        listed = list(ort.get_available_providers())
    except Exception:
        return []  # told under "onnxruntime"
    try:
        from onnx import TensorProto, helper
    except Exception:
        return [Finding("providers", True, f"{listing(listed)} listed; not tried, for onnx is missing")]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    return [_provider(ort, model, name) for name in listed if name not in _NOT_TRIED]


def _provider(ort: Any, model: bytes, name: str) -> Finding:
    title = f"provider {name.removesuffix('ExecutionProvider')}"
    options = ort.SessionOptions()
    with _captured() as said:
        try:
            if name == CUDA and hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
            providers = [name] if name == CPU else [name, CPU]
            used = list(ort.InferenceSession(model, sess_options=options, providers=providers).get_providers())
            reason = ""
        except Exception as error:
            used, reason = [], _brief(error)
    if name in used:
        return Finding(title, True, "a session runs on it")
    missing = re.search(r"(lib[\w.+-]+\.so[\w.]*|\w+\.dll): cannot open|(\w+\.dll)\" which is missing", said())
    if missing:
        reason = f"{missing[1] or missing[2]} cannot be found"
    detail = "listed by the runtime, but a session "
    detail += f"falls back to {listing(used)} without a word" if used else "cannot be made"
    return Finding(title, False, f"{detail}{f' ({reason})' if reason else ''}", _provider_remedy(name, bool(missing)))


def _provider_remedy(name: str, library_missing: bool) -> str:
    if name == CPU:
        return f'pip install --force-reinstall "onnxruntime>={FLOORS["onnxruntime"]}"'
    if name != CUDA:
        return "onnxcam explain --provider cpu …  # or install that provider's drivers and libraries"
    if library_missing:
        return (
            'pip install "onnxruntime-gpu[cuda,cudnn]"  # onnxcam loads them by onnxruntime.preload_dlls(); without a '
            'GPU: pip uninstall -y onnxruntime-gpu && pip install "onnxcam[cpu]"'
        )
    return "nvidia-smi  # says whether the driver sees the GPU and is new enough for the CUDA libraries"


def _opencv() -> list[Finding]:
    installed = {name: version for name in OPENCV_FLAVOURS if (version := _version(name)) is not None}
    said = " and ".join(f"{name} {version}" for name, version in installed.items())
    remove = f"pip uninstall -y {' '.join(installed)} && " if installed else ""
    headless = f'{remove}pip install "opencv-python-headless>={FLOORS["opencv-python"]}"'
    if len(installed) > 1:
        return [Finding("opencv", False, f"{said} share one folder: removing one breaks the others", headless)]
    try:
        from onnxcam.image.opencv import import_cv2

        cv2 = import_cv2()
    except (DependencyError, ImportError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError) and cause.name == "numpy":
            return [Finding("opencv", False, "not tried, for numpy is missing")]
        if isinstance(cause, ModuleNotFoundError) and not installed:
            return [Finding("opencv", False, "not installed", headless)]
        shared = re.search(r"(lib[\w.+-]+\.so[\w.]*)", str(cause))
        if shared:
            mend = f"apt-get install --no-install-recommends libgl1 libglib2.0-0  # or: {headless}"
            return [Finding("opencv", False, f"{said or 'cv2'} needs {shared[1]}, which is missing", mend)]
        return [Finding("opencv", False, f"{said or 'cv2'} cannot be loaded ({_brief(cause)})", headless)]
    if not hasattr(cv2, "imdecode"):
        return [Finding("opencv", False, f"{said or 'cv2'} is half removed: its files are gone", headless)]
    version = str(cv2.__version__)
    if _older(version, FLOORS["opencv-python"]):
        name = next(iter(installed), "opencv-python-headless")
        old = f"{said or version} is older than {FLOORS['opencv-python']}"
        return [Finding("opencv", False, old, f'pip install "{name}>={FLOORS["opencv-python"]}"')]
    return [Finding("opencv", True, said or version)]


def _frameworks() -> list[Finding]:
    findings = []
    for name in ("torch", "keras", "tensorflow"):
        found = _version(name)
        if found is None:
            findings.append(Finding(name, True, "not installed; only `onnxcam export` of its models needs it"))
        elif _older(found, FLOORS[name]):
            old = f"{found} is older than {FLOORS[name]}: `onnxcam export` of its models is not supported"
            findings.append(Finding(name, True, old, f'pip install "{name}>={FLOORS[name]}"'))
        else:
            findings.append(Finding(name, True, found))
    return findings


def _fast() -> list[Finding]:
    """What is not needed, and makes a folder faster."""
    install = f'pip install "isal>={FLOORS["isal"]}"'
    if _version("isal") is None:
        return [Finding("isal", True, "not installed; with it pictures are written faster", install)]
    found = _required("isal", "isal")
    return [replace(found, ok=True)]


def _bundled_models() -> list[Finding]:
    name, again = "bundled models", "pip install --force-reinstall --no-deps onnxcam"
    try:
        folder = resources.files("onnxcam.models")
    except ModuleNotFoundError:
        return [Finding(name, False, "their folder is missing", again)]
    if altered := _altered("onnxcam/models/"):
        return [Finding(name, False, f"not as they were installed: {listing(altered)}", again)]
    models = sorted((file for file in folder.iterdir() if file.name.endswith(".onnx")), key=lambda file: file.name)
    if not models:
        return [Finding(name, False, "there are none", again)]
    try:
        ort: Any = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
    except Exception:
        return [Finding(name, True, f"{listing(m.name for m in models)}; not tried, for onnxruntime is broken")]
    options.log_severity_level = 3
    for model in models:
        try:
            ort.InferenceSession(model.read_bytes(), sess_options=options, providers=[CPU])
        except Exception as error:
            return [Finding(name, False, f"{model.name} cannot be loaded ({_brief(error)})", again)]
    return [Finding(name, True, ", ".join(model.name for model in models))]


def _altered(folder: str) -> list[str]:
    """Files of ours below `folder` that are gone or differ from the wheel's record; an editable one has no record."""
    try:
        files = metadata.files("onnxcam") or []
    except metadata.PackageNotFoundError:
        return []
    altered = []
    for file in files:
        if file.as_posix().startswith(folder) and file.hash is not None and file.hash.mode == "sha256":
            path = str(file.locate())
            try:
                held = sha256(Path(path).read_bytes()).digest()
            except OSError:
                held = b""
            if base64.urlsafe_b64encode(held).rstrip(b"=").decode() != file.hash.value:
                altered.append(file.name)
    return altered


def _temporary_folder() -> list[Finding]:
    mend = 'export TMPDIR="$HOME/tmp" && mkdir -p "$TMPDIR"'
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * (1 << 16))
            file.flush()
    except OSError as error:
        return [Finding("temporary folder", False, f"nothing can be written there ({_brief(error)})", mend)]
    return [Finding("temporary folder", True, folder)]


_CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _numpy,
    _onnx,
    _onnxruntime,
    _providers,
    _opencv,
    _fast,
    _frameworks,
    _bundled_models,
    _temporary_folder,
)


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """Holds back what native code writes to the process's output; the runtime gives its reasons there only."""
    text = ""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with tempfile.TemporaryFile() as file:
        saved = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in saved:
                os.dup2(file.fileno(), number)
            with contextlib.redirect_stdout(io.StringIO()):
                yield lambda: text
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            text = file.read().decode("utf-8", "replace")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _older(found: str, floor: str) -> bool:
    numbers = [[int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3]] for text in (found, floor)]
    a, b = (n + [0] * (3 - len(n)) for n in numbers)
    return a < b


def _brief(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
