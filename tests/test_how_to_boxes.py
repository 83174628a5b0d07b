"""The commands and the Python of docs/how-to/boxes.md work, on small files of each task."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxcam
from onnxcam import image
from onnxcam.cli import main
from tests.support import detectors

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "boxes.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(onnxcam (?:explain|export) .*)$", PAGE, flags=re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
FORMS = {"detector": "yolov8", "segmentation": "segment", "embedding": "embed", "values": "regress-two"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names."""
    monkeypatch.chdir(tmp_path)
    for name, form in FORMS.items():
        onnx.save(detectors.build(form), f"{name}.onnx")
    pixels = (detectors.pictures(1)[0].transpose(1, 2, 0) * 255).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    image.write_png("street.png", pixels)
    image.write_png("other.png", np.ascontiguousarray(pixels[:, ::-1]))
    np.save("vector.npy", np.arange(detectors.DIMENSIONS, dtype=np.float32))
    return tmp_path


@pytest.mark.sample(3)
@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines(place: Path, command: str) -> None:
    result = CliRunner().invoke(main, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert (place / "out" / "panel.png").is_file() or " export " in command


@pytest.mark.slow
def test_python_blocks(place: Path) -> None:
    export = next(command for command in COMMANDS if " export " in command)
    assert CliRunner().invoke(main, shlex.split(export)[1:]).exit_code == 0
    names: dict[str, object] = {"onnxcam": onnxcam}
    for block in BLOCKS:
        exec(block, names)
    assert np.asarray(names["heatmap"]).shape == (1, 8, 12)
