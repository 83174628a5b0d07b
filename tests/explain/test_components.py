"""The first principal component from the Gram matrix, against NumPy's singular value decomposition of the places."""

from __future__ import annotations

import numpy as np
import pytest

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
