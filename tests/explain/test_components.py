"""The first principal component from the Gram matrix, against NumPy's singular value decomposition of the places."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcam import Contrast, Probability
from onnxcam.explain import components
from onnxcam.explain.explainer import Explainer
from tests.cam import net


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(net.model(), layers=[net.LAYER], providers=["CPUExecutionProvider"])


def decomposed(one: np.ndarray) -> np.ndarray:
    """R V_0 of `[C, h, w]` with the sign that correlates with the mean over channels."""
    rows = one.reshape(len(one), -1).T.astype(np.float64)
    rows -= rows.mean(axis=0)
    coordinates = rows @ np.linalg.svd(rows, full_matrices=False)[2][0]
    mean = one.mean(axis=0, dtype=np.float64).ravel()
    sign = -1 if (coordinates * (mean - mean.mean())).sum() < 0 else 1
    return np.asarray(sign * coordinates.reshape(one.shape[1:]))


# more channels than places, fewer, more of both than a power is taken of; values that lie far from zero
@pytest.mark.sample(4)
@pytest.mark.parametrize("shape", [(320, 7, 7), (12, 9, 11), (1, 6, 5), (40, 1, 1), (260, 15, 17)])
@pytest.mark.parametrize("offset", [0.0, 50.0, 20_000.0])
def test_equal_to_a_decomposition(explainer: Explainer, shape: tuple[int, int, int], offset: float) -> None:
    values = np.random.default_rng(len(shape) + shape[0]).normal(size=(2, *shape)).astype(np.float32)
    values = np.maximum(values, 0) + np.float32(offset)
    values[1] *= 1e-3
    maps = components.first_component(explainer.sessions, values)
    assert maps.dtype == np.float32 and maps.shape == (2, *shape[1:])
    for one, layer_map in zip(values, maps, strict=True):
        expected = decomposed(one)
        assert np.abs(layer_map - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-5 * np.abs(one).max())


def test_directions_that_are_nearly_equal_are_still_told_apart(explainer: Explainer) -> None:
    """The power keeps the second direction here: the eigenvectors themselves are computed."""
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(49, 3)))
    left -= left.mean(axis=0)
    left, _ = np.linalg.qr(left)
    right, _ = np.linalg.qr(rng.normal(size=(200, 3)))
    values = (right * (1.0, 0.999, 0.3) @ left.T).reshape(1, 200, 7, 7).astype(np.float32)
    expected = decomposed(values[0])
    found_map = components.first_component(explainer.sessions, values)[0]
    assert np.abs(found_map - expected).max() <= 1e-4 * np.abs(expected).max()


def test_places_that_are_all_the_same_have_no_direction(explainer: Explainer) -> None:
    values = np.repeat(np.arange(5, dtype=np.float32)[None, :, None, None], 3, axis=2).repeat(4, axis=3)
    for factor in (1.0, 0.1):  # whose square is rounded
        assert not components.first_component(explainer.sessions, values * np.float32(factor)).any()


def test_the_gram_matrix_is_of_places_minus_their_mean(explainer: Explainer) -> None:
    values = np.random.default_rng(3).normal(size=(2, 8, 3, 4)).astype(np.float32)
    rows = values.reshape(2, 8, 12).swapaxes(1, 2).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    (matrices,) = components.gram(explainer.sessions, values)
    assert np.abs(matrices - rows @ rows.swapaxes(1, 2)).max() <= 1e-12


@pytest.mark.parametrize("shape", [(20, 3, 4), (5, 6, 7), (260, 15, 17)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_of_values_that_are_not_finite_the_map_is_not(
    explainer: Explainer, shape: tuple[int, int, int], value: float
) -> None:
    """`attribute` says so, as of any method; the other pictures of the batch have their maps."""
    values = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    values[0, 1, 2, 3] = value
    with np.errstate(invalid="ignore"):
        maps = components.first_component(explainer.sessions, values)
    assert np.isnan(maps[0]).all() and np.isfinite(maps[1]).all()


SIZE, CHANNELS = 13, 60


def wide(batch: int | str = "N") -> onnx.ModelProto:
    """A network whose layer `wide` has more channels than places, 60 of 7 x 7, and a convolution behind it."""
    rng = np.random.default_rng(5)
    weights = {"w": (CHANNELS, 3, 3, 3), "v": (24, CHANNELS, 1, 1), "m": (24, 5)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["wide"]),
        helper.make_node("Conv", ["wide", "v"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 5])]
    initializers = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in weights.items()
    ]
    graph = helper.make_graph(nodes, "wide", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def pictures_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module", params=["N", 1])
def wide_explainer(request: pytest.FixtureRequest) -> Explainer:
    explainer = Explainer(
        wide(request.param), layers=["wide"], kind="logits", probe=False, providers=["CPUExecutionProvider"]
    )
    assert all(explainer.sessions.component("wide", gradient) is not None for gradient in (False, True))
    return explainer


@pytest.mark.parametrize("target", [None, 2, [1, 0, 3]])
def test_a_map_comes_with_the_scores_in_one_run(wide_explainer: Explainer, target: int | list[int] | None) -> None:
    """Numbers as of a decomposition of the layer's values, and as of an examination that exposes these."""
    pictures = pictures_of(3)
    raw = wide_explainer.run(pictures, target)
    usual = wide_explainer.examine(pictures)
    every = {"eigencam": raw.activations, "eigengradcam": raw.gradients * raw.activations}
    for method, values in every.items():
        maps = wide_explainer.attribute(pictures, target, method, normalize="none", size="layer")
        np.testing.assert_array_equal(maps, usual.attribute(target, method, normalize="none", size="layer"))
        for one, layer_map in zip(values, maps, strict=True):
            expected = decomposed(one)
            assert np.abs(layer_map - np.maximum(expected, 0)).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_an_examination_of_a_component_answers_other_questions_too(wide_explainer: Explainer, method: str) -> None:
    pictures = pictures_of(2)
    question = wide_explainer.question(rows=2, method=method)
    examination, usual = wide_explainer.examination(question, pictures), wide_explainer.examine(pictures)
    for target, other in ((1, "gradcam"), (None, method), (2, method), (1, "eigencam"), ([0, 1], "eigengradcam")):
        np.testing.assert_array_equal(
            wide_explainer.examination(question, pictures).attribute(target, other, normalize="none"),
            usual.attribute(target, other, normalize="none"),
        )
        np.testing.assert_array_equal(examination.attribute(target, other), usual.attribute(target, other))
    rows = wide_explainer.examination(question, pictures).of_rows(np.array([1]))
    np.testing.assert_array_equal(rows.attribute(None, method), wide_explainer.attribute(pictures[1:], method=method))


