"""Linear maps have exact adjoints, and the picture's gradient is that of finite differences in float64."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcam.errors import SettingError
from onnxcam.inside.parametrization import BASES, COLORS, Canvas, Cosine, Fourier
from onnxcam.inside.penalty import Penalty
from onnxcam.inside.transformation import Affine, Shift, Transformation, Warp

SIZES = [(8, 8), (9, 12), (12, 9), (7, 5), (1, 4), (1, 1)]


def dots(apply: object, adjoint: object, inner: tuple[int, ...], outer: tuple[int, ...]) -> tuple[float, float]:
    """<A x, y> and <x, A' y> of random x and y."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=inner).astype(np.float32)
    y = rng.normal(size=outer).astype(np.float32)
    left = np.sum(apply(x).astype(np.float64) * y)  # type: ignore[operator]
    right = np.sum(adjoint(y).astype(np.float64) * x)  # type: ignore[operator]
    return float(left), float(right)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BASES)
def test_the_adjoint_of_a_basis_is_exact(name: str, size: tuple[int, int]) -> None:
    basis = BASES[name](3, *size)
    left, right = dots(basis.apply, basis.adjoint, basis.shape, (3, *size))
    assert left == pytest.approx(right, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BASES)
def test_a_basis_finds_the_parameters_of_values(name: str, size: tuple[int, int]) -> None:
    basis = BASES[name](3, *size)
    values = np.random.default_rng(1).normal(size=(3, *size)).astype(np.float32)
    assert np.allclose(basis.apply(np.asarray(basis.solve(values), np.float32)), values, atol=1e-4)


def test_fourier_is_numpys_inverse_transform_of_a_natural_spectrum() -> None:
    basis = Fourier(1, 6, 8)
    parameters = np.zeros(basis.shape, np.float32)
    parameters[0, 1, 2] = 3.0, -2.0
    frequency = np.hypot(1 / 6, 2 / 8)
    spectrum = np.zeros((6, 5), complex)
    spectrum[1, 2] = (3 - 2j) / frequency * np.sqrt(48) / 4
    assert np.allclose(basis.apply(parameters)[0], np.fft.irfft2(spectrum, s=(6, 8)), atol=1e-5)


def test_cosines_are_orthonormal_and_of_the_same_size_as_waves() -> None:
    basis = Cosine(3, 32, 48)
    assert np.allclose(basis.rows.T @ basis.rows, np.eye(32), atol=1e-5)
    rng = np.random.default_rng(0)
    waves = Fourier(3, 32, 48)
    deviations = [b.apply(rng.normal(size=b.shape).astype(np.float32)).std() for b in (basis, waves)]
    assert deviations[0] == pytest.approx(deviations[1], rel=0.3)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_gradient_of_a_canvas_is_that_of_finite_differences(name: str, channels: int) -> None:
    canvas = Canvas(name, channels, 6, 7, colors=channels == 3)
    rng = np.random.default_rng(2)
    parameters = canvas.noise(rng, 0.3)
    weights = rng.normal(size=(channels, 6, 7))
    direction = rng.normal(size=parameters.shape)

    def value(step: float) -> float:
        moved = (parameters + step * direction).astype(np.float32)
        return float(np.sum(weights * canvas.picture(moved).astype(np.float64)))

    picture = canvas.picture(parameters)
    slope = float(np.sum(canvas.adjoint(picture, weights.astype(np.float32)) * direction))
    assert slope == pytest.approx((value(1e-2) - value(-1e-2)) / 2e-2, rel=1e-2, abs=1e-3)
    assert picture.min() >= 0
    assert picture.max() <= 1


@pytest.mark.parametrize("name", BASES)
def test_a_picture_is_what_its_parameters_stand_for(name: str) -> None:
    canvas = Canvas(name, 3, 8, 9, colors=True)
    picture = np.random.default_rng(0).integers(0, 256, (3, 8, 9)).astype(np.float32) / 255
    restored = canvas.picture(canvas.parameters(picture))
    assert np.abs(restored - np.clip(picture, 1 / 510, 1 - 1 / 510)).max() < 1e-3


