"""What importing onnxcam costs: which modules it loads, in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import onnxcam

# the finder that an editable installation adds; nothing else from outside the standard library
ALLOWED = ("__editable__",)
# importlib.metadata alone loads about 70 (email, zipfile, csv …)
MOST_MODULES = 130


def loaded(statement: str) -> set[str]:
    """Modules that a statement loads beyond those of a bare interpreter."""
    script = (
        f"import sys; before = set(sys.modules); {statement}; after = set(sys.modules)\n"
        "import json; print(json.dumps([*after - before]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def foreign(modules: set[str]) -> set[str]:
    tops = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"onnxcam"}
    return {top for top in tops if not top.startswith(ALLOWED)}


def test_import_loads_nothing_from_outside() -> None:
    modules = loaded("import onnxcam")
    assert foreign(modules) == set()
    assert {name for name in modules if name.startswith("onnxcam.")} == set()
    assert len(modules) < MOST_MODULES


def test_nothing_is_loaded_before_the_command_takes_care_of_an_interruption() -> None:
    """Until then Ctrl-C prints Python's traceback; how long that is depends on what these modules load."""
    assert loaded("import onnxcam.__main__") <= {"__future__", "gc", "onnxcam", "onnxcam.__main__"}


def test_command_line_loads_click_only() -> None:
    assert foreign(loaded("import onnxcam.cli")) == {"click"}


@pytest.mark.parametrize(
    ("statement", "never"),
    [
        ("from onnxcam import Explainer", {"torch", "tensorflow", "keras", "cv2", "sympy", "onnx"}),
        ("from onnxcam import augment", {"torch", "tensorflow", "keras", "cv2", "onnxruntime", "sympy"}),
        ("from onnxcam import gradient", {"torch", "tensorflow", "keras", "cv2", "onnxruntime", "sympy"}),
    ],
)
def test_public_names_load_no_more_than_they_need(statement: str, never: set[str]) -> None:
    assert foreign(loaded(statement)) & never == set()


@pytest.mark.parametrize("name", onnxcam.__all__)
def test_public_name_is_there(name: str) -> None:
    assert getattr(onnxcam, name) is not None
    assert name in dir(onnxcam)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = onnxcam.nonsense
