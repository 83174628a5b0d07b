"""What the wheel and the sdist hold, and whether they work where only the declared dependencies are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from hashlib import sha256
from importlib import metadata
from pathlib import Path, PurePath

import pytest
from packaging.requirements import Requirement

import onnxcam

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
# what belongs to a clone and not to the project
UNTRACKED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "demo-output", "node_modules")
FOLDERS = {"onnxcam": "onnxcam", **SETUPTOOLS["package-dir"]}


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, in an environment that does not see this clone."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ---- the declarations


def packages_on_disk() -> set[str]:
    result = set()
    for package, folder in FOLDERS.items():
        for source in (ROOT / folder).rglob("*.py"):
            result.add(".".join((package, *source.parent.relative_to(ROOT / folder).parts)))
    return result


def test_every_package_on_disk_is_declared() -> None:
    assert set(SETUPTOOLS["packages"]) == packages_on_disk()


@pytest.mark.parametrize("package", sorted(packages_on_disk()))
def test_package_has_an_init(package: str) -> None:
    name = max((parent for parent in FOLDERS if f"{package}.".startswith(f"{parent}.")), key=len)
    folder = ROOT.joinpath(FOLDERS[name], *package.removeprefix(name).strip(".").split("."))
    assert (folder / "__init__.py").is_file(), "without it the package is found in some installations only"


def test_test_tools_are_pinned_above_their_floors() -> None:
    lines = (ROOT / "tests/requirements.txt").read_text("utf-8").splitlines()
    pinned = {r.name: r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}
    assert all(re.fullmatch(r"==[\w.]+", str(r.specifier)) for r in pinned.values())
    for floor in map(Requirement, PROJECT["project"]["optional-dependencies"]["test"]):
        assert floor.name in pinned
        assert floor.specifier.contains(str(pinned[floor.name].specifier).removeprefix("=="))


@pytest.mark.slow
def test_makefile_offers_what_is_promised() -> None:
    text = re.sub(r"\x1b\[\d+m", "", run("make", "--no-print-directory", "help", cwd=ROOT))
    targets = {line.split()[0] for line in text.splitlines()}
    assert {"help", "demo", "test", "soak", "check", "matrix", "bench"} <= targets
    recipes = run("make", "--dry-run", "--always-make", *sorted(targets), "VENV=missing", cwd=ROOT)
    scripts = re.findall(r"missing/bin/python (\S+\.py)", recipes)
    assert scripts and all((ROOT / script).is_file() for script in scripts)


# ---- the files built


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as a clone has it."""
    copy = tmp_path_factory.mktemp("source") / "onnxcam"
    shutil.copytree(ROOT, copy, ignore=UNTRACKED)
    return copy


@pytest.fixture(scope="session")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "--sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, "--wheel", tmp_path_factory.mktemp("wheel"))


