"""The packages in CONTRIBUTING.md: their order from tests/test_layers.py, what they do from their docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.test_layers import LAYERS
from tools.pages import fill

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"


def page() -> str:
    """The page as Markdown."""
    table = "\n".join(["| layer | package | what it does |", "|---|---|---|", *rows()])
    return fill(PAGE.read_text(encoding="utf-8"), "layers", table)


def rows() -> Iterator[str]:
    """A row for each package that exists, from the ground up."""
    for layer, groups in enumerate(LAYERS):
        for name in (name for group in groups for name in group.split("+")):
            source = _source(name)
            if source is not None and not name.startswith("_"):
                yield f"| {layer} | `{name}` | {summary(source)} |"


def _source(name: str) -> Path | None:
    """The file whose docstring describes a package or module, None if there is none yet."""
    inside = ROOT / "onnxcam" / name
    candidates = (inside.with_suffix(".py"), inside / "__init__.py", ROOT / name / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def summary(source: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return re.split(r"\.\s|::?\n|\.$", " ".join(text.split("\n\n")[0].split()) + "\n")[0].strip(" .:")
