"""The recipes of docs/how-to/fleets.md run as they stand, each engine's in an environment of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from onnxcam import models
from onnxcam.fleet import Explain
from tests.support import environments

RECIPES = environments.ROOT / "docs" / "recipes" / "fleets"
PAGE = environments.ROOT / "docs" / "how-to" / "fleets.md"
ENGINES = {"ray_data": "ray", "daft_frame": "daft", "spark_frame": "spark"}
SECONDS = 900


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("cat.png", "coffee.png", "cat_and_coffee.png"):
        (folder / name).write_bytes(models.path(name).read_bytes())
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.mark.slow
def test_loop(pictures: Path) -> None:
    command = [sys.executable, str(RECIPES / "loop.py"), str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and "broken.png" in lines[0] and "not a picture" in lines[0]
    assert re.fullmatch(r"coffee.png: espresso 0\.\d\d", lines[3])
    assert lines[1].endswith(" explained") and lines[2].endswith(" explained")


@pytest.mark.fleets
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ENGINES)
def test_engine(recipe: str, pictures: Path, tmp_path: Path) -> None:
    python = environments.environment(ENGINES[recipe])
    out = tmp_path / "out"
    command = [str(python), str(RECIPES / f"{recipe}.py"), str(pictures), str(out)]
    with tempfile.TemporaryDirectory(prefix="r") as short:  # Ray's sockets lie below it: at most 107 bytes of a path
        environment = environments.sources(tmp_path / "sources") | {"TMPDIR": short}
        output = environments.run_engine(command, SECONDS, environment, tmp_path)
    assert "4 rows" in output.splitlines()
    read = "import sys, pyarrow.dataset as d; t = d.dataset(sys.argv[1], format='parquet').to_table(); "
    read += "print(sorted(zip(t['label'].to_pylist(), t['error'].to_pylist(), strict=True), key=str))"
    files = sorted(str(path) for path in out.rglob("*.parquet"))
    assert files
    process = subprocess.run([str(python), "-c", read, str(out)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("espresso") == 2 and "not a picture" in process.stdout


@pytest.mark.slow
def test_the_page_shows_the_call_that_it_describes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.cam.onnx").write_bytes(models.path(models.MODEL).read_bytes())
    for name in ("a.jpg", "b.jpg"):
        Path(name).write_bytes(models.path("cat.png").read_bytes())
    block = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)[0]
    names: dict[str, object] = {}
    exec(block, names)
    assert isinstance(names["explain"], Explain)
    table = names["table"]
    assert isinstance(table, dict) and list(table["order"]) == [17, 18] and "path" not in table
    assert set(table["label"]) == {"tiger cat"} and len(table["map"][0]) == 49


def test_every_recipe_is_in_the_page() -> None:
    page = PAGE.read_text("utf-8")
    for recipe in RECIPES.iterdir():
        assert f"recipes/fleets/{recipe.name}" in page
        assert recipe.stem in (*ENGINES, "loop")
