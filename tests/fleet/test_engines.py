"""Ray, Daft and Spark, each in an environment of its own: the table of a loop, also if a worker is killed."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam.fleet import Explain
from tests.fleet import samples
from tests.support import environments

pytestmark = [pytest.mark.fleets, pytest.mark.slow]

COUNT, BROKEN = 2000, 20
SECONDS = 1800
ENGINES = {
    "ray": ("actors", "arrow", "pandas", "tasks", "killed actor", "run"),
    "daft": ("frame", "run"),
    "spark": ("mapInArrow", "killed", "run"),
}
Table = dict[str, list[Any]]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the pictures and the settings."""
    folder = tmp_path_factory.mktemp("job")
    model = samples.model(folder)
    pictures = samples.pictures(COUNT)
    confidence = Explain(model, when="never")(samples.batch(pictures[:200]))["confidence"]
    settings = {"when": f"confidence < {np.nanmedian(confidence):.6f}"}
    (folder / "pictures.pickle").write_bytes(pickle.dumps(pictures))
    (folder / "settings.json").write_text(json.dumps(settings), "utf-8")
    return folder


@pytest.fixture(scope="module")
def loop(job: Path) -> Table:
    """The table of a plain loop."""
    settings = json.loads((job / "settings.json").read_text("utf-8"))
    pictures = pickle.loads((job / "pictures.pickle").read_bytes())
    table = samples.loop(Explain(job / "model.cam.onnx", **settings), pictures, [250])
    assert sum(map(bool, table["error"])) == BROKEN and 0.3 * COUNT < sum(table["fired"]) < 0.7 * COUNT
    return table


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_gives_the_table_of_a_loop_and_survives_a_kill(
    engine: str, job: Path, loop: Table, tmp_path: Path
) -> None:
    python = environments.environment(engine)
    environment = environments.sources(tmp_path / "sources") | {"ONNXCAM_TEST_FOLDER": str(job)}
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(environments.ROOT)])
    command = [str(python), "-m", f"tests.fleet.engines.{engine}_program"]
    output = environments.run_engine(command, SECONDS, environment, tmp_path)
    # an engine may print a line of its own after it
    answer = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    assert answer["killed"] and all(answer["killed"])
    for name in ENGINES[engine]:
        table = columns(pickle.loads((job / f"{name}.pickle").read_bytes()))
        assert table["id"] == list(range(COUNT)), "rows were lost or repeated"
        assert samples.differences(loop, table) == {}, name  # one row in a run: to the bit


def columns(rows: list[dict[str, Any]]) -> Table:
    return {name: [row[name] for row in rows] for name in rows[0]}
