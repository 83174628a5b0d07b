"""The documentation agrees with the code, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import onnxcam
from onnxcam.graph.load import save
from onnxcam.network import manifest
from tests.support.models import tiny_cnn

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md"), *ROOT.glob("benchmarks/*.md")])


def test_command_line_page_is_what_the_commands_say():
    spec = importlib.util.spec_from_file_location("build_command_line", ROOT / "docs" / "build_command_line.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # words, not layout: releases of click wrap and indent differently
    written, said = (
        re.findall(r"[\w-]{2,}", text) for text in (module.PAGE.read_text(encoding="utf-8"), module.page())
    )
    assert written == said, "run python docs/build_command_line.py"


@pytest.mark.parametrize("name", ["methods", "operators"])
def test_page_is_what_the_registry_says(name: str):
    spec = importlib.util.spec_from_file_location(f"build_{name}", ROOT / "docs" / f"build_{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), f"run python docs/build_{name}.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_gated_file_of_the_monitoring_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8").split("## A gated file")[1].split("\n## ")[0]
    (condition,) = re.findall(r'--gate "([a-z].*?)"', page)
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    gated = onnxcam.augment(tiny_cnn(), gate=condition)
    held = manifest.read(gated)
    assert held is not None and f'"gate": {json.dumps(held["gate"])}' in page
    save(gated, tmp_path / "gated.onnx")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    batch = (rng.normal(size=(8, 3, 32, 32)) * rng.uniform(0, 4, (8, 1, 1, 1))).astype(np.float32)
    kept: list[np.ndarray] = []
    told = {"onnxruntime": onnxruntime, "batch": batch, "keep": lambda picture, heatmap: kept.append(heatmap)}
    exec(program, told)
    assert 0 < len(kept) < 8 and all(heatmap.shape == (16, 16) for heatmap in kept)


def test_readme_has_one_picture_and_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.split("\n\n")[1].startswith("![")
    assert re.search(r"```\nmake demo\nmake test\n```", text)


def test_every_make_target_named_in_the_docs_exists():
    made = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z]+)`", page.read_text(encoding="utf-8"))}
    assert named <= made


def test_ci_runs_the_readme_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^\s*(exec )?make test\b", script, flags=re.MULTILINE)
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=False).returncode == 0
