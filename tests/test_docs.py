"""The documentation agrees with the code, and its links lead somewhere."""

from __future__ import annotations

import json
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import onnxcam
from onnxcam.graph.load import save
from onnxcam.network import manifest
from tests.support.models import tiny_cnn
from tools import pages

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/*.md"), *ROOT.glob("benchmarks/*.md")]
)


@pytest.mark.parametrize("name", pages.NAMES)
def test_page_is_what_its_generator_writes(name: str):
    module = pages.generator(name)
    written, current = (settled(text) for text in (module.PAGE.read_text(encoding="utf-8"), module.page()))
    if name == "command_line":  # words, not layout: releases of click wrap and indent differently
        written, current = (" ".join(re.findall(r"[\w-]{2,}", text)) for text in (written, current))
    assert written == current, "run `make pages`"


def settled(text: str) -> str:
    """The coverage page names the Python that wrote it."""
    return re.sub(r"Python 3\.\d+\.\d+, on the CPU", "Python, on the CPU", text)


def test_every_generator_is_listed():
    modules = {path.stem for path in (ROOT / "tools").glob("*.py") if "\ndef page()" in path.read_text("utf-8")}
    assert modules == set(pages.NAMES)


def test_only_marked_parts_are_replaced():
    text = "a\n<!-- generated: x -->\nold\n<!-- end: x -->\nb\n"
    assert pages.fill(text, "x", "new \\1") == "a\n<!-- generated: x -->\nnew \\1\n<!-- end: x -->\nb\n"
    for broken in ("a", text + text):
        with pytest.raises(ValueError, match="one part"):
            pages.fill(broken, "x", "new")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda p: p.name)
def test_paths_and_names_of_the_code_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    folders = "benchmarks|docs|exporters|models|onnxcam|tests|tools"
    paths = re.findall(rf"(?<![\w./-])(?:{folders})/[\w/.-]*\w", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for name in set(re.findall(r"(?<![\w/\"'@-])onnxcam(?:\.[A-Za-z_]\w*)+", text)):
        pkgutil.resolve_name(name)


def test_the_manifest_page_names_every_key():
    page = (ROOT / "docs" / "reference" / "manifest.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w.\[\]]+)`", page))
    header = manifest.read(
        onnxcam.augment(tiny_cnn(), gate="confidence < 0.6", labels=list("abcde"), preprocess="0..1")
    )
    assert header is not None
    assert header.keys() <= {name.split(".")[0].removesuffix("[]") for name in names}
    for part in ("input", "scores", "target"):
        assert {f"{part}.{key}" for key in header[part]} <= names
    assert {f"layers[].{key}" for key in header["layers"][0]} <= names


def test_the_gated_file_of_the_monitoring_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (
        (ROOT / "docs" / "how-to" / "monitoring.md")
        .read_text(encoding="utf-8")
        .split("## A gated file")[1]
        .split("\n## ")[0]
    )
    (condition,) = re.findall(r'--gate "([a-z].*?)"', page)
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    gated = onnxcam.augment(tiny_cnn(), gate=condition)
    header = manifest.read(gated)
    assert header is not None and f'"gate": {json.dumps(header["gate"])}' in page
    save(gated, tmp_path / "gated.onnx")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    batch = (rng.normal(size=(8, 3, 32, 32)) * rng.uniform(0, 4, (8, 1, 1, 1))).astype(np.float32)
    heatmaps: list[np.ndarray] = []
    namespace = {"onnxruntime": onnxruntime, "batch": batch, "keep": lambda picture, heatmap: heatmaps.append(heatmap)}
    exec(program, namespace)
    assert 0 < len(heatmaps) < 8 and all(heatmap.shape == (16, 16) for heatmap in heatmaps)


def test_readme_begins_with_one_line_the_installation_one_picture_and_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    title, line, install, picture, commands = text.split("\n\n")[:5]
    assert title == "# onnxcam" and "\n" not in line and len(line) <= 140
    assert install.startswith('```\npip install "onnxcam[cpu]"') and picture.startswith("![")
    assert commands == "```\nmake demo\nmake test\n```" and text.count("![") == 1


def test_the_change_log_is_cut_for_the_version_and_its_lines_are_short():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, *versions = re.split(r"^## \[", text, flags=re.MULTILINE)[1:]
    assert unreleased.startswith("Unreleased]") and versions[0].startswith(f"{onnxcam.__version__}] - ")
    assert all(len(re.findall(r"^- ", version, flags=re.MULTILINE)) <= 12 for version in versions)
    lines = [line for line in unreleased.splitlines()[1:] if line and not line.startswith("### ")]
    assert all(re.match(r"- [A-Z].*\.$", line) and len(line) <= 130 for line in lines)
    headings = re.findall(r"^### (.+)$", unreleased, flags=re.MULTILINE)
    assert headings == [name for name in ("Added", "Changed", "Fixed") if name in headings]


def test_every_make_target_named_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z]+)`", page.read_text(encoding="utf-8"))}
    assert named <= targets


def test_ci_runs_the_readme_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^\s*(exec )?make test\b", script, flags=re.MULTILINE)
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=False).returncode == 0


def test_the_index_leads_to_every_page_of_the_documentation():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)#:]+\.md)\)", text)}
    site = {page for page in PAGES if page not in (ROOT / "README.md", ROOT / "docs" / "index.md")}
    assert linked == site


def test_every_public_name_is_in_the_python_reference():
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    expanded = set(re.findall(r"^\.\. auto\w+:: onnxcam\.(\w+)(?:\(\))?$", text, flags=re.MULTILINE))
    assert expanded == (set(onnxcam.__all__) - {"OnnxcamError", "__version__"}) | {"errors"}


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link_and_loads_nothing_from_elsewhere(tmp_path: Path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--nitpicky", "--fail-on-warning", "--keep-going"]
    build = subprocess.run(
        [*command, "-c", "docs", "-d", tmp_path / "doctrees", ".", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    files = [path for path in (tmp_path / "site").rglob("*") if path.suffix in (".html", ".css")]
    assert (tmp_path / "site" / "index.html") in files and len(files) > len(PAGES)
    loads = re.compile(
        r"""<(?:script|img|iframe|source|video)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
        r"""|<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*>|url\(\s*["']?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*;"""
    )
    assert {path.name: references for path in files if (references := loads.findall(path.read_text("utf-8")))} == {}
    index = (tmp_path / "site" / "docs" / "index.html").read_text("utf-8")
    assert all(f">{title}<" in index for title in ("Tutorial", "How-to guides", "Reference", "Explanation"))


def sphinx_on(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Build a site of one page, as strictly as the real one."""
    (folder / "docs" / "index.md").write_text(text, "utf-8")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--nitpicky", "--fail-on-warning", "-c", "docs", ".", "site"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of one page without a mistake, built."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("right")
    (folder / "docs").mkdir()
    (folder / "docs" / "conf.py").write_text((ROOT / "docs" / "conf.py").read_text("utf-8"), "utf-8")
    build = sphinx_on(folder, "# Index\n")
    assert not build.returncode, build.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake", ["[lost](nowhere.md)", "[lost](#no-heading)", "```{eval-rst}\n:py:func:`onnxcam.nothing`\n```"]
)
def test_a_broken_link_or_reference_fails_the_site(tmp_path: Path, right: Path, mistake: str):
    folder = shutil.copytree(right, tmp_path / "wrong")
    build = sphinx_on(folder, f"# Index\n\n{mistake}\n")
    assert build.returncode, build.stderr
