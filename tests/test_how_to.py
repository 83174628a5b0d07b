"""The commands of explain.md and look-inside.md in docs/how-to and the Python of embed.md work, on a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
import tifffile
from click.testing import CliRunner

import onnxcam
from onnxcam import image
from onnxcam.cli import main
from onnxcam.graph import load
from tests.image.pictures import noise
from tests.support import models

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
COMMANDS = re.findall(r"`(onnxcam [^`]+)`", (HOW_TO / "explain.md").read_text(encoding="utf-8"))
COMMANDS += re.findall(r"`(onnxcam [^`]+ model[^`]+)`", (HOW_TO / "look-inside.md").read_text(encoding="utf-8"))
BLOCKS = re.findall(r"```python\n(.*?)```", (HOW_TO / "embed.md").read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    names = ["tabby", "tiger cat", "hen", "crane", "cow"]
    model = models.tiny_cnn()
    for node in model.graph.node:
        for values in (node.input, node.output):
            for at, value in enumerate(values):
                values[at] = {"relu1": "layer3", "relu2": "layer4"}.get(value, value)
    load.save(onnxcam.augment(model, labels=names, preprocess="0..1"), "model.onnx")
    onnx.save(models.tiny_cnn(channels=1, size=64), "sketch.onnx")
    load.save(onnxcam.augment(models.tiny_cnn(channels=12), labels=names), "net.onnx")
    scene = np.random.default_rng(0).integers(0, 10_000, (40, 60, 12)).astype(np.uint16)
    tifffile.imwrite("scene.tif", scene, photometric="minisblack", planarconfig="contig")
    np.save("prepared.npy", np.random.default_rng(0).normal(size=(1, 12, 32, 32)).astype(np.float32))
    Path("class_indices.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    for folder in ("photos", "sorted/hen", "sorted/tiger_cat"):
        Path(folder).mkdir(parents=True)
    for name in ("cat.jpg", "photos/1.png", "photos/2.png", "cat.png", "sorted/hen/1.png", "sorted/tiger_cat/2.png"):
        image.write_png(name, noise(40, 60))
    return tmp_path


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(("onnxcam export", "onnxcam bench"))])
def test_command_lines(place: Path, command: str) -> None:
    result = CliRunner().invoke(main, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    if " explain " in command and "photos" not in command and "sorted" not in command:
        assert (place / "out" / "panel.png").is_file()


def test_side_by_side_is_the_line_above_with_a_flag(place: Path) -> None:
    command = next(c for c in COMMANDS if c.count("--layer") == 2)
    result = CliRunner().invoke(main, [*command.split()[1:], "--side-by-side"])
    assert result.exit_code == 0 and (place / "out" / "layers.png").is_file()


def test_python_blocks(place: Path) -> None:
    names: dict = {
        "onnxcam": onnxcam,
        "batch": np.zeros((2, 3, 32, 32), np.float32),
        "paths": ["photos/1.png", "photos/2.png"],
        "out": place / "stream",
    }
    for block in BLOCKS:
        exec(block, names)
        assert len(names["e"].per_layer) == (2 if "side_by_side" in block else 0)
        assert len(names["e"].per_method) == (2 if "methods_panel" in block else 0)
    assert names["scores"].shape == (2, 5) and names["heatmaps"].shape == (2, 32, 32)
    assert (place / "out" / "panel.png").is_file()
    assert len(list((place / "stream").glob("*/panel.png"))) == 2
