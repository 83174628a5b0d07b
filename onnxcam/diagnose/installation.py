"""Find what is broken in an installation, and the command that repairs it."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from onnxcam.diagnose.report import Finding, Report
from onnxcam.errors import DependencyError, listing

# nothing that needs NumPy is imported up here: this has to work where NumPy is missing

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
# listed by every build but used by nobody by default: a cloud client, and engines that take minutes to start
_SKIPPED = ("AzureExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


@dataclass(frozen=True)
class Installation(Report):
    """The findings of `diagnose`, in the order in which to repair what is broken."""

    def lines(self) -> list[str]:
        """Return one line per finding, its command below it, and a summary."""
        width = max((len(finding.name) for finding in self.findings), default=0)
        lines = []
        for finding in self.findings:
            mark = "broken" if not finding.ok else "advice" if finding.remedy else "ok    "
            lines.append(f"{mark}  {finding.name:<{width}}  {finding.detail}")
            if finding.remedy:
                lines.append(f"{'':<{width + 8}}  $ {finding.remedy}")
        broken = f"{len(self.failed)} of {len(self.findings)} broken: run the commands after $."
        return [*lines, "Nothing is broken." if self.passed else broken]

    def to_dict(self) -> dict[str, Any]:
        """Return the report ready for JSON."""
        findings = [{"name": f.name, "ok": f.ok, "detail": f.detail, "remedy": f.remedy} for f in self.findings]
        return {"healthy": self.passed, "python": sys.executable, "findings": findings}


def diagnose() -> Installation:
    """Check everything. Never raises: a check that raises is a finding."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings += check()
        except Exception as error:
            name = check.__name__.removeprefix("_")
            findings.append(_broken(name, f"this check failed: {type(error).__name__}: {error}"))
    return Installation(findings=findings)


def _broken(name: str, detail: str, remedy: str | None = None) -> Finding:
    return Finding(name, "failed", detail, remedy=remedy)


def _fine(name: str, detail: str, advice: str | None = None) -> Finding:
    return Finding(name, "note" if advice else "ok", detail, remedy=advice)


def _python() -> list[Finding]:
    version = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] >= PYTHON_FLOOR:
        return [_fine("python", version)]
    floor = ".".join(map(str, PYTHON_FLOOR))
    return [_broken("python", f"{version}; onnxcam needs {floor} or newer", f"python{floor} -m venv .venv")]


def _numpy() -> list[Finding]:
    return [_required("numpy", "numpy")]


def _onnx() -> list[Finding]:
    return [_required("onnx", "onnx")]


def _required(module: str, distribution: str) -> Finding:
    floor = FLOORS[distribution]
    install = f'pip install "{distribution}>={floor}"'
    try:
        version = str(importlib.import_module(module).__version__)
    except ModuleNotFoundError as error:
        if error.name != module:
            return _broken(distribution, f"needs {error.name}, which is missing", f"pip install {error.name}")
        return _broken(distribution, "not installed", install)
    except Exception as error:
        again = f"pip uninstall -y {distribution} && {install}"
        return _broken(distribution, f"installed but broken ({_brief(error)})", again)
    if _older(version, floor):
        return _broken(distribution, f"{version} is older than {floor}", install)
    return _fine(distribution, version)


