"""A spot in the picture comes back to the same place; normalising against pytorch-grad-cam."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from onnxcam.errors import InputError, PictureError
from onnxcam.image import Geometry, Preprocess, normalize, preset, resize_map
from tests.image.pictures import noise
from tests.support.torchvision_stub import import_torchvision

SPECS = {
    "stretch": {"resize": {"mode": "stretch", "size": [224, 192]}},
    "stretch without antialias": {"resize": {"mode": "stretch", "size": [97, 201], "antialias": False}},
    "shortest and crop": {"resize": {"mode": "shortest", "size": 256}, "crop": {"size": 224}},
    "shortest and odd crop": {"resize": {"mode": "shortest", "size": 251}, "crop": {"size": [224, 211]}},
    "shortest, oblong": {"resize": {"mode": "shortest", "size": [168, 236]}, "crop": {"size": [160, 224]}},
    "shortest alone": {"resize": {"mode": "shortest", "size": 160}},
    "letterbox": {"resize": {"mode": "letterbox", "size": [224, 224]}},
    "letterbox and crop": {"resize": {"mode": "letterbox", "size": [231, 180]}, "crop": {"size": [224, 160]}},
    "crop alone": {"crop": {"size": [90, 80]}},
    "crop in the corner": {"crop": {"size": [90, 80], "anchor": "bottom_right"}},
    "crop larger than the picture": {"crop": {"size": [601, 900]}},
    "nothing": {},
}
PICTURES = [(224, 224), (301, 403), (500, 333), (97, 640), (640, 101)]


def spot(size, at, radius):
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * radius**2))


def centroid(heatmap):
    y, x = np.mgrid[: heatmap.shape[0], : heatmap.shape[1]] + 0.5
    weight = np.where(heatmap > 0.1 * heatmap.max(), heatmap, 0).astype(np.float64)
    return (weight * y).sum() / weight.sum(), (weight * x).sum() / weight.sum()


@pytest.mark.parametrize("size", PICTURES)
@pytest.mark.parametrize("name", SPECS)
def test_a_spot_comes_back_where_it_was(name, size):
    """Forward through the real pixels, back through the geometry: the centroid moves by less than one pixel."""
    prepared = Preprocess.from_dict(SPECS[name])
    at = (size[0] * 0.47, size[1] * 0.53)
    if "corner" in name:
        at = (size[0] - 40.0, size[1] - 35.0)
    pixels = np.repeat((spot(size, at, 9.0) * 255).astype(np.uint8)[..., None], 3, axis=2)
    observed, geometry = prepared.transform(pixels)
    back = geometry.to_picture(observed[..., 0].astype(np.float32))
    assert back.shape == size and back.dtype == np.float32
    np.testing.assert_allclose(centroid(back), centroid(pixels[..., 0]), atol=0.5)
    np.testing.assert_allclose(back.max(), 255, rtol=0.25)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("size", PICTURES)
def test_the_way_back_is_the_affine_map_at_every_pixel(name, size):
    """A ramp in input coordinates comes back as the place that each picture pixel has on the input; 0 outside."""
    observed, geometry = Preprocess.from_dict(SPECS[name]).transform(noise(*size))
    height, width = observed.shape[:2]
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    onto_y = y * geometry.resized_size[0] / size[0] + geometry.offset[0]
    onto_x = x * geometry.resized_size[1] / size[1] + geometry.offset[1]
    inside = (onto_y >= 0) & (onto_y < height) & (onto_x >= 0) & (onto_x < width)
    for axis, expected in enumerate((onto_y, onto_x)):
        ramp = (np.mgrid[:height, :width][axis] + 0.5 + 10).astype(np.float32)
        back = geometry.to_picture(ramp)
        assert (back[~inside] == 0).all()
        # Within half an input pixel of the edge bilinear interpolation repeats the border.
        low = max(geometry.offset[axis], 0) + 0.5
        high = min(geometry.offset[axis] + geometry.resized_size[axis], observed.shape[axis]) - 0.5
        np.testing.assert_allclose(back[inside], np.clip(expected, low, high)[inside] + 10, atol=2e-3)


def test_letterbox_padding_does_not_bleed():
    spec = Preprocess.from_dict({"resize": {"mode": "letterbox", "size": 64}})
    _, geometry = spec.transform(noise(40, 160))
    heat = np.full((64, 64), 100.0, np.float32)
    heat[24:40] = 1.0
    assert geometry.resized_size == (16, 64)
    np.testing.assert_array_equal(geometry.to_picture(heat), np.ones((40, 160), np.float32))


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (2000, 3), (3, 5)])
@pytest.mark.parametrize("name", SPECS)
def test_extreme_pictures(name, size):
    observed, geometry = Preprocess.from_dict(SPECS[name]).transform(noise(*size))
    back = geometry.to_picture(np.ones(observed.shape[:2], np.float32))
    assert back.shape == size
    assert set(np.unique(back)) <= {0.0, 1.0} and back.any()


def test_a_ribbon_is_refused_before_it_fills_the_memory():
    spec = Preprocess.from_dict({"resize": {"mode": "shortest", "size": 256}, "crop": {"size": 224}})
    with pytest.raises(PictureError, match=r"1x100000 .* would be resized to 256x25600000 .* crop it first"):
        spec.transform(noise(1, 100_000))


def test_a_layer_sized_map_goes_through_the_input():
    _, geometry = preset("imagenet", (224, 224)).transform(noise(300, 400))
    small = np.random.default_rng(0).random((7, 7), np.float32)
    np.testing.assert_array_equal(geometry.to_picture(small), geometry.to_picture(resize_map(small, (224, 224))))
    with pytest.raises(InputError, match=r"expected \[h, w\]"):
        geometry.to_picture(small[None])


def test_a_picture_wholly_outside_gives_zeros():
    geometry = Geometry((10, 10), (10, 10), (50, 0), (20, 20))
    assert not geometry.to_picture(np.ones((20, 20), np.float32)).any()


def test_resize_map_is_opencvs():
    maps = np.random.default_rng(1).random((3, 7, 9)).astype(np.float32)
    expected = np.stack([cv2.resize(m, (64, 50)) for m in maps])
    np.testing.assert_array_equal(resize_map(maps, (50, 64)), expected)
    np.testing.assert_array_equal(resize_map(maps[0], (50, 64)), expected[0])
    for wrong in (maps[None], np.zeros((0, 4), np.float32), np.zeros(5, np.float32)):
        with pytest.raises(InputError, match="the map has shape"):
            resize_map(wrong, (4, 4))


@pytest.mark.slow
def test_normalize():
    maps = np.random.default_rng(2).random((4, 6, 5)).astype(np.float32) * 7 + 1
    import_torchvision()
    grad_cam = pytest.importorskip("pytorch_grad_cam.utils.image")
    np.testing.assert_array_equal(normalize(maps), grad_cam.scale_cam_image(maps))
    np.testing.assert_allclose(normalize(maps, "max"), maps / maps.max((1, 2), keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(normalize(maps, "none"), maps)
    np.testing.assert_array_equal(normalize(maps)[1], normalize(maps[1]))
    with pytest.raises(InputError, match="normalize is 'min'"):
        normalize(maps, "min")


@pytest.mark.parametrize("how", ["minmax", "max", "none"])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30])
def test_zero_and_tiny_maps_never_become_nan(how, value):
    heat = np.zeros((2, 3, 3), np.float32)
    heat[1, 0, 0] = value
    normalized = normalize(heat, how)
    assert np.isfinite(normalized).all() and not normalized[0].any()
