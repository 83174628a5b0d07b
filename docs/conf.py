"""Sphinx: the site that `make docs` builds. Its source is the whole repository, so that links between folders work.

python -m sphinx --nitpicky --fail-on-warning -c docs . build/site
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnxcam  # noqa: E402

project = "onnxcam"
version = release = onnxcam.__version__
project_copyright = "the onnxcam authors, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "docs/notebooks/*.ipynb",
    "benchmarks/*.md",
    "models/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
# folders without pages, which the search for sources need not walk through
exclude_patterns = [".*", "build", "dist", "node_modules", "onnxcam", "tests"]

# notebooks hold their outputs: `python -m tools.notebooks` executes them
nb_execution_mode = "off"

nitpicky = True
# errors stand in lists in docstrings; types of the standard library and NumPy have sites of their own
nitpick_ignore_regex = [("py:.*", r"(?!onnxcam).*")]
myst_heading_anchors = 4
highlight_language = "none"

# docstrings write code in single backticks, as Markdown does
default_role = "code"
napoleon_use_ivar = True
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 100
add_module_names = False

html_theme = "furo"
html_title = f"onnxcam {version}"
html_copy_source = False
html_show_sphinx = False


def add_contents(app: Any, docname: str, source: list[str]) -> None:
    """Give the index a table of contents: one part per section, with the pages that the section links to."""
    if docname != root_doc:
        return
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        links = re.findall(r"\]\(([^)#:]+)\.(?:md|ipynb)\)", section)
        pages = "\n".join("/" + normpath(join(dirname(docname), link)) for link in links)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {section.splitlines()[0]}\n\n{pages}\n```\n"


def add_front_door(app: Any, error: Exception | None) -> None:
    """Lead from the site's root to the index."""
    if error is None:
        page = f'<!doctype html><title>onnxcam</title><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_front_door)
