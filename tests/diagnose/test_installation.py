"""The states in which an installation is broken, each faked, and the command that mends it."""

from __future__ import annotations

import importlib
import importlib.abc
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from onnxcam import cli
from onnxcam.diagnose import installation as doctor
from onnxcam.diagnose.installation import CPU, CUDA, Installation
from onnxcam.diagnose.report import Finding

ROOT = Path(__file__).parent.parent.parent
WHOLE = "onnxruntime/__init__.py,,\nonnxruntime/capi/_ld_preload.py,,\n"


class Installed:
    """A distribution as importlib.metadata gives it."""

    def __init__(self, name: str, version: str, record: str | None = WHOLE) -> None:
        self.metadata = {"Name": name}
        self.version = version
        self.record = record

    def read_text(self, name: str) -> str | None:
        return self.record if name == "RECORD" else None


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says which distributions are installed, as `name=version` or whole `Installed`; there are no others."""

    def apply(*distributions: str | Installed) -> None:
        all_of_them = [g if isinstance(g, Installed) else Installed(*g.split("=")) for g in distributions]
        versions = {d.metadata["Name"]: d.version for d in all_of_them}

        def version(name: str) -> str:
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "distributions", lambda: iter(all_of_them))
        monkeypatch.setattr(metadata, "version", version)

    return apply


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """Puts a module with these attributes in place of the real one."""

    def apply(name: str, **attributes: Any) -> types.ModuleType:
        replacement = types.ModuleType(name)
        replacement.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, replacement)
        return replacement

    return apply


@pytest.fixture
def importing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], None]:
    """Makes the import of a module raise."""

    def apply(name: str, error: Exception) -> None:
        class Raising(importlib.abc.MetaPathFinder):
            def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
                if fullname == name:
                    raise error

        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "meta_path", [Raising(), *sys.meta_path])

    return apply


def absent(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


class FakeRuntime:
    """onnxruntime as far as the doctor looks: sessions get the providers in `working`, and native code complains."""

    def __init__(
        self, listed: list[str], working: list[str], native: str = "", after_preload: str | None = None
    ) -> None:
        self.__version__ = "1.31.1"
        self.listed, self.working, self.native, self.after_preload = listed, working, native, after_preload
        self.SessionOptions = types.SimpleNamespace

    def get_available_providers(self) -> list[str]:
        return self.listed

    def preload_dlls(self) -> None:
        print("Failed to load something")
        if self.after_preload:
            self.working = [self.after_preload, *self.working]

    def InferenceSession(self, model: bytes, sess_options: Any, providers: list[str]) -> Any:
        os.write(2, self.native.encode())
        in_use = [p for p in providers if p in self.working]
        if not in_use:
            raise RuntimeError("no provider left\nsecond line")
        return types.SimpleNamespace(get_providers=lambda: in_use)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


# ---- the runtime


def test_runtime_healthy(install: Any, module: Any) -> None:
    module("onnxruntime", __version__="1.31.1", InferenceSession=object)
    install("onnxruntime=1.31.1", Installed("onnxruntime-extensions", "0.14.0", "onnxruntime_extensions/__init__.py,,"))
    assert only(doctor._onnxruntime()) == Finding("onnxruntime", "ok", "onnxruntime 1.31.1")


def test_runtime_missing(install: Any, importing: Any) -> None:
    install("numpy=2.0")
    importing("onnxruntime", absent("onnxruntime"))
    finding = only(doctor._onnxruntime())
    assert not finding.ok and finding.detail == "not installed"
    assert finding.remedy == 'pip install "onnxcam[cpu]"  # or, for NVIDIA GPUs: pip install "onnxcam[gpu]"'


@pytest.mark.parametrize(
    "other", ["onnxruntime-gpu", "onnxruntime-directml", "onnxruntime_openvino", "onnxruntime-training"]
)
def test_two_runtimes_together(install: Any, module: Any, other: str) -> None:
    install("onnxruntime=1.31.1", f"{other}=1.30.0")
    module("onnxruntime", __version__="1.31.1", InferenceSession=object)
    finding = only(doctor._onnxruntime())
    name = other.replace("_", "-")
    assert not finding.ok and f"onnxruntime 1.31.1 and {name} 1.30.0 are installed together" in finding.detail
    assert finding.remedy == f'pip uninstall -y onnxruntime {name} && pip install "{name}>=1.20"'


def test_runtime_whose_files_are_gone(install: Any, module: Any) -> None:
    install("onnxruntime=1.31.1")
    module("onnxruntime")  # what is left of the shared folder is a namespace package
    finding = only(doctor._onnxruntime())
    assert not finding.ok and "onnxruntime 1.31.1 is recorded as installed, but" in finding.detail
    assert finding.remedy == 'pip uninstall -y onnxruntime && pip install "onnxruntime>=1.20"'


def test_runtime_folder_without_a_distribution(install: Any, module: Any) -> None:
    install("numpy=2.0")
    module("onnxruntime")
    finding = only(doctor._onnxruntime())
    assert not finding.ok and "no distribution is recorded" in finding.detail
    assert finding.remedy == 'pip install "onnxruntime>=1.20"'


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (absent("onnxruntime"), "half removed"),
        (absent("onnxruntime.capi"), "half removed"),
        (ImportError("libonnxruntime.so.1: cannot open shared object file"), "cannot be loaded (libonnxruntime.so.1"),
        (AttributeError("_ARRAY_API not found"), "cannot be loaded (_ARRAY_API not found)"),
    ],
)
def test_runtime_that_is_recorded_and_cannot_be_imported(
    install: Any, importing: Any, error: Exception, words: str
) -> None:
    install("onnxruntime-gpu=1.30.0")
    importing("onnxruntime", error)
    finding = only(doctor._onnxruntime())
    assert not finding.ok and words in finding.detail
    assert finding.remedy == 'pip uninstall -y onnxruntime-gpu && pip install "onnxruntime-gpu>=1.20"'


def test_runtime_too_old(install: Any, module: Any) -> None:
    install("onnxruntime=1.19.2")
    module("onnxruntime", __version__="1.19.2", InferenceSession=object)
    finding = only(doctor._onnxruntime())
    assert not finding.ok and "1.19.2 is older than 1.20" in finding.detail


# ---- execution providers


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Finding]]:
    """The findings about providers under a fake runtime, by name."""

    def apply(*args: Any, **kwargs: Any) -> dict[str, Finding]:
        monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime(*args, **kwargs))
        return {finding.name: finding for finding in doctor._providers()}

    return apply


def test_cuda_that_works(runtime: Any) -> None:
    findings = runtime(["TensorrtExecutionProvider", CUDA, CPU], [CUDA, CPU])
    assert {name: finding.ok for name, finding in findings.items()} == {"provider CUDA": True, "provider CPU": True}


def test_cuda_that_works_once_its_libraries_are_preloaded(runtime: Any) -> None:
    assert runtime([CUDA, CPU], [CPU], after_preload=CUDA)["provider CUDA"].ok


def test_cuda_without_its_libraries(runtime: Any, capfd: pytest.CaptureFixture[str]) -> None:
    native = "[E:onnxruntime:Default] Failed to load libx.so with error: libcublasLt.so.12: cannot open shared object\n"
    finding = runtime([CUDA, CPU], [CPU], native)["provider CUDA"]
    assert not finding.ok
    assert "falls back to 'CPUExecutionProvider'" in finding.detail and "(libcublasLt.so.12 cannot" in finding.detail
    assert finding.remedy is not None
    assert finding.remedy.startswith('pip install "onnxruntime-gpu[cuda,cudnn]"')
    assert "preload_dlls" in finding.remedy
    assert capfd.readouterr() == ("", ""), "the runtime's own complaints are held back"
    os.write(2, b"restored")
    assert capfd.readouterr().err == "restored"


def test_cuda_that_falls_back_for_another_reason(runtime: Any) -> None:
    finding = runtime([CUDA, CPU], [CPU])["provider CUDA"]
    assert not finding.ok and finding.remedy is not None and finding.remedy.startswith("nvidia-smi")


def test_provider_whose_session_cannot_be_made(runtime: Any) -> None:
    finding = runtime(["ROCMExecutionProvider"], [])["provider ROCM"]
    assert not finding.ok and "cannot be made (no provider left)" in finding.detail


def test_real_cpu_session() -> None:
    findings = doctor._providers()
    assert Finding("provider CPU", "ok", "a session runs on it") in findings


# ---- other libraries


@pytest.mark.parametrize(("check", "name", "floor"), [("_onnx", "onnx", "1.21"), ("_numpy", "numpy", "1.26")])
def test_library_missing_old_or_broken(
    monkeypatch: pytest.MonkeyPatch, module: Any, check: str, name: str, floor: str
) -> None:
    look = getattr(doctor, check)
    module(name, __version__="1.20.9")
    old = only(look())
    assert not old.ok and f"1.20.9 is older than {floor}" in old.detail
    assert old.remedy == f'pip install "{name}>={floor}"'
    module(name, __version__="3.0.0rc1")
    assert only(look()).ok

    def failing(error: Exception) -> Finding:
        def fail(name: str) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(importlib, "import_module", fail)
            return only(look())

    missing = failing(absent(name))
    assert not missing.ok and missing.remedy == f'pip install "{name}>={floor}"'
    broken = failing(ImportError("undefined symbol"))
    assert not broken.ok and "undefined symbol" in broken.detail
    assert broken.remedy == f'pip uninstall -y {name} && pip install "{name}>={floor}"'
    dependency = failing(absent("ml_dtypes"))
    assert not dependency.ok and dependency.remedy == "pip install ml_dtypes"


@pytest.mark.parametrize("library", ["libxcb.so.1", "libGL.so.1", "libgthread-2.0.so.0"])
def test_opencv_without_a_system_library(install: Any, importing: Any, library: str) -> None:
    install("opencv-python=5.0.0.93")
    importing("cv2", ImportError(f"{library}: cannot open shared object file: No such file or directory"))
    finding = only(doctor._opencv())
    assert not finding.ok and library in finding.detail
    assert finding.remedy is not None
    first, second = finding.remedy.split("  # or: ")
    assert first == "apt-get install --no-install-recommends libgl1 libglib2.0-0"
    assert second == 'pip uninstall -y opencv-python && pip install "opencv-python-headless>=4.12"'


def test_opencv_missing(install: Any, importing: Any) -> None:
    install("numpy=2.0")
    importing("cv2", absent("cv2"))
    finding = only(doctor._opencv())
    assert not finding.ok and finding.detail == "not installed"
    assert finding.remedy == 'pip install "opencv-python-headless>=4.12"'


def test_opencv_twice(install: Any) -> None:
    install("opencv-python=5.0.0", "opencv-python-headless=5.0.0")
    finding = only(doctor._opencv())
    assert not finding.ok and "opencv-python 5.0.0 and opencv-python-headless 5.0.0" in finding.detail
    assert finding.remedy == (
        'pip uninstall -y opencv-python opencv-python-headless && pip install "opencv-python-headless>=4.12"'
    )


@pytest.mark.parametrize(
    ("attributes", "words"),
    [({}, "half removed"), ({"imdecode": 1, "__version__": "4.11.0"}, "older than 4.12"), (absent("cv2"), "cannot be")],
)
def test_opencv_old_or_half_removed(install: Any, module: Any, importing: Any, attributes: Any, words: str) -> None:
    install("opencv-python=4.11.0.86")
    importing("cv2", attributes) if isinstance(attributes, Exception) else module("cv2", **attributes)
    finding = only(doctor._opencv())
    assert not finding.ok and words in finding.detail and finding.remedy


def test_opencv_headless_will_do(install: Any, module: Any) -> None:
    install("opencv-python-headless=5.0.0.93")
    module("cv2", imdecode=1, __version__="5.0.0")
    assert only(doctor._opencv()) == Finding("opencv", "ok", "opencv-python-headless 5.0.0.93")


def test_frameworks_are_optional(install: Any) -> None:
    install("torch=2.13.0+cpu", "keras=3.13.1")
    torch, keras, tensorflow = doctor._frameworks()
    assert (torch.ok, torch.detail, torch.remedy) == (True, "2.13.0+cpu", None)
    assert keras.ok and "3.13.1 is older than 3.13.2" in keras.detail and keras.remedy == 'pip install "keras>=3.13.2"'
    assert tensorflow.ok and tensorflow.detail.startswith("not installed") and tensorflow.remedy is None


@pytest.mark.parametrize(
    ("distributions", "attributes", "detail", "advised"),
    [
        ([], {}, "not installed; with it pictures are written faster", True),
        (["isal=1.9.1"], {"__version__": "1.9.1"}, "1.9.1", False),
        (["isal=1.6.0"], {"__version__": "1.6.0"}, "1.6.0 is older than 1.7", True),
        (["isal=1.9.1"], OSError("_isal.so: wrong ELF class"), "installed but broken (", True),
    ],
)
def test_isal_is_advice_at_most(
    install: Any, module: Any, importing: Any, distributions: list[str], attributes: Any, detail: str, advised: bool
) -> None:
    install(*distributions)
    importing("isal", attributes) if isinstance(attributes, Exception) else module("isal", **attributes)
    finding = only(doctor._fast())
    assert finding.ok and finding.detail.startswith(detail) and (finding.remedy is not None) == advised


def test_python_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor._python()).ok
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    finding = only(doctor._python())
    assert not finding.ok and "3.11 or newer" in finding.detail and finding.remedy == "python3.11 -m venv .venv"


# ---- our own files, and the machine


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in place of onnxcam.models."""
    monkeypatch.setattr("importlib.resources.files", lambda name: tmp_path)
    monkeypatch.setattr(metadata, "files", lambda name: None)
    yield tmp_path


