"""Two classifiers as their packages ship them, untouched: augmented, checked and explained.

qonnx's MNIST network comes from CNTK (IR 3, opset 8, weights listed as inputs), rapidocr's text-direction classifier
from PaddlePaddle (opset 11, 566 nodes, batch -1, height and width both called `?`).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

import onnxcam
from onnxcam import image
from onnxcam.cli import main
from onnxcam.network import manifest
from onnxcam.runtime import open_session, run
from tests.support.examples import rest_slow

CPU = ["CPUExecutionProvider"]
# as rapidocr prepares lines of text
TEXT = {
    "color": "BGR",
    "scale": 1 / 255,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "resize": {"mode": "stretch", "size": [48, 192]},
}


def packaged(package: str, file: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs {package} (tests/requirements-oracles.txt)")
    path = Path(spec.submodule_search_locations[0]) / file
    assert path.is_file()
    return path


def mnist() -> Path:
    return packaged("qonnx", "data/onnx/mnist-conv/model.onnx")


def direction() -> Path:
    return packaged("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx")


def tensor(name: str) -> np.ndarray:
    """A tensor that the MNIST model's package keeps next to it."""
    value = onnx.TensorProto()
    value.ParseFromString((mnist().parent / "test_data_set_0" / name).read_bytes())
    return numpy_helper.to_array(value)


def line_of_text() -> np.ndarray:
    """uint8 [48, 192, 3]: dark words on white."""
    canvas = np.full((48, 192, 3), 255, np.uint8)
    return cv2.putText(canvas, "Paying by card", (6, 32), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (20, 20, 20), 2, cv2.LINE_AA)


def command(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


MODELS: dict[str, tuple[Callable[[], Path], str, int]] = {
    "mnist": (mnist, "ReLU114_Output_0", 10),
    "direction": (direction, "hardswish_17.tmp_0", 2),
}


@pytest.mark.parametrize("name", rest_slow(MODELS))
def test_layers_export_and_check_as_the_file_came(name: str, tmp_path: Path) -> None:
    find, layer, classes = MODELS[name]
    result = json.loads(command("layers", find(), "--json").stdout)["layers"]
    assert [entry["name"] for entry in result if entry["default"]] == [layer]
    assert all(d is None or d == "N" or d > 0 for entry in result for d in entry["shape"])

    command("export", find(), "-o", tmp_path / "out.onnx")
    header = manifest.read(onnx.load(tmp_path / "out.onnx"))
    assert header is not None and header["scores"]["classes"] == classes and header["layers"][0]["value"] == layer
    for source in (find(), tmp_path / "out.onnx"):
        report = json.loads(command("check", source, "--json").stdout)
        statuses = {finding["name"]: finding["status"] for finding in report["findings"]}
        assert (
            statuses[f"gradients at {layer}"] == statuses["predictions"] == statuses[f"heatmaps at {layer}"] == "ok"
        ), statuses


def test_the_digit_is_recognised_as_its_package_says_and_explained(tmp_path: Path) -> None:
    digit, expected = tensor("input_0.pb"), tensor("output_0.pb")
    explainer = onnxcam.Explainer(mnist(), providers=CPU)
    np.testing.assert_allclose(explainer.run(digit).scores, expected, rtol=1e-4, atol=1e-2)

    image.write_png(tmp_path / "digit.png", np.repeat(digit[0, 0, :, :, None], 3, axis=2).astype(np.uint8))
    command("explain", mnist(), tmp_path / "digit.png", "-o", tmp_path / "out", "--preprocess", "raw")
    document = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert document["predictions"][0]["index"] == int(expected.argmax())
    drawn = image.load(tmp_path / "out" / "gradcam_grayscale.png").pixels[..., 0]
    ink = digit[0, 0] > 128
    assert drawn[ink].mean() > drawn[~ink].mean()


@pytest.mark.slow
def test_text_upside_down_is_told_from_upright_text_and_explained(tmp_path: Path) -> None:
    explainer = onnxcam.Explainer(direction(), labels=["0", "180"], preprocess=TEXT, providers=CPU)
    upright = line_of_text()
    for pixels, label in ((upright, "0"), (upright[::-1, ::-1], "180")):
        explanation = explainer.explain(pixels)
        assert (
            explanation.label == label and explanation.heatmap.shape == (48, 192) and explanation.heatmap.max() > 0.99
        )
        assert not explanation.warnings, explanation.warnings

    image.write_png(tmp_path / "line.png", upright)
    (tmp_path / "text.json").write_text(json.dumps(TEXT))
    command(
        "explain", direction(), tmp_path / "line.png", "-o", tmp_path / "out", "--preprocess", tmp_path / "text.json"
    )
    assert json.loads((tmp_path / "out" / "explanation.json").read_text())["predictions"][0]["index"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 192), (32, 100), (80, 160)])
def test_the_size_stays_free_and_predictions_are_those_of_the_file(size: tuple[int, int]) -> None:
    model = onnxcam.augment(direction())
    header = manifest.read(model)
    assert header is not None and header["input"]["shape"] == ["N", 3, None, None]
    batch = np.random.default_rng(5).uniform(-1, 1, (3, 3, *size)).astype(np.float32)
    plain = onnxruntime.InferenceSession(direction(), providers=CPU)
    before = plain.run(None, {"x": batch})[0]
    names = [plain.get_outputs()[0].name, "activations", "gradients", "heatmap"]
    after, a, g, maps = run(open_session(model.SerializeToString(), CPU), names, {"x": batch}).values()
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-7)
    assert a.shape == g.shape == (3, 200, *maps.shape[1:]) and maps.shape[0] == 3
    assert np.isfinite(maps).all() and np.abs(g).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["raw", "-1..1"])
def test_a_preset_cannot_know_an_open_size(preset: str) -> None:
    with pytest.raises(onnxcam.OnnxcamError, match=r'whose size is dynamic.*"size": \[height, width\]'):
        onnxcam.Explainer(direction(), preprocess=preset, providers=CPU).explain(line_of_text())
