"""Every block of docs/how-to/from-pytorch-grad-cam.md runs, and the numbers are the same where the page says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onnxcam.cam.methods import methods

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "how-to" / "from-pytorch-grad-cam.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
# torchvision on a CPU-only torch needs a helper before it imports
PREAMBLE = "from tests.support.torchvision_stub import import_torchvision\nimport_torchvision()\n"


@pytest.mark.slow
@pytest.mark.torch
def test_every_block_runs_and_its_numbers_are_the_same(tmp_path: Path) -> None:
    for package in ("torch", "torchvision", "pytorch_grad_cam"):
        if not any((Path(folder) / package).is_dir() for folder in sys.path):
            pytest.skip(f"{package} is not installed")
    # blank lines keep the page's line numbers in a traceback
    text = re.sub(r"^```python\n(.*?)^```$", lambda m: f"\0\n{m[1]}\0", PAGE, flags=re.DOTALL | re.MULTILINE)
    parts = text.split("\0")
    lines = "".join(part if index % 2 else "\n" * part.count("\n") for index, part in enumerate(parts))
    script = tmp_path / "page.py"
    script.write_text(lines, "utf-8")
    run = f"{PREAMBLE}import runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", run],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "one per picture" in done.stdout, done.stdout  # the refusal that the page shows
    assert (tmp_path / "out" / "explanation.json").is_file()


def test_the_page_claims_as_much_as_it_asserts() -> None:
    assert len(BLOCKS) >= 14
    assert sum(block.count("assert ") for block in BLOCKS) >= 12
    compared = [block for block in BLOCKS if "before = cam(" in block]
    after = "".join(BLOCKS)
    assert len(compared) >= 10 and after.count("assert same(") >= 10


def test_the_page_promises_only_methods_that_there_are() -> None:
    promised = set(re.findall(r'method="([\w+]+)"', PAGE))
    assert promised and promised <= set(methods())