def test_what_needs_more_is_left_to_the_layer_s_values(wide_explainer: Explainer) -> None:
    """More methods than one, and targets that are no class."""
    pictures = pictures_of(1)
    usual = wide_explainer.examine(pictures)
    both = ["eigencam", "eigengradcam"]
    for method, target in (
        (both, None),
        (both[1], Probability(1)),
        (both[0], Probability(1)),
        (both[1], Contrast(1, 2)),
    ):
        maps, expected = wide_explainer.attribute(pictures, target, method), usual.attribute(target, method)
        np.testing.assert_array_equal(np.stack(list(maps)), np.stack(list(expected)))


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_the_best_classes_of_a_picture_have_their_maps(method: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    explainer = Explainer(
        wide(), layers=["wide"], kind="logits", probe=False, preprocess="0..1", providers=["CPUExecutionProvider"]
    )
    tensor = explainer.prepare(pixels)[1]
    best = explainer.batch_scores(tensor)[0].argsort()[::-1]
    for index, one in zip(best, explainer.explain(pixels, method=method, top=2).maps, strict=False):
        expected = explainer.attribute(tensor, int(index), method)[0]
        np.testing.assert_allclose(one.heatmap, expected, atol=1e-6)
        np.testing.assert_allclose(explainer.explain(pixels, int(index), method).heatmap, expected, atol=1e-6)
