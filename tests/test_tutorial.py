"""The tutorial's commands give the output that it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "tutorial.md").read_text("utf-8")


def commands(text: str) -> list[tuple[str, str]]:
    """Each command of the console blocks with the standard output shown below it."""
    result = []
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            result.append((command, output))
    return result


def settled(text: str) -> str:
    """Rounding differs between processors: the exponents of the parity line are left out."""
    return re.sub(r"\d\.\de[+-]\d\d", "#", text)


@pytest.mark.slow
def test_from_a_keras_file_to_a_heatmap(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    pytest.importorskip("tf2onnx")
    (tmp_path / "models").symlink_to(ROOT / "models")
    typed = commands(TEXT)
    assert len(typed) == 7
    environment = os.environ | {"PYTHONPATH": "", "COLUMNS": "120"}
    for command, output in typed:
        line = command.replace("onnxcam ", f"{shlex.quote(sys.executable)} -m onnxcam ", 1)
        done = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        if output:
            assert settled(done.stdout) == settled(output), command
    for folder in ("three", "nine", "rather", "digits/wrong_9_as_3"):
        assert (tmp_path / folder / "panel.png").is_file()
    assert len(list((tmp_path / "digits").rglob("hirescam_top2_*.png"))) == 6

    code = "".join(re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL))
    code += "\nassert contrast.title == '9 rather than 3'"
    code += "\nassert e.predictions[0][:2] == (3, '3') and round(e.predictions[0][2], 2) == 0.93 and e.label == '9'"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)
