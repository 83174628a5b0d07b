"""The functions of `onnxcam.inside` are reached by name, and no module of the package hides one."""

from __future__ import annotations

from pathlib import Path

from onnxcam import inside


def test_no_module_hides_a_function() -> None:
    modules = {path.stem for path in Path(inside.__file__).parent.glob("*.py")}
    assert not modules & set(inside.__all__)


def test_every_name_leads_to_a_function() -> None:
    assert all(callable(getattr(inside, name)) for name in inside.__all__)
    assert set(inside.__all__) == set(inside._LAZY)
