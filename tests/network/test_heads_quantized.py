"""Heads of files that quantize_dynamic wrote: read as those of the float file, by the numbers of the file itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static

import onnxcam
from onnxcam.errors import ModelError
from onnxcam.network.network import Network
from tests.network.test_heads import predictions
from tests.support import heads
from tests.support.runtime import run

PICTURE = np.random.default_rng(9).normal(size=(1, 3, 12, 12)).astype(np.float32)
LINEAR = ["MatMulInteger", "Cast", "Mul"]


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Pictures to calibrate on."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._left = [generator.normal(size=(4, 3, 12, 12)).astype(np.float32) for _ in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"x": self._left.pop()} if self._left else None


def quantized(name: str, folder: Path) -> onnx.ModelProto:
    path = folder / "quantized.onnx"
    quantize_dynamic(heads.build(heads.RECIPES[name], 7, seed=1), path)
    return onnx.load(path)


@pytest.mark.sample(12)
@pytest.mark.parametrize("name", heads.RECIPES)
def test_a_head_is_read_as_that_of_the_float_file(name: str, tmp_path: Path) -> None:
    recipe, model = heads.RECIPES[name], quantized(name, tmp_path)
    assert {*LINEAR} <= {node.op_type for node in model.graph.node}
    if not recipe.kinds:
        with pytest.raises(ModelError, match=r"scores=.*--scores"):
            Network(model)
        return
    network, _, p = predictions(model, PICTURE)
    assert network.readout.kind in recipe.kinds and bool(network.readout.warnings) is recipe.warned
    if recipe.probabilities is None:
        return
    expected = np.asarray(recipe.probabilities(run(model, PICTURE)), np.float64)
    if network.readout.signed:
        expected = np.concatenate([1 - expected, expected], axis=1)
    expected = expected[:, : network.readout.size]
    assert np.nanmax(np.abs(p - expected)) <= recipe.loose


@pytest.mark.parametrize("name", ["sigmoid, clip", "topk of a softmax", "softmax in percent"])
def test_what_was_softmaxed_again_or_read_by_rank(name: str, tmp_path: Path) -> None:
    model = quantized(name, tmp_path)
    expected = np.asarray(heads.RECIPES[name].probabilities(run(model, PICTURE)), np.float64)  # type: ignore[misc]
    assert np.abs(onnxcam.Explainer(model).predict(PICTURE) - expected).max() <= 2e-6


def test_whole_numbers_behind_a_convolution(tmp_path: Path) -> None:
    """A head of 1 x 1 convolutions, which is a ConvInteger, is not run back to the picture."""
    model = quantized("mean over places", tmp_path)
    assert Network(model).readout.kind == "probabilities"


def statically_quantized(name: str, folder: Path) -> onnx.ModelProto:
    onnx.save(heads.build(heads.RECIPES[name], 7, seed=1), folder / "float.onnx")
    quantize_static(folder / "float.onnx", folder / "quantized.onnx", Pictures())
    return onnx.load(folder / "quantized.onnx")


@pytest.mark.parametrize(
    "name",
    [
        "vote of two", "vote in percent", "vote times 255", "vote by MatMul", "label smoothing", "one against the rest",
        "one against the rest, in percent", "sigmoids averaged", "sigmoids averaged, in percent", "vote in 8 bits",
    ],
)  # fmt: skip
def test_ranges_of_a_static_quantization_do_not_hide_what_numbers_are(name: str, tmp_path: Path) -> None:
    """Ranges that were measured on pictures cut random values off: neither do their rows sum to 100, nor are they
    below the bound of others."""
    recipe, model = heads.RECIPES[name], statically_quantized(name, tmp_path)
    pictures = np.random.default_rng(3).normal(size=(4, 3, 12, 12)).astype(np.float32) * np.float32(0.5)
    explainer = onnxcam.Explainer(model)
    readout = explainer.terms.readout
    assert readout.kind in recipe.kinds
    expected = np.asarray(recipe.probabilities(run(model, pictures)), np.float64)  # type: ignore[misc]
    assert np.abs(explainer.predict(pictures) - expected).max() <= 2e-2
    explainable = onnxcam.augment(onnxcam.augment(model), methods=("hirescam",))
    assert onnxcam.Explainer(explainable).terms.readout.scale == readout.scale


def test_a_range_that_cuts_probabilities_off_is_told(tmp_path: Path) -> None:
    warnings = Network(statically_quantized("sigmoids added", tmp_path)).readout.warnings
    (warning,) = [text for text in warnings if "without the quantization" in text]
    assert "'y' differs by up to" in warning and "shown and explained" in warning
