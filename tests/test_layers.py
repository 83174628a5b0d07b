"""Modules import one way only, stay small, and leave heavy libraries to the functions that need them.

Layers are compared on the source, so imports inside functions and of names passed to `import_module` count too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import onnxcam

ROOT = Path(__file__).parent.parent
# from the ground up; modules in one row do not know each other, but for those joined by "+"
LAYERS = (
    ("errors",),
    ("files+documents+folders",),
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
# a call that may import a module named by its text
IMPORTING = re.compile(r"import[\w.]*\(")

SOURCES = sorted([*(ROOT / "onnxcam").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")])
# the package's own `__init__` is the lazy table of public names, which point upwards
LAYERED = [path for path in SOURCES if path != ROOT / "onnxcam" / "__init__.py"]
HEIGHT = {name: (row, group) for row, groups in enumerate(LAYERS) for group in groups for name in group.split("+")}


class Import(NamedTuple):
    line: int
    module: str
    at_top: bool


def imports(source: str, package: str, *, typed: bool = True) -> Iterator[Import]:
    """Every import in a source file, wherever it stands; `from a import b` gives `a.b`.

    Arguments:
        typed: with those for the type checker alone.
    """
    # nearly all nodes are expressions, and of those only calls can import
    below = ast.iter_child_nodes if IMPORTING.search(source) else statements
    nodes: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while nodes:
        node, at_top = nodes.pop()
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
        yield from (Import(node.lineno, name, at_top) for name in names)
        if not typed and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += [(child, at_top) for child in node.orelse]
        else:
            at_top = at_top and not is_lazy(node)
            nodes += [(child, at_top) for child in below(node)]


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements right below a statement."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        yield from getattr(node, field, ())


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
    for line, module, _ in imports(source, package):
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


def test_every_module_has_a_layer() -> None:
    present = {where(path)[0] for path in LAYERED}
    assert present <= HEIGHT.keys(), "name the layer of the new module in LAYERS above, then run `make pages`"


def test_imports_go_one_way() -> None:
    assert [text for path in LAYERED for text in violations(path, path.read_text("utf-8"))] == []


def test_heavy_libraries_are_imported_late() -> None:
    heavy = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in SOURCES
        if where(path)[0] != "exporters"
        for line, module, at_top in imports(path.read_text("utf-8"), where(path)[1])
        if at_top and module.split(".")[0] in HEAVY
    ]
    assert heavy == []


def test_modules_are_of_a_readable_size() -> None:
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}
    assert not {path.stem for path in SOURCES} & {"utils", "util", "helpers", "common", "misc"}


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
    at_top = {i.module: i.at_top for i in imports(source, "onnxcam")}
    assert at_top == {"cv2": True, "torch": True, "keras": False, "timm": False, "scipy": True}
    again = {i.module: i.at_top for i in imports(source + "def g():\n    import_module('tf2onnx')\n", "onnxcam")}
    assert again == {**at_top, "tf2onnx": False}
    assert "timm" not in {i.module for i in imports(source, "onnxcam", typed=False)}
