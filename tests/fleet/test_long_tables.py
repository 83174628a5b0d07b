"""Tables at length: 2,000 pictures of which 20 are broken, memory over 100,000 rows, and every engine's own table."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from onnxcam.fleet import Explain
from tests.fleet import samples, table

ROWS = int(os.environ.get("ONNXCAM_TABLE_ROWS", "100000"))  # fewer to try it
GROWTH = 24 << 20  # bytes of resident memory after the first tenth: those of buffers that come and go


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return samples.model(tmp_path_factory.mktemp("model"))


@pytest.mark.fleets
def test_two_thousand_pictures_of_which_twenty_are_broken(model: Path, tmp_path: Path) -> None:
    pictures = table.folder_of(tmp_path / "pictures", 2000)
    result = table.batch(model, pictures, "-o", tmp_path / "t", "--rows-per-part", 300)
    assert result.exit_code == 1 and result.stderr.count("Error: ") == 20, result.stderr
    rows = table.rows(tmp_path / "t")
    paths = sorted(pictures.rglob("*.png"))
    assert rows.pop("path") == [path.relative_to(pictures).as_posix() for path in paths]
    assert sum(bool(error) for error in rows["error"]) == table.summary(tmp_path / "t")["counts"]["failed"] == 20
    explain = Explain(model, column="picture")
    loop: dict[str, list[object]] = {name: [] for name in rows}
    for start in range(0, len(paths), 123):
        some = samples.column([str(path) for path in paths[start : start + 123]])
        for name, values in explain({"picture": some}).items():
            loop[name] += list(values)
    for row, error in enumerate(rows["error"]):  # what does not apply is an empty array in a batch, and null in a table
        for name in ("top", "top_confidence", "map", "map_box"):
            if error:
                assert rows[name][row] is None
                loop[name][row] = None
    assert not samples.differences(loop, rows)


@pytest.mark.fleets
def test_memory_stays_flat_over_a_hundred_thousand_rows(model: Path, tmp_path: Path) -> None:
    few = sorted(table.folder_of(tmp_path / "few", 100, every=50).rglob("*.png"))
    pictures = table.linked(tmp_path / "pictures", few, ROWS)
    command = [sys.executable, "-m", "onnxcam", "batch", str(model), str(pictures), "-o", str(tmp_path / "t")]
    sizes: list[tuple[int, int]] = []
    with subprocess.Popen([*command, "--rows-per-part", "1000"], stderr=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                parts = len(list((tmp_path / "t").glob("*.parquet")))
                sizes.append((parts, watched.memory_info().rss))
            except (OSError, psutil.NoSuchProcess):
                pass
            time.sleep(0.2)
    assert process.returncode == 1
    whole = ROWS // 1000
    early = [size for parts, size in sizes if whole * 0.05 <= parts <= whole * 0.2]
    late = [size for parts, size in sizes if parts >= whole * 0.8]
    grown = np.median(late) - np.median(early)
    print(f"{ROWS:,} rows: {np.median(early) / 2**20:.0f} MiB early, {np.median(late) / 2**20:.0f} late")
    assert grown < GROWTH
    assert len(table.paths(tmp_path / "t")) == ROWS
