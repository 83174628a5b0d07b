"""The statistics of a map, against maps whose numbers are known by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.ndimage

from onnxcam.explain.statistics import cells_of, describe, of_cells
from onnxcam.image.geometry import Geometry, normalize, resize_map


def test_one_cell() -> None:
    heatmap = np.zeros((10, 20))
    heatmap[2, 15] = 7.0
    statistics = describe(heatmap)
    assert statistics["centroid"] == pytest.approx([0.25, 15.5 / 20])
    assert statistics["spread"] == pytest.approx(0, abs=1e-7)
    assert statistics["entropy"] == pytest.approx(0)
    assert statistics["gini"] == pytest.approx(1 - 1 / 200)
    assert statistics["half_area"] == pytest.approx(0.5 / 200)
    assert statistics["border"] == pytest.approx(0)
    assert (statistics["zero"], statistics["peaks"]) == (False, 1)


def test_even() -> None:
    statistics = describe(np.full((7, 9), 0.3))
    assert statistics["centroid"] == pytest.approx([0.5, 0.5])
    assert statistics["entropy"] == pytest.approx(1)
    assert statistics["gini"] == pytest.approx(0, abs=1e-12)
    assert statistics["half_area"] == pytest.approx(0.5)
    assert statistics["border"] == pytest.approx(1 - 0.8 * 0.8)
    assert statistics["peaks"] == 1


def test_two_corners() -> None:
    heatmap = np.zeros((8, 8))
    heatmap[0, 0] = heatmap[7, 7] = 1.0
    statistics = describe(heatmap)
    assert statistics["peaks"] == 2
    assert statistics["centroid"] == pytest.approx([0.5, 0.5])
    assert statistics["spread"] == pytest.approx(np.hypot(3.5, 3.5) / 8)
    assert statistics["border"] == pytest.approx(1 - 0.2 * 0.2)  # a cell is 0.125 wide, 0.025 of it inside the frame


def test_peaks_are_the_regions_that_scipy_finds() -> None:
    rng = np.random.default_rng(4)
    for size in [(1, 1), (1, 9), (32, 32), (5, 31)] * 20:
        heatmap = rng.random(size) ** rng.uniform(0.2, 4)
        for one in (heatmap, np.asfortranarray(heatmap)):
            expected = scipy.ndimage.label(one >= 0.5 * one.max(), np.ones((3, 3)))[1]
            assert of_cells(one)["peaks"] == expected


def test_gini_and_entropy_by_their_definitions() -> None:
    heatmap = np.random.default_rng(0).gamma(0.5, size=(6, 5))
    p = heatmap.ravel() / heatmap.sum()
    statistics = describe(heatmap)
    assert statistics["gini"] == pytest.approx(np.abs(p[:, None] - p).mean() / (2 * p.mean()))
    assert statistics["entropy"] == pytest.approx(-(p * np.log(p)).sum() / np.log(30))


@pytest.mark.parametrize("size", [(64, 64), (100, 37), (480, 640)])
def test_a_map_of_any_size(size: tuple[int, int]) -> None:
    """A bell at a known place, at a size that is averaged down."""
    y, x = (np.arange(size[0]) + 0.5) / size[0], (np.arange(size[1]) + 0.5) / size[1]
    heatmap = np.exp(-((y[:, None] - 0.3) ** 2 + (x - 0.6) ** 2) / (2 * 0.08**2))
    statistics = describe(heatmap)
    assert statistics["centroid"] == pytest.approx([0.3, 0.6], abs=2e-3)
    assert statistics["spread"] == pytest.approx(0.08 * np.sqrt(2), rel=0.02)
    assert statistics["half_area"] == pytest.approx(2 * np.pi * 0.08**2 * np.log(2), rel=0.05)
    assert statistics["peaks"] == 1


def test_region() -> None:
    heatmap, region = np.ones((40, 40)), np.zeros((40, 40))
    region[:10] = 1
    assert describe(heatmap, region)["region"] == pytest.approx(0.25)


def test_nothing_there_and_numbers_that_are_none() -> None:
    assert describe(np.zeros((5, 5)))["zero"] is True
    assert describe(np.zeros((5, 5)))["gini"] is None
    assert describe(np.full((5, 5), np.nan))["zero"] is True
    spoilt = np.ones((4, 4))
    spoilt[0, 0] = np.nan
    assert describe(spoilt)["zero"] is False
    json.dumps(describe(spoilt), allow_nan=False)


def test_peaks_are_the_connected_regions_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    for _ in range(500):
        mask = rng.random(rng.integers(1, 33, 2)) < rng.random()
        if mask.any():
            regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
            assert describe(mask.astype(np.float32))["peaks"] == regions


GEOMETRIES = (
    Geometry((480, 640), (256, 341), (-16, -58), (224, 224)),  # cropped
    Geometry((480, 640), (224, 224), (0, 0), (224, 224)),  # stretched
    Geometry((500, 333), (224, 149), (0, 37), (224, 224)),  # letterbox
    Geometry((31, 700), (10, 224), (107, 0), (224, 224)),  # fewer rows than cells
    Geometry((97, 101), (64, 67), (-3, 5), (48, 80)),  # cropped and padded
    Geometry((97, 101), (97, 101), (0, 0), (97, 101)),
)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: str(geometry.picture_size))
@pytest.mark.parametrize("seed", range(3))
def test_sums_without_the_picture(geometry: Geometry, seed: int) -> None:
    generator = np.random.default_rng(seed)
    coarse = generator.random((7, 9), np.float32) * (generator.random((7, 9)) > 0.6)
    heatmap = resize_map(coarse, geometry.input_size)
    drawn = geometry.to_picture(heatmap).astype(np.float64)
    cells = cells_of(geometry.picture_size)
    sums = geometry.to_cells(heatmap, cells)
    # the sums over cells in float64, from the drawn map
    edges = [np.linspace(0, side, count + 1) for side, count in zip(drawn.shape, cells, strict=True)]
    parts = [
        np.clip(np.minimum(np.arange(side) + 1, e[1:, None]) - np.maximum(np.arange(side), e[:-1, None]), 0, 1)
        for side, e in zip(drawn.shape, edges, strict=True)
    ]
    np.testing.assert_allclose(sums, parts[0] @ drawn @ parts[1].T, rtol=0, atol=2e-6 * max(sums.max(), 1e-9))
    want, actual = describe(drawn.astype(np.float32)), of_cells(sums)
    assert want.keys() == actual.keys()
    for name, value in want.items():
        assert actual[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: str(geometry.picture_size))
@pytest.mark.parametrize("how", ["minmax", "max", "none"])
@pytest.mark.parametrize("shape", [(7, 7), (1, 3), (14, 60)])
def test_sums_of_a_layer_map_without_the_input(geometry: Geometry, how: str, shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(shape[0])
    coarse = 3 + generator.random(shape, np.float32) * (generator.random(shape) > 0.4)
    heatmap = normalize(resize_map(normalize(coarse, how), geometry.input_size), how)
    drawn = geometry.to_picture(heatmap)
    want, sums = describe(drawn), geometry.sum_layer_map(coarse, how, cells_of(geometry.picture_size))
    actual = of_cells(sums)
    assert want["zero"] is actual["zero"]
    np.testing.assert_allclose(sums.sum(), drawn.sum(dtype=np.float64), rtol=1e-5)
    for name, value in want.items():
        assert actual[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_layer_map_that_is_even_or_not_seen_has_no_energy(value: float) -> None:
    geometry = GEOMETRIES[0]
    assert not geometry.sum_layer_map(np.full((7, 7), value, np.float32), "minmax", (32, 32)).any()
    beside = np.zeros((7, 7), np.float32)
    beside[0, 0] = 1
    away = Geometry((480, 320), (480, 320), (0, 320), (480, 640))  # the left half is padding
    assert not away.sum_layer_map(beside, "minmax", (32, 32)).any()


def test_a_picture_beside_the_input_has_no_energy() -> None:
    away = Geometry((50, 60), (50, 60), (-100, 0), (40, 60))
    assert of_cells(away.to_cells(np.ones((40, 60), np.float32), cells_of((50, 60))))["zero"] is True
    assert of_cells(away.sum_layer_map(np.ones((7, 7), np.float32), "max", cells_of((50, 60))))["zero"] is True
