"""Gradients of AffineGrid and GridSample, against torch's own spatial transformer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import pytest
import torch
import torch.nn.functional as F

import onnxcam
from onnxcam.errors import ModelError, UnsupportedOperator
from tests.autodiff.harness import build, check, covers, gradients, normal, record
from tests.support.runtime import run

SIZES = {2: (3, 2, 4, 5), 3: (3, 2, 4, 5, 3)}


def places(rank: int, reach: float, seed: int = 3) -> np.ndarray:
    """A grid that goes `reach` times as far as the picture, and no place on a kink."""
    shape = (3, *(3, 2, 4)[:rank], rank)
    return np.random.default_rng([seed, rank]).uniform(-reach, reach, shape).astype(np.float32)


@covers("AffineGrid")
@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("rank", [2, 3])
def test_affine_grid(rank: int, corners: int) -> None:
    check(
        f"y = AffineGrid<align_corners={corners}>(t, s)",
        {"t": normal(3, rank, rank + 1)},
        {"s": np.asarray(SIZES[rank])},
        wrt=["t"],
        opset=20,
        free=("static",),  # onnx infers no batch from sizes, so the checker refuses an open one
        reference=lambda t, s: F.affine_grid(t, [int(size) for size in s], align_corners=bool(corners)),
    )


@covers("GridSample")
@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("rank", [2, 3])
def test_grid_sample(rank: int, mode: str, padding: str, corners: int) -> None:
    def reference(x: torch.Tensor, g: torch.Tensor) -> Any:
        how = "bilinear" if mode == "linear" else mode
        return F.grid_sample(x, g, mode=how, padding_mode=padding, align_corners=bool(corners))

    check(
        f'y = GridSample<mode="{mode}", padding_mode="{padding}", align_corners={corners}>(x, g)',
        {"x": normal(*SIZES[rank]), "g": places(rank, 2.5)},
        wrt=["x", "g"] if mode == "linear" else ["x"],
        opset=20,
        free=("static", "all"),
        reference=reference,
        tolerance=3e-5,
    )


def test_many_places_that_see_one_pixel_are_all_added() -> None:
    x, g = normal(1, 2, 3, 3), np.zeros((1, 40, 50, 2), np.float32) + np.float32(0.03)
    check("y = GridSample(x, g)", {"x": x, "g": g}, wrt=["x"], opset=18, reference=_bilinear, tolerance=3e-5)


def test_a_picture_of_one_row() -> None:
    x, g = normal(1, 2, 1, 4), places(2, 0.9)[:1]
    body = 'y = GridSample<padding_mode="reflection", align_corners=1>(x, g)'
    check(body, {"x": x, "g": g}, opset=18, reference=lambda x, g: _bilinear(x, g, "reflection", True))


def test_a_spatial_transformer() -> None:
    body = 'g = AffineGrid(t, s) y = GridSample<mode="linear">(x, g)'

    def reference(x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> Any:
        return _bilinear(x, F.affine_grid(t, [int(size) for size in s], align_corners=False))

    feeds = {"x": normal(3, 2, 4, 5), "t": 0.7 * normal(3, 2, 3)}
    check(body, feeds, {"s": np.asarray(SIZES[2])}, opset=20, reference=reference, tolerance=3e-5)


def test_cubic_is_refused_by_name() -> None:
    model = build('y = GridSample<mode="cubic">(x, g)', {"x": normal(*SIZES[2]), "g": places(2, 1)}, opset=20)
    with pytest.raises(UnsupportedOperator, match=r"GridSample .*mode 'cubic' is not covered"):
        onnxcam.gradient(model, of="y", wrt=["x"])


def _bilinear(x: torch.Tensor, g: torch.Tensor, padding: str = "zeros", corners: bool = False) -> Any:
    return F.grid_sample(x, g, mode="bilinear", padding_mode=padding, align_corners=corners)


@covers("RoiAlign")
@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
def test_regions_are_averaged_back(mode: str, ratio: int) -> None:
    """Y is linear in X: dX is its adjoint, <dY, Y(Z)> = <dX, Z> for every Z."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nsmall (float[N, 3, 9, 7] x, float[R, 4] rois, int64[R] batch) => '
        f'(float[R, 3, 4, 5] y) {{ y = RoiAlign<coordinate_transformation_mode = "{mode}", output_height = 4, '
        f"output_width = 5, sampling_ratio = {ratio}, spatial_scale = 0.5>(x, rois, batch) }}"
    )
    record(model)
    feeds = {
        "rois": np.float32([[0, 0, 10, 12], [3.3, 2.1, 9.7, 17.9], [-4, 5, 30, 6], [12, 16, 40, 40], [5, 5, 5.1, 5.1]]),
        "batch": np.array([0, 1, 1, 0, 1]),
    }
    dy = normal(5, 3, 4, 5)
    gradient = run(onnxcam.gradient(model, "y", ["x"]), {"x": normal(2, 3, 9, 7), **feeds, "cotangent.y": dy})["grad.x"]
    for seed in range(20):
        z = np.random.default_rng(seed).normal(size=(2, 3, 9, 7)).astype(np.float32)
        (y,) = run(model, {"x": z, **feeds}).values()
        assert abs((dy * y).sum() - (gradient * z).sum()) < 1e-4 * np.linalg.norm(dy) * np.linalg.norm(y)


