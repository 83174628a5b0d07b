"""The table of columns in docs/how-to/fleets.md, from `onnxcam.fleet.columns`."""

from __future__ import annotations

from pathlib import Path

from onnxcam.fleet.columns import columns
from tools.pages import fill

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "fleets.md"


def page() -> str:
    """The page as Markdown."""
    return fill(PAGE.read_text(encoding="utf-8"), "fleet columns", "\n".join(_table()))


def _table() -> list[str]:
    rows = ["| column | Arrow, Parquet | NumPy | what it is |", "|---|---|---|---|"]
    for column in columns(overlay=True):
        arrow = column.kind.arrow.replace("element: ", "") + ("" if column.always else ", null")
        array = column.kind.dtype if column.kind.item is None else f"arrays of {column.kind.item}"
        rows.append(f"| `{column.name}` | {arrow} | {array} | {column.meaning} |")
    return rows
