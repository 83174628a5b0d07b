"""The bundled model and pictures, in nothing but onnxruntime: what the demo claims is true of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcam import image, models
from onnxcam.errors import OnnxcamError

FOLDER = Path(__file__).parent.parent / "models"
SIZE = 224


class Bundled:
    """The model, run by its manifest's tensor names."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            models.path(models.MODEL), options, providers=["CPUExecutionProvider"]
        )
        self.manifest = json.loads(self.session.get_modelmeta().custom_metadata_map["onnxcam"])
        self.labels: list[str] = self.manifest["labels"]

    def run(self, pixels: np.ndarray, *targets: int) -> tuple[np.ndarray, np.ndarray]:
        """Logits and maps of one 224 x 224 picture, a row per target; the arithmetic of preprocessing is done here."""
        spec = self.manifest["input"]["preprocess"]
        assert spec["color"] == "RGB"
        mean, std = np.asarray(spec["mean"], np.float32), np.asarray(spec["std"], np.float32)
        tensor = ((pixels.astype(np.float32) * spec["scale"] - mean) / std).transpose(2, 0, 1)
        batch = np.repeat(tensor[None], len(targets), axis=0)
        names = [self.manifest["scores"]["name"], self.manifest["layers"][-1]["heatmaps"]["gradcam"]]
        feeds = {self.manifest["input"]["name"]: batch, self.manifest["target"]["name"]: np.asarray(targets, np.int64)}
        logits, maps = self.session.run(names, feeds)
        return logits, maps


@pytest.fixture(scope="module")
def bundled() -> Bundled:
    return Bundled()


def pixels(name: str) -> np.ndarray:
    return image.load(models.path(name)).pixels


def stretched(picture: np.ndarray) -> np.ndarray:
    return image.resolve({"resize": {"mode": "stretch"}}, [1, 3, SIZE, SIZE]).transform(picture)[0]