def test_regions_by_their_largest_sample_are_refused_by_name() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nsmall (float[N, 3, 9, 7] x, float[R, 4] rois, int64[R] batch) => '
        '(float[R, 3, 4, 5] y) { y = RoiAlign<output_height = 4, output_width = 5, mode = "max">(x, rois, batch) }'
    )
    with pytest.raises(UnsupportedOperator, match="RoiAlign"):
        onnxcam.gradient(model, "y", ["x"])


def test_regions_are_constants_of_the_picture() -> None:
    """They come from the picture in two-stage detectors, and pass no gradient on, as in torchvision."""
    body = (
        "r = Mul(x, two) f = Slice(r, zero, one, ax) b = Reshape(f, four) m = Reshape(x, picture) "
        "y = RoiAlign<output_height = 2, output_width = 2, sampling_ratio = 2>(m, b, i)"
    )
    x = np.float32([[0.4, 0.7, 1.3, 1.6], [0.2, -0.5, 0.9, 1.1]])
    constants = {
        "two": np.float32(2),
        "zero": np.array([0]),
        "one": np.array([1]),
        "ax": np.array([0]),
        "four": np.array([1, 4]),
        "picture": np.array([1, 1, 2, 4]),
        "i": np.array([0]),
    }
    dy = normal(1, 1, 2, 2)
    (gradient,) = gradients(build(body, {"x": x}, constants), {"x": x}, dy, ["x"])
    fixed = "m = Reshape(x, picture) y = RoiAlign<output_height = 2, output_width = 2, sampling_ratio = 2>(m, b, i)"
    changed_feeds = {"picture": constants["picture"], "b": 2 * x[:1], "i": constants["i"]}
    (expected,) = gradients(build(fixed, {"x": x}, changed_feeds), {"x": x}, dy, ["x"])
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    message = "'b' does not reach 'y': the operators between them pass no gradient on"
    with pytest.raises(ModelError, match=message):
        onnxcam.gradient(build(fixed, {"x": x}, changed_feeds), of="y", wrt=["b"])


@covers("MaxRoiPool")
@pytest.mark.parametrize(("size", "scale"), [((2, 3), 1.0), ((4, 4), 0.5), ((1, 1), 0.25)])
def test_regions_give_back_to_their_largest_values(size: tuple[int, int], scale: float) -> None:
    """Values are whole numbers, all different, and move by less than a half: Y moves with the largest ones, exactly."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nsmall (float[N, 3, 9, 7] x, float[R, 5] rois) => '
        f"(float[R, 3, {size[0]}, {size[1]}] y) "
        f"{{ y = MaxRoiPool<pooled_shape = [{size[0]}, {size[1]}], spatial_scale = {scale}>(x, rois) }}"
    )
    record(model)
    one = [1, 3, 3, 3, 3]
    # inside, between pixels, beyond the picture on two sides, outside it, backwards, a single pixel
    rois = np.float32(
        [[0, 0, 0, 6, 8], [1, 3.5, 2.5, 9.5, 12.5], [1, -5, -3, 40, 50], [0, 60, 60, 70, 70], [0, 5, 5, 2, 1], one]
    )
    rng = np.random.default_rng(0)
    x = rng.permutation(2 * 3 * 9 * 7).reshape(2, 3, 9, 7).astype(np.float32)
    dy = rng.normal(size=(len(rois), 3, *size)).astype(np.float32)
    feeds = {"x": x, "rois": rois, "cotangent.y": dy}
    gradient = run(onnxcam.gradient(model, "y", ["x"]), feeds)["grad.x"]
    (before,) = run(model, {"x": x, "rois": rois}).values()
    for seed in range(20):
        z = np.random.default_rng(seed).uniform(-0.49, 0.49, x.shape).astype(np.float32)
        (after,) = run(model, {"x": x + z, "rois": rois}).values()
        assert abs((dy * (after - before)).sum() - (gradient * z).sum()) < 1e-3, seed
    assert (before[3] == 0).all(), "outside the picture"


def test_the_first_of_equal_values_in_a_region_takes_the_gradient() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>\nsmall (float[N, 1, 4, 4] x, float[R, 5] rois) => '
        "(float[R, 1, 1, 1] y) { y = MaxRoiPool<pooled_shape = [1, 1]>(x, rois) }"
    )
    feeds = {"x": np.ones((1, 1, 4, 4), np.float32), "rois": np.float32([[0, 1, 1, 3, 3]])}
    feeds["cotangent.y"] = np.full((1, 1, 1, 1), 2, np.float32)
    gradient = run(onnxcam.gradient(model, "y", ["x"]), feeds)["grad.x"]
    assert gradient[0, 0, 1, 1] == 2 and gradient.sum() == 2
