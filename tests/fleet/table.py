"""Runs of `onnxcam batch` over small folders of pictures, and what is in their tables."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from onnxcam.cli import main
from onnxcam.fleet import tables
from tests.fleet import samples


def folder_of(where: Path, count: int, every: int = samples.EVERY_BROKEN) -> Path:
    """A folder of pictures with a folder per class; one in `every` is broken."""
    for number, data in enumerate(samples.pictures(count, every)):
        path = where / samples.NAMES[number % 5] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return where


def linked(where: Path, pictures: Sequence[Path], count: int) -> Path:
    """A folder of `count` names of some pictures, by hard links."""
    where.mkdir(parents=True)
    for number in range(count):
        source = pictures[number % len(pictures)]
        try:
            os.link(source, where / f"{number:07d}.png")
        except OSError:  # more links than a file may have
            shutil.copy(source, where / f"{number:07d}.png")
    return where


def batch(*arguments: object) -> Any:
    """`onnxcam batch` in this process."""
    return CliRunner().invoke(main, ["batch", *map(str, arguments)])


def rows(table: Path, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """Every column of a table."""
    whole: dict[str, list[Any]] = {}
    for some in tables.read(table, names):
        for name, values in some.items():
            whole.setdefault(name, []).extend(list(values))
    return whole


def same(one: Path, other: Path) -> bool:
    """Whether two tables have the same rows, to the bit, in the same parts."""
    names = [[path.name for path in tables.files_of(table)] for table in (one, other)]
    return names[0] == names[1] and not samples.differences(rows(one), rows(other))


def leftovers(table: Path) -> list[str]:
    """Files of a table's folder that are neither parts nor of the run."""
    usual = {"_run.json", "_listing", tables.SUMMARY}
    return [path.name for path in table.iterdir() if path.name not in usual and path.suffix != ".parquet"]


def summary(table: Path) -> dict[str, Any]:
    return dict(json.loads((table / tables.SUMMARY).read_bytes()))


def paths(table: Path) -> list[str]:
    return [str(path) for path in rows(table, ["path"])["path"]]
