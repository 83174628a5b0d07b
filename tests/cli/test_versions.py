"""The versions that results name are those of the installed packages."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from onnxcam.cli.versions import versions


def test_they_are_what_the_installer_says() -> None:
    numbers = versions()
    assert {"onnxcam", "numpy"} < numbers.keys() and len(numbers) == 4
    assert numbers == {package: metadata.version(package) for package in numbers}


def test_what_cannot_be_imported_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime.capi.build_and_package_info", "cv2", "cv2.version"):
        monkeypatch.setitem(sys.modules, name, None)
    assert versions().keys() == {"onnxcam", "numpy"}
