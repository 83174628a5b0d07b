"""What the commands are tried on: a tiny model, plain and explainable, and a few pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxcam
from onnxcam import image
from onnxcam.cli import main
from onnxcam.graph import load
from tests.cli.calls import servers_that_end, workshop  # noqa: F401 - fixtures
from tests.exporters.conftest import few_collections  # noqa: F401 - a fixture
from tests.support import models

LABELS = ["cat", "tiger cat, tiger", "crane", "hen", "crane"]
RAW = {"color": "RGB", "scale": 1 / 255, "resize": {"mode": "stretch", "size": [32, 32]}}


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The one line on standard error."""
        assert "Traceback" not in self.err and self.err.count("\n") == 1, self.err
        assert self.err.startswith("Error: "), self.err
        return self.err.strip()


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `onnxcam` in this process."""
    monkeypatch.delenv("ONNXCAM_DEBUG", raising=False)

    def invoke(*arguments: object, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
        return Result(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain classifier file that says nothing of labels or preprocessing."""
    path = tmp_path_factory.mktemp("plain") / "tiny.onnx"
    onnx.save(models.tiny_cnn(), path)
    return path


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An explainable file with labels and preprocessing."""
    path = tmp_path_factory.mktemp("ready") / "ready.onnx"
    load.save(onnxcam.augment(models.tiny_cnn(), labels=LABELS, preprocess=RAW), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a.png and a.jpg (one picture, one stem), sub/b.png, and files that are not to be found."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    rng = np.random.default_rng(1234)
    for name in ("a.png", "sub/b.png", ".hidden/c.png", ".d.png"):
        image.write_png(folder / name, noise(rng))
    (folder / "a.jpg").write_bytes((folder / "a.png").read_bytes())
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def photo(photos: Path) -> Path:
    return photos / "a.png"


def noise(rng: np.random.Generator, height: int = 40, width: int = 60) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def tree(folder: Path) -> set[str]:
    """Every file below a folder."""
    return {
        os.path.relpath(Path(where) / name, folder).replace(os.sep, "/")
        for where, _, names in os.walk(folder)
        for name in names
    }
