"""Explainable files in other runtimes: right within 2e-2 of ONNX Runtime, or refused; never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxcam
from tests.support import runtimes
from tests.support.batches import distance
from tests.support.runtime import run
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


@pytest.mark.slow
def test_openvino_transposes_square_weights_of_eight_bits(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    source = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,16,16] input) => (float[N,6] logits) {
        a = Conv<pads = [1, 1, 1, 1]>(input, w)  p = GlobalAveragePool(a)  f = Flatten(p)
        d = DequantizeLinear(q, s, z)  m = MatMul(f, d)  r = Relu(m)  logits = MatMul(r, h) }"""
    )
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "q": rng.integers(-127, 128, (8, 8)).astype(np.int8),
        "s": np.asarray(0.02, np.float32),
        "z": np.asarray(0, np.int8),
        "h": rng.normal(size=(8, 6)).astype(np.float32),
    }
    source.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    model = onnxcam.augment(source, "a", target=2)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    feeds = {"input": rng.normal(size=(2, 3, 16, 16)).astype(np.float32)}
    expected = run(model, feeds, outputs=["logits", "gradients"], optimise=False)
    outputs = runtimes.openvino(Case("", "", "", path, feeds, (), expected))
    assert not isinstance(outputs, str)
    assert all(distance(outputs[name], value) < 1e-5 for name, value in expected.items())
