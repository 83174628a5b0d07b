"""Maps do not depend on the size of the scores: 1e-12 or 1e25 as well as 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcam import image
from onnxcam.cam.methods import INPUT, find, methods
from onnxcam.errors import ModelError
from onnxcam.explain.explainer import Explainer

CPU = ["CPUExecutionProvider"]
SCALES = (1e-12, 1e-4, 1e12, 1e25)
# what they are made of is not proportional to the scores: powers of gradients next to activations, a softmax of scores
BY_FORMULA = {"gradcam++", "smoothgradcam++", "finercam", "scorecam", "sscam", "iscam", "rise"}
# for transformers, and for a linear layer behind a global pooling
LAYERS_OF_THEIR_OWN = {"rollout", "legrad", "cam"}
SMALL = {"samples": 3, "masks": 20, "steps": 8}


def network(scale: float = 1.0, *, deep: bool = False, dead: bool = False, shift: float = 0.0) -> onnx.ModelProto:
    """Two convolutions and a head whose weights and biases are multiplied by `scale`; `shift` is added to the logits.

    Arguments:
        deep: a ReLU in the head, so that the scores are not affine in the layer.
        dead: channel 3 of the layer is 0, channel 4 the same everywhere.
    """
    rng = np.random.default_rng(5)
    head = "h = Gemm(f, w3, b3)  k = Relu(h)  s = Gemm(k, w4, b4)" if deep else "s = Gemm(f, w4, b4)"
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nsmall (float[N, 3, 12, 16] input) => (float[N, 4] logits) {\n'
        "c = Conv<pads = [1, 1, 1, 1]>(input, w1, b1)  r = Relu(c)  d = Conv<pads = [1, 1, 1, 1]>(r, w2, b2)\n"
        f"a = Relu(d)  p = AveragePool<kernel_shape = [6, 8], strides = [6, 8]>(a)  f = Flatten(p)  {head}\n"
        "logits = Add(s, shift) }"
    )
    shapes = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (8, 6, 3, 3), "b2": (8,)}
    shapes |= {"w3": (32, 10), "b3": (10,), "w4": (10, 4), "b4": (4,)} if deep else {"w4": (32, 4), "b4": (4,)}
    weights = {
        name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 4)
        for name, shape in shapes.items()
    }
    if dead:
        weights["w2"][3:5] = 0
        weights["b2"][3:5] = -1, 0.7
    weights["w4"], weights["b4"] = weights["w4"] * scale * 3, weights["b4"] * scale
    for name, array in (weights | {"shift": np.full(4, shift)}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
    return model


def maps(model: onnx.ModelProto, method: str, **options: Any) -> np.ndarray:
    explainer = Explainer(model, layers=["a"], providers=CPU)
    batch = np.random.default_rng(1).normal(size=(2, 3, 12, 16)).astype(np.float32)
    options = {key: value for key, value in SMALL.items() if key in find(method).options} | options
    return explainer.attribute(batch, [1, 2], method, **options)


SCALE_FREE = sorted(set(methods()) - BY_FORMULA - LAYERS_OF_THEIR_OWN)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-12, 1e25])
def test_maps_are_the_same_at_the_far_ends(scale: float) -> None:
    one, other = (Explainer(network(k), layers=["a"], providers=CPU) for k in (1.0, scale))
    batch = np.random.default_rng(1).normal(size=(2, 3, 12, 16)).astype(np.float32)
    for method in SCALE_FREE:
        options = {key: value for key, value in SMALL.items() if key in find(method).options}
        expected, actual = (explainer.attribute(batch, [1, 2], method, **options) for explainer in (one, other))
        assert expected.max() > 0.9 and np.abs(actual - expected).max() < 1e-4, method


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True], ids=["affine", "deep"])
@pytest.mark.parametrize("method", SCALE_FREE)
def test_a_map_is_the_same_at_every_scale(method: str, deep: bool) -> None:
    expected = maps(network(deep=deep), method)
    assert expected.max() > 0.9
    for scale in SCALES:
        actual = maps(network(scale, deep=deep), method)
        assert np.abs(actual - expected).max() < 1e-4, scale


@pytest.mark.parametrize("scale", [1.0, *SCALES])
def test_gradcam_plus_plus_is_its_formula_at_every_scale(scale: float) -> None:
    model = network(scale, deep=True)
    raw = Explainer(model, layers=["a"], providers=CPU).run(
        np.random.default_rng(1).normal(size=(2, 3, 12, 16)).astype(np.float32), [1, 2]
    )
    a, g = raw.activations.astype(np.float64), raw.gradients.astype(np.float64)
    total = a.sum(axis=(2, 3), keepdims=True)
    small = 1e-6 * np.minimum(1, (np.abs(g).max(axis=(1, 2, 3), keepdims=True) / 1e-3) ** 4)
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha = np.where(g == 0, 0, g**2 / (2 * g**2 + total * g**3 + small))
    expected = np.maximum(((alpha * np.maximum(g, 0)).sum(axis=(2, 3), keepdims=True) * a).sum(axis=1), 0)
    actual = maps(model, "gradcam++", size="layer")
    assert np.abs(actual - image.normalize(expected / expected.max())).max() < 2e-5
    assert maps(model, "smoothgradcam++").max() > 0.9


@pytest.mark.sample(8)
@pytest.mark.parametrize("method", ["finercam", "scorecam", "sscam", "iscam"])
@pytest.mark.parametrize("scale", SCALES)
def test_maps_by_probabilities_exist_at_every_scale(method: str, scale: float) -> None:
    actual = maps(network(scale, deep=True), method)
    assert np.isfinite(actual).all() and actual.max() > 0.9


@pytest.mark.parametrize("deep", [False, True], ids=["affine", "deep"])
def test_reciprocam_does_not_depend_on_a_constant_added_to_the_logits(deep: bool) -> None:
    expected = maps(network(deep=deep), "reciprocam")
    assert expected.max() > 0.9
    for shift in (-50.0, 50.0):  # all scores negative, all positive
        assert np.abs(maps(network(deep=deep, shift=shift), "reciprocam") - expected).max() < 1e-4


@pytest.mark.parametrize("method", ["scorecam", "sscam", "iscam"])
def test_constant_channels_are_no_masks(method: str) -> None:
    """The map is that of the channels that vary, whatever else is constant; rounding of a constant is not a mask."""
    explainer = Explainer(network(dead=True), layers=["a"], providers=CPU)
    batch = np.random.default_rng(1).normal(size=(1, 3, 12, 16)).astype(np.float32)
    layer = explainer.run(batch).activations
    assert np.ptp(layer[0, 3:5], axis=(1, 2)).max() < 1e-6 and layer[0, 4].max() > 0.5
    varying = {0, 1, 2, 5, 6, 7}
    strongest = explainer.attribute(
        batch, 1, method, channels=len(varying), **({} if method == "scorecam" else {"samples": 3})
    )
    every = explainer.attribute(batch, 1, method, **({} if method == "scorecam" else {"samples": 3}))
    tolerance = 0.2 if method == "sscam" else 1e-5  # whose noise is drawn for other channels then
    assert np.abs(every - strongest).max() < tolerance


def test_a_map_that_is_not_finite_is_refused() -> None:
    explainer = Explainer(network(), layers=["a"], providers=CPU)
    with np.errstate(invalid="ignore", over="ignore"), pytest.raises(ModelError, match="the map is not finite"):
        explainer.attribute(np.full((1, 3, 12, 16), 3e38, np.float32), 1, "activationmap")


def test_small_maps_are_normalised_to_one_and_ordinary_ones_as_by_pytorch_grad_cam() -> None:
    values = np.random.default_rng(0).uniform(0, 1, (3, 7, 9)).astype(np.float32)
    for scale in (1.0, 50.0, 0.1):
        lowered = values * np.float32(scale) - (values * np.float32(scale)).min(axis=(1, 2), keepdims=True)
        theirs = lowered / (1e-7 + lowered.max(axis=(1, 2), keepdims=True))
        assert np.abs(image.normalize(values * np.float32(scale)) - theirs).max() < 1e-6
    for scale in (1e-30, 1e-12, 1e-7, 1e12, 1e30):
        assert np.abs(image.normalize(values * np.float32(scale)) - image.normalize(values)).max() < 5e-6
    assert not image.normalize(np.full((2, 3, 3), 0.5, np.float32)).any()


def test_every_method_is_tested_at_scales_or_by_its_formula() -> None:
    assert set(methods()) >= BY_FORMULA | LAYERS_OF_THEIR_OWN
    assert "saliency" in methods(INPUT)