def share_left(heatmap: np.ndarray, width: int = 448) -> float:
    """Share of a map's energy left of the middle, once it is as wide as the composite."""
    drawn = image.resize_map(heatmap, (SIZE, width)).astype(np.float64)
    assert drawn.min() >= 0.0
    return float(drawn[:, : width // 2].sum() / drawn.sum())


def test_each_map_lies_on_its_own_object(bundled: Bundled) -> None:
    cat, coffee = bundled.labels.index("tiger cat"), bundled.labels.index("espresso")
    _, maps = bundled.run(stretched(pixels("cat_and_coffee.png")), cat, coffee)
    assert share_left(maps[0]) >= 0.90
    assert 1.0 - share_left(maps[1]) >= 0.80


def test_the_maps_follow_the_objects_when_the_halves_change_places(bundled: Bundled) -> None:
    """A map that always lay on the left for a cat would pass the test above."""
    picture = pixels("cat_and_coffee.png")
    swapped = np.hstack([picture[:, SIZE:], picture[:, :SIZE]])
    cat, coffee = bundled.labels.index("tiger cat"), bundled.labels.index("espresso")
    _, maps = bundled.run(stretched(swapped), cat, coffee)
    assert share_left(maps[0]) <= 0.25
    assert share_left(maps[1]) >= 0.75


def test_both_objects_are_among_the_best_five(bundled: Bundled) -> None:
    logits, _ = bundled.run(stretched(pixels("cat_and_coffee.png")), -1)
    best = {bundled.labels[i] for i in np.argsort(-logits[0])[:5]}
    assert {"tiger cat", "espresso"} <= best


@pytest.mark.parametrize(
    ("name", "expected"), [("cat.png", {"tiger cat", "Egyptian cat", "tabby, tabby cat"}), ("coffee.png", {"espresso"})]
)
def test_the_photographs_are_recognised_with_the_preprocessing_in_the_file(
    bundled: Bundled, name: str, expected: set[str]
) -> None:
    prepare = image.resolve(bundled.manifest["input"]["preprocess"], bundled.manifest["input"]["shape"])
    cut, _ = prepare.transform(pixels(name))
    assert cut.shape == (SIZE, SIZE, 3)
    logits, maps = bundled.run(cut, -1)
    best = [bundled.labels[i] for i in np.argsort(-logits[0])[: len(expected)]]
    assert set(best) == expected
    explained, named = maps[0], bundled.run(cut, int(logits[0].argmax()))[1][0]
    np.testing.assert_array_equal(explained, named)  # without a target the top class is explained


def test_the_map_is_gradcam_of_the_tensors_next_to_it(bundled: Bundled) -> None:
    """Recomputed from activations and the linear layer's weights: mean gradient = weight / positions."""
    entry = bundled.manifest["layers"][-1]
    model = onnx.load(models.path(models.MODEL))
    weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if list(t.dims) == [1000, 1280]]
    assert len(weights) == 1 and weights[0].dtype == np.float16
    prepare = image.resolve(bundled.manifest["input"]["preprocess"], bundled.manifest["input"]["shape"])
    batch, _ = prepare.apply(pixels("cat.png"))
    feeds = {bundled.manifest["input"]["name"]: batch, bundled.manifest["target"]["name"]: np.asarray([282])}
    a, g, heat = bundled.session.run([entry["activations"], entry["gradients"], "heatmap"], feeds)
    row = weights[0][282].astype(np.float64)
    np.testing.assert_allclose(g, np.broadcast_to((row / 49)[None, :, None, None], g.shape), rtol=1e-5, atol=1e-9)
    want = np.maximum(np.einsum("c,nchw->nhw", row / 49, a.astype(np.float64)), 0.0)
    np.testing.assert_allclose(heat, want, rtol=1e-4, atol=1e-4 * want.max())


def test_the_manifest(bundled: Bundled) -> None:
    value = bundled.manifest
    assert value["format"] == 1
    outputs = {o.name: o.shape for o in bundled.session.get_outputs()}
    inputs = {i.name: i.shape for i in bundled.session.get_inputs()}
    entry = value["layers"][-1]
    assert list(outputs) == ["logits", "activations", "gradients", "heatmap"]
    assert {entry["activations"], entry["gradients"], *entry["heatmaps"].values(), value["scores"]["name"]} == {
        *outputs
    }
    assert inputs[value["input"]["name"]][1:] == value["input"]["shape"][1:] == [3, SIZE, SIZE]
    assert isinstance(inputs[value["input"]["name"]][0], str)  # any batch size
    assert outputs[entry["activations"]][1:] == entry["shape"][1:] == [1280, *entry["grid"]]
    assert value["target"]["name"] in {i.name for i in bundled.session.get_overridable_initializers()}
    assert value["parity"]["against"] == "torch autograd" and value["parity"]["samples"] >= 4
    assert all(value["parity"][key] <= 1e-5 for key in ("scores", "activations", "gradients"))


def test_the_labels_are_the_published_ones(bundled: Bundled) -> None:
    labels = bundled.labels
    assert len(labels) == bundled.manifest["scores"]["classes"] == 1000
    assert (labels[281], labels[282], labels[967]) == ("tabby, tabby cat", "tiger cat", "espresso")
    assert {label for label in labels if labels.count(label) > 1} == {"crane"}
    assert [label for label in labels if "maillot" in label] == ["maillot", "maillot, tank suit"]


def test_the_preprocessing_is_the_published_one(bundled: Bundled) -> None:
    assert bundled.manifest["input"]["preprocess"] == {
        "color": "RGB",
        "scale": 1.0,
        "mean": [127.0] * 3,
        "std": [128.0] * 3,
        "resize": {"mode": "shortest", "size": 256, "interpolation": "bicubic", "antialias": True},
        "crop": {"size": [SIZE, SIZE], "anchor": "center"},
    }


def test_the_file_is_small_valid_and_tells_nothing_of_the_machine_it_was_made_on() -> None:
    data = models.path(models.MODEL).read_bytes()
    assert len(data) < 10_000_000
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    assert not re.search(rb"site-packages|/home/|/root/|\.py\"", data)


def test_the_runtime_folds_the_casts_and_fuses_as_in_float32(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(models.path(models.MODEL), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    halves = [t for t in optimised.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert halves == []
    ops = [node.op_type for node in optimised.graph.node]
    assert "Clip" not in ops and "BatchNormalization" not in ops
    assert ops.count("Conv") + ops.count("FusedConv") == 49


@pytest.mark.parametrize("name", ["LICENSES.md", "README.md", "build_pictures.py", "build_efficientnet_lite0.py"])
def test_what_must_lie_next_to_the_files(name: str) -> None:
    assert (FOLDER / name).stat().st_size > 500


def test_every_bundled_file_has_its_licence_and_its_line_in_the_readme() -> None:
    licences, readme = (FOLDER / "LICENSES.md").read_text(), (FOLDER / "README.md").read_text()
    single = [name for name in models.names() if "/" not in name]
    assert single == ["cat.png", "cat_and_coffee.png", "coffee.png", "efficientnet_lite0.onnx"]
    for name in models.names():
        assert f"`{name}`" in licences
        assert f"`{name}`" in readme or f"`{name.rpartition('/')[0]}/*.png`" in readme
    for holder in (
        "ML Illustrated",
        "Stefan van der Walt",
        "Rachel Michetti",
        "The TensorFlow Authors",
        "Nikita Kisel",
    ):
        assert holder in licences


@pytest.mark.parametrize("name", ["dog.png", "", "..", "../pyproject.toml", "__init__.py"])
def test_a_file_that_is_not_bundled(name: str) -> None:
    with pytest.raises(OnnxcamError, match=r"cat\.png"):
        models.path(name)


def test_the_pictures_are_rebuilt_to_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    from onnxcam.models import build_pictures

    monkeypatch.setattr("sys.argv", ["build_pictures.py", "-o", str(tmp_path)])
    assert build_pictures.main() == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [name for name in models.names() if name.endswith(".png") and "/" not in name]
    for name in names:
        np.testing.assert_array_equal(image.load(tmp_path / name).pixels, pixels(name))