def _onnxruntime() -> list[Finding]:
    flavours = _runtime_flavours()
    installed = " and ".join(f"{name} {version}" for name, version in flavours.items())
    remove = f"pip uninstall -y {' '.join(flavours)} && " if flavours else ""
    # of several, keep the one with more in it: nobody adds a GPU build by accident
    keep = next((name for name in flavours if name != "onnxruntime"), "onnxruntime")
    reinstall = f'{remove}pip install "{keep}>={FLOORS["onnxruntime"]}"'
    if len(flavours) > 1:
        rest = "they share one folder, so one hides the other and removing one breaks both; keep one"
        return [_broken("onnxruntime", f"{installed} are installed together: {rest}", reinstall)]
    try:
        module = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if not flavours and error.name == "onnxruntime":
            return [_broken("onnxruntime", "not installed", _CPU_OR_GPU)]
        return [_broken("onnxruntime", f"{installed or 'its folder'} is half removed ({error})", reinstall)]
    except Exception as error:
        return [_broken("onnxruntime", f"{installed or 'it'} cannot be loaded ({_brief(error)})", reinstall)]
    if not hasattr(module, "InferenceSession"):
        left = f"{installed} is recorded as installed, but" if installed else "no distribution is recorded, and"
        return [_broken("onnxruntime", f"{left} most of its files are gone", reinstall)]
    version = str(module.__version__)
    if _older(version, FLOORS["onnxruntime"]):
        return [_broken("onnxruntime", f"{installed or version} is older than {FLOORS['onnxruntime']}", reinstall)]
    return [_fine("onnxruntime", installed or f"{version}, not installed by pip")]


_CPU_OR_GPU = 'pip install "onnxcam[cpu]"  # or, for NVIDIA GPUs: pip install "onnxcam[gpu]"'


def _runtime_flavours() -> dict[str, str]:
    """List the distributions that install files into the folder `onnxruntime`, with their versions."""
    versions = {}
    for distribution in metadata.distributions():
        name = _canonical(distribution.metadata["Name"] or "")
        if name.startswith(("onnxruntime", "ort-nightly")):
            record = distribution.read_text("RECORD")
            if record is None or "onnxruntime/capi/" in record:
                versions[name] = distribution.version
    return dict(sorted(versions.items()))


def _providers() -> list[Finding]:
    try:
        ort: Any = importlib.import_module("onnxruntime")
        listed = list(ort.get_available_providers())
    except Exception:
        return []  # reported under "onnxruntime"
    try:
        from onnx import TensorProto, helper
    except Exception:
        return [_fine("providers", f"{listing(listed)} listed; not tried, because onnx is missing")]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    return [_provider(ort, model, name) for name in listed if name not in _SKIPPED]


def _provider(ort: Any, model: bytes, name: str) -> Finding:
    title = f"provider {name.removesuffix('ExecutionProvider')}"
    options = ort.SessionOptions()
    with _captured() as output:
        try:
            if name == CUDA and hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
            providers = [name] if name == CPU else [name, CPU]
            in_use = list(ort.InferenceSession(model, sess_options=options, providers=providers).get_providers())
            reason = ""
        except Exception as error:
            in_use, reason = [], _brief(error)
    if name in in_use:
        return _fine(title, "a session runs on it")
    missing = re.search(r"(lib[\w.+-]+\.so[\w.]*|\w+\.dll): cannot open|(\w+\.dll)\" which is missing", output())
    if missing:
        reason = f"{missing[1] or missing[2]} cannot be found"
    detail = "listed by the runtime, but a session "
    detail += f"falls back to {listing(in_use)} silently" if in_use else "cannot be made"
    return _broken(title, f"{detail}{f' ({reason})' if reason else ''}", _provider_remedy(name, bool(missing)))


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
    versions = {name: version for name in OPENCV_FLAVOURS if (version := _version(name)) is not None}
    installed = " and ".join(f"{name} {version}" for name, version in versions.items())
    remove = f"pip uninstall -y {' '.join(versions)} && " if versions else ""
    headless = f'{remove}pip install "opencv-python-headless>={FLOORS["opencv-python"]}"'
    if len(versions) > 1:
        return [_broken("opencv", f"{installed} share one folder: removing one breaks the others", headless)]
    try:
        from onnxcam.image.opencv import import_cv2

        cv2 = import_cv2()
    except (DependencyError, ImportError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, ModuleNotFoundError) and cause.name == "numpy":
            return [_broken("opencv", "not tried, because numpy is missing")]
        if isinstance(cause, ModuleNotFoundError) and not versions:
            return [_broken("opencv", "not installed", headless)]
        shared = re.search(r"(lib[\w.+-]+\.so[\w.]*)", str(cause))
        if shared:
            repair = f"apt-get install --no-install-recommends libgl1 libglib2.0-0  # or: {headless}"
            return [_broken("opencv", f"{installed or 'cv2'} needs {shared[1]}, which is missing", repair)]
        return [_broken("opencv", f"{installed or 'cv2'} cannot be loaded ({_brief(cause)})", headless)]
    if not hasattr(cv2, "imdecode"):
        return [_broken("opencv", f"{installed or 'cv2'} is half removed: its files are gone", headless)]
    version = str(cv2.__version__)
    if _older(version, FLOORS["opencv-python"]):
        name = next(iter(versions), "opencv-python-headless")
        old = f"{installed or version} is older than {FLOORS['opencv-python']}"
        return [_broken("opencv", old, f'pip install "{name}>={FLOORS["opencv-python"]}"')]
    return [_fine("opencv", installed or version)]