def small_model() -> bytes:
    from onnx import parser

    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    data: bytes = parser.parse_model(text).SerializeToString()
    return data


def test_models_missing_broken_and_whole(bundled: Path) -> None:
    assert only(doctor._bundled_models()).detail == "there are none"
    (bundled / "a.onnx").write_bytes(small_model())
    assert only(doctor._bundled_models()) == Finding("bundled models", "ok", "a.onnx")
    (bundled / "b.onnx").write_bytes(b"not a model")
    finding = only(doctor._bundled_models())
    assert not finding.ok and "b.onnx cannot be loaded" in finding.detail and finding.remedy


def test_models_altered_since_they_were_installed(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = bundled / "site"
    (site / "onnxcam/models").mkdir(parents=True)
    (site / "onnxcam-1.dist-info").mkdir()
    (bundled / "a.onnx").write_bytes(small_model())
    (site / "onnxcam/models/a.onnx").write_bytes(b"abc")
    record = "onnxcam/models/a.onnx,sha256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0,3\n"
    (site / "onnxcam-1.dist-info/RECORD").write_text(record)
    monkeypatch.setattr(metadata, "files", lambda name: metadata.PathDistribution(site / "onnxcam-1.dist-info").files)
    assert only(doctor._bundled_models()).ok
    (site / "onnxcam/models/a.onnx").write_bytes(b"abd")
    assert "'a.onnx'" in only(doctor._bundled_models()).detail
    (site / "onnxcam/models/a.onnx").unlink()
    finding = only(doctor._bundled_models())
    assert not finding.ok and "not as they were installed" in finding.detail and finding.remedy


def test_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(doctor._temporary_folder()).ok

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    finding = only(doctor._temporary_folder())
    assert not finding.ok and "No space left" in finding.detail and "TMPDIR" in str(finding.remedy)


# ---- the whole


def test_without_any_library_it_still_answers() -> None:
    script = f"import sys, json; sys.path.insert(0, {str(ROOT)!r}); "
    script += "from onnxcam.diagnose import installation; print(json.dumps(installation.diagnose().to_dict()))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    broken = {finding["name"]: finding for finding in report["findings"] if not finding["ok"]}
    assert not report["healthy"]
    assert {"numpy", "onnx", "onnxruntime", "opencv"} <= broken.keys()
    assert all(broken[name]["remedy"] for name in ("numpy", "onnx", "onnxruntime"))
    assert not any("this check failed" in finding["detail"] for finding in report["findings"])


def test_check_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _odd() -> list[Finding]:
        raise KeyError("k")

    monkeypatch.setattr(doctor, "_CHECKS", (_odd,))
    assert doctor.diagnose().findings == [Finding("odd", "failed", "this check failed: KeyError: 'k'")]


def test_floors_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(text for extra in extras for text in extra)]
    declared = dict(
        match.groups() for text in requirements if (match := re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", text))
    )
    assert {name: declared[name] for name in doctor.FLOORS} == doctor.FLOORS
    assert project["requires-python"] == ">=" + ".".join(map(str, doctor.PYTHON_FLOOR))


FINE, ADVICE = Finding("a", "ok", "1.0"), Finding("long name", "note", "old", remedy="pip install a")
BAD = Finding("b", "failed", "gone", remedy="pip install b")


@pytest.mark.parametrize(("findings", "code"), [([FINE, ADVICE], 0), ([FINE, BAD], 4)])
def test_command(monkeypatch: pytest.MonkeyPatch, findings: list[Finding], code: int) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: Installation(findings=findings))
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == code
    for finding in findings:
        assert finding.name in result.stdout and finding.detail in result.stdout
        assert not finding.remedy or f"$ {finding.remedy}" in result.stdout
    assert ("1 of 2 broken" in result.stdout) is (code == 4)
    as_json = CliRunner().invoke(cli.main, ["doctor", "--json"])
    assert as_json.exit_code == code
    report = json.loads(as_json.stdout)
    assert report["healthy"] is (code == 0)
    fields = ("name", "ok", "detail", "remedy")
    assert report["findings"] == [{field: getattr(finding, field) for field in fields} for finding in findings]
