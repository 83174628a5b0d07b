"""Modules import one way only, stay small, and leave heavy libraries to the functions that need them.

Layers are compared on the source, so imports inside functions and of names passed to `import_module` count too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import onnxcam

ROOT = Path(__file__).parent.parent
# from the ground up; modules in one row do not know each other, but for those joined by "+"
LAYERS = (
    ("errors",),
    ("files+documents",),
    ("graph", "targets", "models"),
    ("autodiff",),
    ("cam", "image", "runtime", "html"),
    ("network",),
    ("explain",),
    ("exporters", "diagnose", "evaluation", "inside"),
    ("monitor", "fleet"),
    ("server",),
    ("cli+demo+__main__",),
)
HEAVY = {"torch", "torchvision", "timm", "tensorflow", "keras", "tf2onnx", "cv2", "PIL", "matplotlib", "scipy", "sympy"}
LONGEST = 500

SOURCES = sorted([*(ROOT / "onnxcam").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")])
# the package's own `__init__` is the lazy table of public names, which point upwards
LAYERED = [path for path in SOURCES if path != ROOT / "onnxcam" / "__init__.py"]
HEIGHT = {name: (row, group) for row, groups in enumerate(LAYERS) for group in groups for name in group.split("+")}


class Import(NamedTuple):
    line: int
    module: str
    at_top: bool


def imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import in a source file, wherever it stands; `from a import b` gives `a.b`."""
    lazily = {id(inner) for node in ast.walk(tree) if is_lazy(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        names: list[str] = []
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                base = package.rsplit(".", node.level - 1)[0] if node.level else ""
                prefix = ".".join(part for part in (base, node.module) if part)
                names = [f"{prefix}.{alias.name}" for alias in node.names]
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if "import" in ast.unparse(node.func):
                names = [name]
            case _:
                continue
        yield from (Import(node.lineno, name, id(node) not in lazily) for name in names)


def is_lazy(node: ast.AST) -> bool:
    """Code that does not run, or only for the type checker, when the module is imported."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def unit(module: str) -> str:
    """The part of onnxcam a dotted name belongs to; names onnxcam itself exports belong to where they are defined."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else ""
    return onnxcam._LAZY.get(name, f"onnxcam.{name}").split(".")[1]


def where(path: Path) -> tuple[str, str]:
    """A file's part of onnxcam and its package."""
    inside = path.relative_to(ROOT).parts
    inside = ("onnxcam", *inside) if inside[0] == "exporters" else inside
    return (inside[1].removesuffix(".py"), ".".join(inside[:-1]))


def violations(path: Path, source: str) -> list[str]:
    importer, package = where(path)
    wrong = []
    for line, module, _ in imports(ast.parse(source), package):
        if module.split(".")[0] != "onnxcam" or module in ("onnxcam.__version__", "onnxcam.OnnxcamError"):
            continue
        other = unit(module)
        (mine, my_group), (theirs, their_group) = HEIGHT.get(importer, (-1, "")), HEIGHT.get(other, (99, "?"))
        allowed = theirs < mine or my_group == their_group
        if other == "exporters" and importer not in ("cli", "exporters"):
            allowed = False
        if not allowed:
            wrong.append(f"{path.name}:{line}: {importer} must not import {module}")
    return wrong


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_every_module_has_a_layer() -> None:
    present = {where(path)[0] for path in LAYERED}
    assert present <= HEIGHT.keys(), "name the layer of the new module in LAYERS above, then run `make pages`"


@pytest.mark.parametrize("path", LAYERED, ids=names(LAYERED))
def test_imports_go_one_way(path: Path) -> None:
    assert violations(path, path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_heavy_libraries_are_imported_late(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    early = [f"line {i.line}: {i.module}" for i in imports(tree, where(path)[1]) if i.at_top]
    heavy = [text for text in early if text.split(": ")[1].split(".")[0] in HEAVY]
    assert heavy == [] or where(path)[0] == "exporters"


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_module_is_of_a_readable_size(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")


@pytest.mark.parametrize(
    ("importer", "source", "allowed"),
    [
        ("graph/load.py", "from onnxcam.errors import ModelError", True),
        ("graph/load.py", "from onnxcam import errors", True),
        ("graph/load.py", "from onnxcam.graph import view", True),
        ("graph/load.py", "from onnxcam.autodiff.sweep import sweep", False),
        ("graph/load.py", "def f():\n    from onnxcam import cam", False),
        ("graph/load.py", "import onnxcam.runtime", False),
        ("graph/load.py", "from onnxcam import augment", False),
        ("graph/load.py", "import onnxcam", False),
        ("graph/load.py", "from ..autodiff import sweep", False),
        ("graph/load.py", "from . import view", True),
        ("cam/methods/__init__.py", "from onnxcam import runtime", False),
        ("explain/explainer.py", "from onnxcam.exporters import pytorch", False),
        ("diagnose/installation.py", "from onnxcam.exporters import pytorch", False),
        ("diagnose/installation.py", "import_module('onnxcam.exporters.pytorch')", False),
        ("cli/export.py", "def f():\n    from onnxcam.exporters import pytorch", True),
        ("demo.py", "from onnxcam.cli import main", True),
    ],
)
def test_the_check_itself(importer: str, source: str, allowed: bool) -> None:
    assert (violations(ROOT / "onnxcam" / importer, source) == []) is allowed


def test_the_check_of_late_imports_itself() -> None:
    source = """
import cv2
class A:
    import torch
def f(): import keras
if TYPE_CHECKING:
    import timm
try:
    import scipy
except ImportError: pass
"""
    at_top = {i.module: i.at_top for i in imports(ast.parse(source), "onnxcam")}
    assert at_top == {"cv2": True, "torch": True, "keras": False, "timm": False, "scipy": True}