def _frameworks() -> list[Finding]:
    findings = []
    for name in ("torch", "keras", "tensorflow"):
        version = _version(name)
        if version is None:
            findings.append(_fine(name, "not installed; only `onnxcam export` of its models needs it"))
        elif _older(version, FLOORS[name]):
            old = f"{version} is older than {FLOORS[name]}: `onnxcam export` of its models is not supported"
            findings.append(_fine(name, old, f'pip install "{name}>={FLOORS[name]}"'))
        else:
            findings.append(_fine(name, version))
    return findings


def _fast() -> list[Finding]:
    """Check the library that compresses pictures, without which they are written more slowly."""
    install = f'pip install "isal>={FLOORS["isal"]}"'
    if _version("isal") is None:
        return [_fine("isal", "not installed; with it pictures are written faster", install)]
    finding = _required("isal", "isal")
    return [_fine(finding.name, finding.detail, finding.remedy)]


def _bundled_models() -> list[Finding]:
    name, again = "bundled models", "pip install --force-reinstall --no-deps onnxcam"
    try:
        folder = resources.files("onnxcam.models")
    except ModuleNotFoundError:
        return [_broken(name, "their folder is missing", again)]
    if altered := _altered("onnxcam/models/"):
        return [_broken(name, f"not as they were installed: {listing(altered)}", again)]
    models = sorted((file for file in folder.iterdir() if file.name.endswith(".onnx")), key=lambda file: file.name)
    if not models:
        return [_broken(name, "there are none", again)]
    try:
        ort: Any = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
    except Exception:
        return [_fine(name, f"{listing(m.name for m in models)}; not tried, because onnxruntime is broken")]
    options.log_severity_level = 3
    for model in models:
        try:
            ort.InferenceSession(model.read_bytes(), sess_options=options, providers=[CPU])
        except Exception as error:
            return [_broken(name, f"{model.name} cannot be loaded ({_brief(error)})", again)]
    return [_fine(name, ", ".join(model.name for model in models))]


def _altered(folder: str) -> list[str]:
    """List onnxcam's files in `folder` that are missing or differ from the wheel's record.

    An editable installation has no record.
    """
    try:
        files = metadata.files("onnxcam") or []
    except metadata.PackageNotFoundError:
        return []
    altered = []
    for file in files:
        if file.as_posix().startswith(folder) and file.hash is not None and file.hash.mode == "sha256":
            path = str(file.locate())
            try:
                digest = sha256(Path(path).read_bytes()).digest()
            except OSError:
                digest = b""
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
                altered.append(file.name)
    return altered


def _temporary_folder() -> list[Finding]:
    repair = 'export TMPDIR="$HOME/tmp" && mkdir -p "$TMPDIR"'
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * (1 << 16))
            file.flush()
    except OSError as error:
        return [_broken("temporary folder", f"nothing can be written there ({_brief(error)})", repair)]
    return [_fine("temporary folder", folder)]


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
    """Capture what native code writes to the process's output; ONNX Runtime gives its reasons only there."""
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


def _older(version: str, floor: str) -> bool:
    numbers = [[int(n) for n in re.findall(r"\d+", text.split("+")[0])[:3]] for text in (version, floor)]
    a, b = (n + [0] * (3 - len(n)) for n in numbers)
    return a < b


def _brief(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
