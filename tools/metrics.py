"""The table of docs/reference/metrics.md, from the docstrings of the metrics: formula, then meaning."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from onnxcam.evaluation.metrics import find, metrics
from onnxcam.evaluation.registry import Metric
from onnxcam.explain.texts import spelled
from tools.pages import fill

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "metrics.md"


def page() -> str:
    """The page as Markdown."""
    return fill(PAGE.read_text(encoding="utf-8"), "metrics", "\n".join(_table()))


def _table() -> list[str]:
    rows = ["| metric | meaning | formula, source | better | options |", "|---|---|---|---|---|"]
    for name in metrics():
        metric = find(name)
        options = ", ".join(f"`{key}={spelled(value)}`" for key, value in metric.options.items())
        formula = re.sub(r"(https?://\S+?)([.,;)]?(?:\s|$))", r"[source](\1)\2", metric.formula)
        cells = [f"`{name}`", meaning(metric), formula, metric.arrow, options]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def meaning(metric: Metric) -> str:
    """The docstring after its formula, on one line."""
    _, _, rest = (inspect.getdoc(metric.function) or "").partition("\n\n")
    return " ".join(rest.split())
