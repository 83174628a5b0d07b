"""Every registered rule is tested, and every tested operator has a rule."""

from importlib import import_module
from pathlib import Path

import onnxcam.autodiff
from tests.autodiff.harness import covered


def test_every_rule_is_tested() -> None:
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        import_module(f"tests.autodiff.{path.stem}")
    assert covered() == onnxcam.autodiff.registered()