def test_large_parameters_do_not_overflow() -> None:
    canvas = Canvas("pixels", 1, 2, 2, colors=False)
    parameters = np.array([[[1e4, -1e4], [0, 500]]], np.float32)
    assert canvas.picture(parameters).tolist() == [[[1.0, 0.0], [0.5, 1.0]]]


def test_an_unknown_parametrization_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingError, match="did you mean 'fourier'"):
        Canvas("furier", 3, 8, 8, colors=True)


def test_colours_mix_into_grey_first() -> None:
    assert (np.sign(COLORS[:, 0]) == 1).all()
    assert np.linalg.norm(COLORS, axis=0).max() == pytest.approx(1.0)


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (5, 3)])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: Shift(3, -2),
        lambda size: Affine(size, 1.0, 0.0, (2, -1)),
        lambda size: Affine(size, 1.2, 10.0, (1, 2)),
        lambda size: Affine(size, 0.7, -35.0, (-3, 4)),
    ],
    ids=["shift", "affine shift", "enlarged and turned", "reduced and turned"],
)
def test_the_adjoint_of_a_transformation_is_exact(make: object, size: tuple[int, int]) -> None:
    warp: Warp = make(size)  # type: ignore[operator]
    left, right = dots(warp.apply, warp.adjoint, (3, *size), (3, *size))
    assert left == pytest.approx(right, rel=1e-4, abs=1e-4)


def test_a_shift_is_an_affine_map_without_zoom_and_angle() -> None:
    picture = np.random.default_rng(0).normal(size=(3, 8, 9)).astype(np.float32)
    assert np.allclose(Affine((8, 9), 1.0, 0.0, (3, -2)).apply(picture), Shift(3, -2).apply(picture), atol=1e-5)


def test_a_quarter_turn_turns_counter_clockwise_by_quarter() -> None:
    picture = np.random.default_rng(0).normal(size=(1, 7, 7)).astype(np.float32)
    turned = Affine((7, 7), 1.0, 90.0, (0, 0)).apply(picture)
    assert np.allclose(turned[0], np.rot90(picture[0]), atol=1e-4)


def test_enlarging_shows_less_of_the_picture() -> None:
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32), (1, 16, 16)).copy()
    enlarged = Affine((16, 16), 1.5, 0.0, (0, 0)).apply(ramp)
    assert np.ptp(enlarged[0, 8, 2:-2]) == pytest.approx(np.ptp(ramp[0, 8, 2:-2]) / 1.5, rel=1e-3)


def test_as_many_numbers_are_drawn_whatever_the_settings() -> None:
    after = []
    for transformation in (Transformation(), Transformation(4, 0.1), Transformation(4, 0.1, 10.0)):
        rng = np.random.default_rng(0)
        transformation.draw(rng, (16, 16))
        after.append(rng.bit_generator.state["state"]["state"])
    assert len(set(after)) == 1


@pytest.mark.parametrize("penalty", [Penalty(l2=2.0), Penalty(tv=0.7), Penalty(1.5, 0.3)])
def test_the_gradient_of_a_penalty_is_that_of_finite_differences(penalty: Penalty) -> None:
    rng = np.random.default_rng(0)
    picture, direction = rng.uniform(size=(2, 3, 6, 7)).astype(np.float32)
    value, gradient = penalty.value(picture)
    assert gradient is not None
    step = np.float32(1e-2)
    difference = penalty.value(picture + step * direction)[0] - penalty.value(picture - step * direction)[0]
    assert float(np.sum(gradient * direction)) == pytest.approx(difference / 2e-2, rel=1e-2)
    assert value > 0


def test_penalties_are_those_that_the_documentation_states() -> None:
    picture = np.zeros((1, 2, 4), np.float32)
    picture[..., 2:] = 1.0
    assert Penalty(l2=1.0).value(picture)[0] == pytest.approx(0.25)
    # two of four columns have a step to the next, as the picture continues on its other side
    assert Penalty(tv=1.0).value(picture)[0] == pytest.approx(0.5 * np.sqrt(1 + 1e-4) + 0.5 * 1e-2)
    assert Penalty().value(picture) == (0.0, None)
