"""A map that is zero everywhere says why; panels show the model's own first choice beside another class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcam
from onnxcam import Explainer, image
from onnxcam.targets import Probability
from tests.support import models
from tests.support.batches import CPU, RAW, explainable, picture


def changed(**weights: Any) -> onnx.ModelProto:
    """The tiny network of two classes with these weights, functions of those it has."""
    source = models.tiny_cnn(classes=2)
    for name, change in weights.items():
        tensor = next(t for t in source.graph.initializer if t.name == name)
        value = np.asarray(change(onnx.numpy_helper.to_array(tensor)), np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))
    return source


def against(w: np.ndarray) -> np.ndarray:
    """Everything speaks for class 0 and against class 1."""
    return np.abs(w) * np.array([[1, -1]])


def explain(source: Any, target: Any = 1, **keywords: Any) -> onnxcam.Explanation:
    return Explainer(source, preprocess=RAW, providers=CPU).explain(picture(), target, **keywords)


CASES = {
    "negative": (changed(w3=against), {}, "no gradient is positive: more of any channel lowers the score"),
    "dead": (changed(b2=lambda b: b * 0 - 1e6), {}, "all activations of the layer are zero"),
    "no gradient": (changed(w3=lambda w: w * 0), {}, "all gradients are zero: no small change of the layer"),
    "baseline": (changed(b2=lambda b: b * 0 - 1e6), {"method": "activationmap"}, "all activations of the layer are"),
    "input": (changed(w3=lambda w: w * 0), {"method": "saliency"}, "all gradients at the picture are zero"),
    "perturbation": (changed(w3=lambda w: w * 0), {"method": "occlusion"}, "no change of the picture that was tried"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("stored", [False, True])
def test_a_blank_map_says_why(name: str, stored: bool, tmp_path: Path) -> None:
    source, keywords, why = CASES[name]
    source = onnxcam.augment(source, preprocess=RAW) if stored else source
    e = explain(source, **keywords)
    place = "in the picture" if name in ("input", "perturbation") else "at this layer"
    blank = e.maps[0].blank
    assert not e.heatmap.any() and blank is not None and blank.startswith(f"no evidence {place}: {why}")
    (warning,) = [text for text in e.warnings if "zero everywhere" in text]
    assert why in warning and "try another layer or method" in warning
    e.save(tmp_path)
    assert json.loads((tmp_path / "explanation.json").read_text("utf-8"))["maps"][0]["blank"] == blank
    drawn = e.panel()
    assert (drawn == image.palette("viridis")[0]).all(axis=2).mean() < 0.01, "no square in the colour of 0"
    assert not np.array_equal(drawn, image.panel(e.picture, e.heatmap, label=e.title, probability=e.probability))


def test_a_saturated_probability_is_the_reason() -> None:
    source = changed(w3=lambda w: np.abs(w) * [[1e6, -1e6]])
    e = explain(source, Probability(0))
    assert e.maps[0].blank == (
        "no evidence at this layer: all gradients are zero: the probability is saturated, so explain the score instead"
    )
    assert explain(source, 0).maps[0].blank is None


def test_each_class_layer_and_method_has_its_own_reason() -> None:
    source = changed(w3=against)
    e = explain(source, None, top=2, method=["gradcam", "layercam"])
    assert [one.blank is None for one in e.maps] == [True, False]
    assert all([one.blank is None for one in method.maps] == [True, False] for method in e.per_method)
    e = explain(source, 1, layer=["relu1", "relu2"], side_by_side=True)
    record = e.to_dict()
    assert [one.maps[0].blank is None for one in e.per_layer][1] is False
    assert record["maps"][0]["blank"] == e.maps[0].blank


def test_a_map_that_is_the_same_everywhere_is_not_called_zero() -> None:
    source = changed(w3=lambda w: np.abs(w), w2=lambda w: w * 0, b2=lambda b: b * 0 + 1)
    e = explain(source, 0)
    assert e.maps[0].blank == "the map is the same everywhere"
    (warning,) = e.warnings
    assert "shows nothing: it is the same everywhere; normalize='max' keeps" in warning
    assert explain(source, 0, normalize="max").maps[0].blank is None


def test_the_first_choice_is_told_where_another_class_is_explained() -> None:
    explainer = Explainer(explainable(), providers=CPU)
    first = explainer.explain(picture())
    assert first.notes == []
    other = (first.target + 1) % explainer.classes
    e = explainer.explain(picture(), other)
    label, share = first.label, image.percentage(first.probability)
    assert e.notes == [f"the model's own first choice: {label}, {share}"]
    plain = image.panel(e.picture, e.heatmap, label=e.title, probability=e.probability, method="gradcam")
    assert e.panel().shape[0] > plain.shape[0]
    several, of_first = (explainer.explain(picture(), target, ["gradcam", "hirescam"]) for target in (other, None))
    assert several.methods_panel().shape[0] > of_first.methods_panel().shape[0]


def test_ablationcam_says_that_a_negative_score_turns_its_map_round() -> None:
    """Two channels, each with a weight of its own: the map of the negative score is that of what lowers it."""
    source = changed(w3=lambda w: w * 0 - 1, b3=lambda b: b * 0 - 5)
    e = explain(source, 0, method="ablationcam")
    score = Explainer(source, preprocess=RAW, providers=CPU)
    raw = score.run(score.prepare(picture())[1])
    (warning,) = [text for text in e.warnings if "negative" in text]
    assert f"({raw.scores[0, 0]:.3g})" in warning and "what speaks against the class" in warning
    # all channels lower the score, and the map is that of all of them
    expected = np.maximum((raw.activations * raw.activations.mean(axis=(2, 3), keepdims=True)).sum(axis=1)[0], 0)
    actual = e.raw_map
    np.testing.assert_allclose(actual / actual.max(), expected / expected.max(), atol=1e-5)
    positive = explain(changed(w3=lambda w: w * 0 + 1, b3=lambda b: b * 0 + 5), 0, method="ablationcam")
    assert not [text for text in positive.warnings if "negative" in text]
    # what speaks for a class of negative score is not drawn: the blank says so
    blank = explain(changed(w3=lambda w: w * 0 + 1e-3, b3=lambda b: b * 0 - 5), 0, method="ablationcam")
    assert blank.maps[0].blank is not None and "the score is negative (-" in blank.maps[0].blank


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e19, 1e25])
def test_fem_is_the_same_at_any_size_of_activations(scale: float) -> None:
    source = changed(w2=lambda w: w * scale, b2=lambda b: b * scale, w3=lambda w: w / scale)
    e = explain(source, 0, method="fem")
    expected = explain(changed(), 0, method="fem")
    assert expected.heatmap.max() > 0.9
    np.testing.assert_allclose(e.heatmap, expected.heatmap, atol=1e-4)
