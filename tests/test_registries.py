"""Registering walks the packages of rules, methods and metrics: a new file is enough, from a folder or a zip file."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import onnxcam
from onnxcam.autodiff import registered
from onnxcam.cam.methods import methods
from onnxcam.evaluation.metrics import metrics

NEW = {
    "autodiff/rules/invented.py": """
from onnxcam.autodiff.registry import vjp
vjp("Invented")(lambda op, node, dy: [dy])
""",
    "cam/methods/invented.py": """
from onnxcam.cam.registry import cam_method
cam_method("invented")(lambda op, a, da: a)
""",
    "evaluation/metrics/aaa.py": """
from onnxcam.evaluation.registry import metric
metric("invented", title="", better="lower")(lambda trial: trial.whole)
""",
}
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import onnxcam
from onnxcam.autodiff import registered
from onnxcam.cam.methods import methods
from onnxcam.evaluation.metrics import metrics
print(json.dumps([onnxcam.__file__, sorted(registered()), methods(), metrics()]))
"""


@pytest.mark.slow
def test_a_new_file_is_registered_even_in_a_zip_file(tmp_path: Path) -> None:
    package = Path(onnxcam.__file__).parent
    archive = tmp_path / "onnxcam.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(package.rglob("*.py"), reverse=True):  # the order of the archive must not matter
            file.write(path, f"onnxcam/{path.relative_to(package).as_posix()}")
        for name, source in NEW.items():
            file.writestr(f"onnxcam/{name}", source)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(archive)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    origin, rules, names, measures = json.loads(done.stdout)
    assert origin.startswith(str(archive))
    assert rules == sorted({*registered(), "Invented"})
    assert [name for name in names if name != "invented"] == methods() and "invented" in names
    assert measures == [*metrics(), "invented"]  # a family that the tables have no place for comes last
