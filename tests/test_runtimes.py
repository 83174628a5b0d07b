"""Explainable files in other runtimes: right within 2e-2 of ONNX Runtime, or refused; never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import runtimes
from tests.support.runtimes import Case

ROOT = Path(__file__).parent.parent
MUST_RUN = {"openvino": ("required", "constant", "portable"), "tract": ("portable",)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return list(runtimes.cases(tmp_path_factory.mktemp("runtimes"), ("required", "constant", "portable"), (3,)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "tract"])
def test_right_or_refused(name: str, files: list[Case]) -> None:
    pytest.importorskip(name)
    outputs: Callable[[Case], Any] = getattr(runtimes, name)
    verdicts = {
        (case.kind, case.network, case.form, len(case.feeds["input"])): case.verdict(outputs(case)) for case in files
    }
    assert not {key: verdict for key, verdict in verdicts.items() if verdict.startswith("wrong")}
    right = [key for key, verdict in verdicts.items() if verdict == "right"]
    for kind in runtimes.KINDS:
        for form in MUST_RUN[name]:
            if not (name == "tract" and kind == "behind tokens"):  # its optimiser fails on the gradient of attention
                assert any(key[0] == kind and key[2] == form for key in right), (kind, form)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_node_gives_pythons_numbers(package: str, files: list[Case]) -> None:
    outputs = runtimes.node(ROOT / "build" / "runtimes")
    if outputs is None:
        pytest.skip("Node is not installed")
    verdicts = [case.verdict(result) for case, result in zip(files, outputs(package, files), strict=True)]
    assert set(verdicts) == {"right"}
