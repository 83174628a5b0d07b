"""Preprocessings read from configuration files, against the libraries that wrote them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcam import image
from onnxcam.errors import PreprocessError
from onnxcam.explain.explainer import Explainer
from onnxcam.targets import labels
from tests.image.pictures import noise, smooth
from tests.support import models
from tests.support.torchvision_stub import import_torchvision

# module, class, and what differs from the class's defaults: a crop that fits into the picture
PROCESSORS = [
    ("beit", "Beit", {}),
    ("bit", "Bit", {}),
    ("clip", "CLIP", {}),
    ("convnext", "ConvNext", {}),
    ("convnext", "ConvNext", {"size": {"shortest_edge": 224}}),
    ("deit", "DeiT", {}),
    ("efficientnet", "EfficientNet", {}),
    ("levit", "Levit", {}),
    ("mobilenet_v1", "MobileNetV1", {}),
    ("mobilenet_v2", "MobileNetV2", {}),
    ("mobilevit", "MobileViT", {"size": {"shortest_edge": 288}}),
    ("poolformer", "PoolFormer", {}),
    ("pvt", "Pvt", {}),
    ("siglip", "Siglip", {}),
    ("vit", "ViT", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name", "options"), PROCESSORS)
def test_image_processors(module: str, name: str, options: dict) -> None:
    """From what the processor itself writes into its file, to the tensor it makes with PIL."""
    import_torchvision()
    pytest.importorskip("transformers")
    where = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    processor = getattr(where, f"{name}ImageProcessorPil")(**options)
    config = json.loads(processor.to_json_string())
    # landscapes: where the height shrinks more than the width, Pillow 13 swaps its passes (preprocessing.md)
    for size in ((301, 402), (375, 500)):
        pixels = smooth(*size)
        expected = np.asarray(processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"])
        np.testing.assert_allclose(image.from_hf(config).apply(pixels)[0], expected, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_keras_modes(mode: str) -> None:
    utils = pytest.importorskip("keras").applications.imagenet_utils
    pixels = noise(32, 48)
    expected = utils.preprocess_input(pixels.astype(np.float32), data_format="channels_last", mode=mode)
    tensor, _ = image.preset(mode, (32, 48)).apply(pixels, layout="NHWC")
    np.testing.assert_allclose(tensor[0], expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"id2label": {"1": "dog", "0": "cat"}, "label2id": {"cat": 0, "dog": 1}}, ["cat", "dog"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
        ({"architectures": ["ViT"]}, None),
        ({"label_names": ["cat", "dog"], "num_classes": 2}, ["cat", "dog"]),
    ],
)
def test_a_folder_gives_preprocessing_and_labels(tmp_path: Path, names: dict, expected: list[str] | None) -> None:
    processor = {
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "config.json").write_text(json.dumps(names))
    for place in (tmp_path, tmp_path / "preprocessor_config.json"):
        assert labels.from_configuration(f"hf:{place}") == expected
    two, five = (Explainer(models.tiny_cnn(classes=classes), preprocess=f"hf:{tmp_path}") for classes in (2, 5))
    assert two.labels == expected and five.labels is None, "names that do not fit the classes are not used"
    assert two.preprocess == image.from_hf(processor)
    named = Explainer(models.tiny_cnn(classes=2), preprocess=f"hf:{tmp_path}", labels=["a", "b"])
    assert named.labels == ["a", "b"]


def test_a_timm_folder(tmp_path: Path) -> None:
    config = {"architecture": "x", "pretrained_cfg": {"input_size": [3, 32, 32]}, "label_names": ["cat", "dog"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    explainer = Explainer(models.tiny_cnn(classes=2), preprocess=f"timm:{tmp_path}")
    assert explainer.labels == ["cat", "dog"] and explainer.preprocess == image.from_timm(config)


def test_what_names_no_labels() -> None:
    for spec in (None, "imagenet", "hf", "hf:", {"scale": 1}, Path("hf:nowhere")):
        assert labels.from_configuration(spec) is None
    with pytest.raises(PreprocessError, match="cannot be read"):
        Explainer(models.tiny_cnn(), preprocess="hf:nowhere")
