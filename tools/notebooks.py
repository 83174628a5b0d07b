"""Execute the notebooks of the documentation, and keep them small and stable.

    python -m tools.notebooks [NAME …]

Each is run in a fresh kernel, without a network connection. What changes from run to run without meaning (times,
versions of the kernel) is removed, so that a difference between two versions is one of content.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
SECONDS = 600  # of one cell


def names() -> list[str]:
    """Names of the notebooks, without their ending."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> Any:
    """Read a notebook."""
    import nbformat

    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def execute(name: str) -> Any:
    """Execute a notebook in a fresh kernel and return it with its outputs; a cell that fails raises."""
    from nbclient import NotebookClient

    notebook = read(name)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    return stable(notebook)


def stable(notebook: Any) -> Any:
    """Remove what differs from run to run."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = {}, f"cell-{number}"
    return notebook


def write(name: str, notebook: Any) -> None:
    """Write a notebook back."""
    import nbformat

    nbformat.validate(notebook)
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    for name in sys.argv[1:] or names():
        write(name, execute(name))
        print(f"executed {FOLDER / name}.ipynb")
