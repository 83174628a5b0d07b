"""`onnxcam layers` and `onnxcam check`."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxcam
from onnxcam import models as onnxcam_models
from onnxcam.graph import load
from tests.cli.conftest import Run
from tests.graph import transformers
from tests.support import models


def test_a_plain_model(run: Run, plain: Path) -> None:
    listing = run("layers", plain, "--json").json()
    assert listing["explainable"] is None
    assert listing["layers"] == [
        {"name": "relu1", "shape": ["N", 8, 32, 32], "layout": "NCHW", "grid": [32, 32], "prefix_tokens": 0,
         "default": False, "covers": "all", "window": None, "outputs": None},
        {"name": "relu2", "shape": ["N", 16, 16, 16], "layout": "NCHW", "grid": [16, 16], "prefix_tokens": 0,
         "default": True, "covers": "all", "window": None, "outputs": None},
    ]  # fmt: skip
    rows = run("layers", plain).out.splitlines()
    assert rows[2].split() == ["*", "relu2", "[N,", "16,", "16,", "16]", "all", "NCHW"]


def test_a_transformer(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "vit.onnx"
    load.save(transformers.vit(), path)
    listing = run("layers", path, "--json").json()["layers"]
    assert [layer["name"] for layer in listing] == ["c", "a1", "n2"] and listing[-1]["default"]
    assert (listing[-1]["grid"], listing[-1]["prefix_tokens"]) == ([4, 6], 1)
    assert run("layers", path).out.splitlines()[-1] == "*  n2     [N, 25, 8]    all     NTC, 4 x 6 after 1"
    load.save(transformers.lost(15), path)
    assert run("layers", path).out.splitlines()[-1] == "*  b1     [N, 15, 8]  all     NTC, grid unknown (--grid)"


def test_parts_are_told(run: Run) -> None:
    cases = Path(__file__).parent.parent / "cases"
    done = run("layers", cases / "flip_vote.onnx")
    assert done.out.splitlines()[-1].endswith("part    NCHW, rows 0 to 64, columns 64 to 0 (mirrored)")
    assert "Warning: the map shows one of 2 parallel parts" in done.err
    listing = run("layers", cases / "crop_inside.onnx", "--json").json()
    assert listing["layers"][0]["window"] == {"height": [16, 32], "width": [16, 32]} and not listing["warnings"]


@pytest.mark.slow
@pytest.mark.keras
@pytest.mark.usefixtures("few_collections")
def test_a_keras_file(run: Run) -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("tf2onnx")
    rows = run("layers", onnxcam_models.path("classroom/mnist.onnx").with_suffix(".keras")).out.splitlines()
    assert [row.split()[:2] for row in rows[1:]] == [["conv1", "[N,"], ["*", "conv2"]]
    assert run("layers", "keras:vgg61").code == 3


def test_an_explainable_model_says_which_outputs_there_are(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    load.save(onnxcam.augment(models.tiny_cnn(), ["conv2", "relu1"], ("gradcam", "hirescam")), path)
    listing = run("layers", path, "--json").json()
    assert listing["explainable"]["target"] == {"name": "target", "mode": "optional"}
    layers = {layer["name"]: layer for layer in listing["layers"]}
    assert [name for name, layer in layers.items() if layer["default"]] == ["relu1"]
    assert layers["conv2"]["outputs"] == {
        "activations": "activations/conv2", "gradients": "gradients/conv2",
        "heatmaps": {"gradcam": "heatmap/conv2/gradcam", "hirescam": "heatmap/conv2/hirescam"},
    }  # fmt: skip
    assert layers["relu2"]["outputs"] is None
    text = run("layers", path).out
    assert "target (optional)" in text and "heatmap/conv2/hirescam" in text


@pytest.mark.parametrize("options", [{"size": None}, {"nhwc": True}, {"batch": 1}])
def test_other_models(run: Run, tmp_path: Path, options: dict) -> None:
    load.save(models.tiny_cnn(**options), tmp_path / "m.onnx")
    listing = run("layers", tmp_path / "m.onnx", "--json").json()
    assert [layer["name"] for layer in listing["layers"] if layer["default"]] == ["relu2"]
    assert run("layers", tmp_path / "m.onnx").code == 0


def test_check_passes(run: Run, plain: Path, ready: Path) -> None:
    for path in (plain, ready):
        result = run("check", path)
        assert (result.code, result.err) == (0, "")
        assert "ok  gradients at relu2" in result.out
    listing = run("check", ready, "--json", "--samples", 2, "--seed", 7).json()
    assert listing["passed"] and listing["seed"] == 7
    assert "gradients at relu2" in {finding["name"] for finding in listing["findings"]}


def test_check_fails_on_a_wrong_gradient(run: Run, tmp_path: Path) -> None:
    model = onnxcam.augment(models.tiny_cnn())
    producer = next(node for node in model.graph.node if "gradients" in node.output)
    producer.op_type = "Neg"
    load.save(model, tmp_path / "wrong.onnx")
    result = run("check", tmp_path / "wrong.onnx")
    assert result.code == 3
    assert "failed  gradients at relu2" in result.out
    assert "gradients at relu2" in result.sentence
    result = run("check", tmp_path / "wrong.onnx", "--json")
    assert result.code == 3 and result.json()["passed"] is False
