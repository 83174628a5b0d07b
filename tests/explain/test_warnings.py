"""Warnings about preprocessing: raised where it is wrong beyond doubt, and never where it is right."""

from __future__ import annotations

import numpy as np
import pytest

import onnxcam.models
from onnxcam import image
from onnxcam.explain.explainer import Explainer
from onnxcam.explain.warnings import prediction_warnings
from tests.graph.test_input_normalization import MEAN, STD, beginning_with

SHAPED_MEAN, SHAPED_STD = (np.reshape(values, (1, 3, 1, 1)) for values in (MEAN, STD))
# how models scale by themselves, and the presets that are right for them
BEGINNINGS = {
    "rescaling": ([("Mul", 1 / 255)], {"raw"}),
    "rescaling -1..1": ([("Mul", 1 / 127.5), ("Add", -1.0)], {"raw"}),
    "efficientnet": (
        [("Mul", 1 / 255), ("Sub", SHAPED_MEAN), ("Div", SHAPED_STD), ("Mul", 1 / np.sqrt(SHAPED_STD))],
        {"raw"},
    ),
    "normalization": ([("Sub", 255 * SHAPED_MEAN), ("Div", 255 * SHAPED_STD)], {"raw"}),
    "normalization 0..1": ([("Sub", SHAPED_MEAN), ("Div", SHAPED_STD)], {"0..1"}),
    "centred 0..1": ([("Sub", 0.5), ("Mul", 2.0)], {"0..1"}),
    "mean pixel": ([("Sub", 255 * SHAPED_MEAN)], {"raw"}),
    "nothing": ([], set(image.PRESETS)),
}
# wrong, and so near to right that no one can tell from the range
UNTOLD = {
    *(("centred 0..1", name) for name in ("-1..1", "tf", "imagenet", "torch")),
    *(("normalization 0..1", name) for name in ("-1..1", "tf")),
    *(("mean pixel", name) for name in ("caffe",)),
    *((name, "caffe") for name in ("rescaling", "rescaling -1..1")),
    ("efficientnet", "caffe"),
    ("normalization", "caffe"),
}


@pytest.mark.sample(10)
@pytest.mark.parametrize("preset", image.PRESETS)
@pytest.mark.parametrize("name", BEGINNINGS)
def test_models_that_scale_by_themselves(name: str, preset: str) -> None:
    steps, right = BEGINNINGS[name]
    warnings = Explainer(beginning_with(steps), preprocess=preset).warnings
    assert bool(warnings) == (preset not in right and (name, preset) not in UNTOLD), warnings
    if warnings:
        expected = "0..1" if "0..1" in right else "raw"
        assert "\n" not in warnings[0] and f"({expected})" in warnings[0] and "check MODEL --pictures" in warnings[0]


@pytest.mark.slow
def test_the_bundled_model_under_every_preset() -> None:
    """Its own preprocessing is right, two presets give the same values within a hundredth, the others are told of."""
    path = onnxcam.models.path("efficientnet_lite0.onnx")
    photo = onnxcam.models.path("cat.png")
    assert Explainer(path).warnings == [] and Explainer(path).explain(photo).warnings == []
    for preset in image.PRESETS:
        explainer = Explainer(path, preprocess=preset)
        doubts = [text for text in explainer.warnings if "overridden" in text]
        assert bool(doubts) == (preset not in ("-1..1", "tf")), preset
        assert explainer.explain(photo).warnings[: len(doubts)] == doubts


@pytest.mark.parametrize(
    ("best", "classes", "words"),
    [
        ([(1, 0.002), (2, 0.0015), (3, 0.9)], 1000, ["next to nothing", "0.002"]),
        ([(1, 0.0015)], 1000, ["next to nothing"]),
        ([(1, 0.003), (2, 0.003)], 1000, []),
        ([(1, 0.5), (0, 0.6)], 2, []),
        ([(1, 0.3)], 5, []),
        ([(7, 1.0)] * 5, 10, ["all 5 pictures", "class 7"]),
        ([(7, 1.0)] * 4, 10, []),
        ([(7, 1.0)] * 4 + [(7, 0.9999)], 10, []),
        ([(7, 1.0)] * 5 + [(6, 1.0)], 10, []),
        ([(7, None)] * 9, 10, []),
        ([], 10, []),
    ],
)
def test_predictions_that_tell_nothing(best: list, classes: int, words: list[str]) -> None:
    doubts = prediction_warnings(best, classes)
    assert len(doubts) == bool(words)
    assert all(word in doubts[0] for word in words)
