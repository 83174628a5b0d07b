"""The notebooks run from the first cell to the last, and what they say of numbers is what they compute."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from tools import notebooks

LARGEST = 1 << 20  # bytes of a notebook


def texts(notebook: Any) -> list[str]:
    """What each cell prints."""
    return [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def pictures(notebook: Any) -> list[int]:
    """How many pictures each cell shows."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [sum(any(kind.startswith("image/") for kind in one.get("data", {})) for one in outputs) for outputs in cells]


def rounded(text: str) -> list[float]:
    """The numbers of a text, to compare runs on different processors."""
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)]


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_runs_and_shows_what_is_in_it(name: str) -> None:
    pytest.importorskip("nbclient")
    before, after = notebooks.read(name), notebooks.execute(name)
    assert pictures(before) == pictures(after) and sum(pictures(after)) >= 5
    for mine, other in zip(texts(before), texts(after), strict=True):
        assert re.sub(r"[-\d.e+]+", "", mine) == re.sub(r"[-\d.e+]+", "", other)
        assert rounded(mine) == pytest.approx(rounded(other), rel=0.1, abs=0.02), (mine, other)


@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_is_executed_small_and_says_nothing_of_the_machine(name: str) -> None:
    path = notebooks.FOLDER / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.reads(text, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "from the first to the last"
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", output
            words = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            assert "/home/" not in words and sys.prefix not in words and "/work/" not in words