def build(source: Path, what: str, folder: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", what, "--outdir", folder, source, cwd=folder)
    (built,) = folder.iterdir()
    return built


def contents(wheel: Path) -> dict[str, str]:
    """The files of a wheel and their sums, but for the record, which follows from the others."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/RECORD")]
        return {name: sha256(archive.read(name)).hexdigest() for name in names}


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = [PurePath(name) for name in contents(wheel)]
    version = onnxcam.__version__
    assert {name.parts[0] for name in names} == {"onnxcam", f"onnxcam-{version}.dist-info"}
    paths = {name.as_posix() for name in names}
    for package, folder in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            assert f"{package.replace('.', '/')}/{file.relative_to(ROOT / folder).as_posix()}" in paths
    assert {"onnxcam/py.typed", *bundled()} <= paths
    assert f"onnxcam-{version}.dist-info/licenses/LICENSE" in paths
    assert f"onnxcam-{version}.dist-info/licenses/NOTICE" in paths


def bundled() -> set[str]:
    """Models, pictures and what says where they come from."""
    kinds = (".onnx", ".png", ".json", ".txt", ".md")
    folder = ROOT / "models"
    result = {
        f"onnxcam/models/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*") if file.suffix in kinds
    }
    assert any(name.endswith(".onnx") for name in result) and any(name.endswith(".png") for name in result)
    return result


@pytest.mark.slow
def test_sdist_holds_the_tests_and_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    for name in ("LICENSE", "NOTICE", "CHANGELOG.md", "Makefile", "tests/requirements.txt", "tests/test_packaging.py"):
        assert (unpacked / name).is_file()
    (tmp_path / "wheel").mkdir()
    assert contents(build(unpacked, "--wheel", tmp_path / "wheel")) == contents(wheel)


# ---- the installation


def closure(requirement: str) -> set[str]:
    """Distributions that a requirement needs here, itself left out."""
    result: set[str] = set()
    waiting = [Requirement(requirement)]
    while waiting:
        current = waiting.pop()
        for text in metadata.requires(present(current.name)) or []:
            needed = Requirement(text)
            extras = current.extras or {""}
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                name = present(needed.name)
                if name not in result:
                    result.add(name)
                    waiting.append(needed)
    return result


def present(name: str) -> str:
    """The name, or that of the wheel that stands in where system libraries are missing."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        if name == "opencv-python":
            return "opencv-python-headless"
        raise
    return name


def link(name: str, site: Path) -> None:
    """Makes an installed distribution importable from another environment's site-packages."""
    distribution = metadata.distribution(name)
    for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
        (site / top).symlink_to(str(distribution.locate_file(top)))


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[], Path]:
    """Makes an environment with what `onnxcam[cpu]` declares to need, linked from here, and without onnxcam."""

    def make() -> Path:
        folder = tmp_path / "environment"
        venv.create(folder, with_pip=False, symlinks=os.name != "nt")
        (site,) = folder.glob("lib/python*/site-packages")
        for name in closure("onnxcam[cpu]"):
            link(name, site)
        return folder / "bin" / "python"

    return make


def pip_install(python: Path, *what: str | Path) -> None:
    pip = (sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--no-index", "--no-deps", *what, cwd=python.parent)


ASK = """
import importlib.util as i, json, onnxcam, sys
found = [i.find_spec(name) is not None for name in ("onnxcam.exporters.pytorch", "onnxcam.models", "onnxcam.cam")]
stray = [name for name in ("exporters", "models", "tests", "benchmarks") if i.find_spec(name)]
outside = [name for name in ("torch", "PIL", "scipy", "pytest") if i.find_spec(name)]
print(json.dumps([found, stray, outside, onnxcam.__version__, onnxcam.__file__]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the environment is made of links")
def test_wheel_works_with_the_declared_dependencies_alone(
    wheel: Path, environment: Callable[[], Path], tmp_path: Path
) -> None:
    python = environment()
    pip_install(python, wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    reply = run(python, "-c", ASK, cwd=elsewhere)
    version = onnxcam.__version__
    assert reply.startswith(f'[[true, true, true], [], [], "{version}", "{python.parent.parent}')
    assert run(python.parent / "onnxcam", "--version", cwd=elsewhere) == f"onnxcam {version}\n"
    assert "Nothing is broken." in run(python.parent / "onnxcam", "doctor", cwd=elsewhere)
    run(python.parent / "onnxcam", "demo", "-o", "out", cwd=elsewhere)
    assert list((elsewhere / "out").rglob("*.png"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the environment is made of links")
def test_editable_installation_works(source: Path, environment: Callable[[], Path], tmp_path: Path) -> None:
    python = environment()
    (site,) = python.parent.parent.glob("lib/python*/site-packages")
    link("setuptools", site)
    clone = tmp_path / "clone"
    shutil.copytree(source, clone)
    pip_install(python, "--no-build-isolation", "--editable", clone)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    reply = run(python, "-c", ASK, cwd=elsewhere)
    assert reply.startswith("[[true, true, true], [], [],") and str(clone) in reply
    run(python, "-c", "from onnxcam import Explainer, augment, gradient, models; models.path('cat.png')", cwd=elsewhere)
