"""The default colours can be read with and without colour vision, as `benchmarks/colormaps.md` says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import colormaps
from onnxcam import image
from onnxcam.image.colormap import KNEE, OPACITY

ROOT = Path(__file__).parent.parent.parent


def test_simulated_vision_leaves_greys_and_confuses_what_it_should() -> None:
    greys = np.repeat(np.arange(0, 256, 5)[:, None], 3, axis=1)
    for vision in colormaps.VISIONS:
        lab = colormaps.to_lab(greys, vision)
        assert np.abs(lab[:, 1:]).max() < 0.1, vision
        np.testing.assert_allclose(lab[:, 0], colormaps.to_lab(greys)[:, 0], atol=0.05)

    def apart(a: list[int], b: list[int], vision: str) -> float:
        from skimage.color import deltaE_ciede2000

        return float(deltaE_ciede2000(*(colormaps.to_lab(np.array(rgb), vision) for rgb in (a, b))))

    red, green, blue, teal = [200, 60, 60], [120, 110, 40], [60, 60, 200], [0, 128, 128]
    for vision in ("protanopia", "deuteranopia"):
        assert apart(red, green, vision) < 0.5 * apart(red, green, "normal")
        assert apart(red, blue, vision) > 30
    assert apart(blue, teal, "tritanopia") < 0.6 * apart(blue, teal, "normal")


def test_the_default_is_legible_and_the_one_before_was_not() -> None:
    default, jet = (image.palette(name) for name in (image.DEFAULT_COLORMAP, "jet"))
    assert colormaps.reversal(default) <= colormaps.REVERSAL
    assert min(colormaps.smallest_step(default).values()) >= colormaps.NOTICEABLE
    assert min(colormaps.nearest_far(default).values()) > 10
    assert colormaps.reversal(jet) > 50 and min(colormaps.smallest_step(jet).values()) < 0.5


def test_the_default_is_the_one_that_the_measurement_names() -> None:
    page = (ROOT / "benchmarks" / "colormaps.md").read_text("utf-8")
    assert f"The default is **{image.DEFAULT_COLORMAP}**" in page
    assert f"| **{OPACITY} min(1, {1 / KNEE:g} v)** |" in page
    for name in image.COLORMAPS:
        steps = colormaps.smallest_step(image.palette(name))
        back = colormaps.reversal(image.palette(name))
        (row,) = re.findall(rf"^\| \**{name}\** \| .*$", page, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")]
        assert float(cells[3]) == pytest.approx(back, abs=0.06)
        assert [float(number) for number in cells[4].split(",")] == pytest.approx(list(steps.values()), abs=0.06)


def test_overlays_by_default_leave_more_of_the_picture_and_stand_out_from_it() -> None:
    pixels = colormaps.photographs()[::20]
    table = image.palette(image.DEFAULT_COLORMAP)
    grows = colormaps.on_photographs(table, pixels, colormaps.opacities(OPACITY, KNEE))
    before = colormaps.on_photographs(image.palette("jet"), pixels, colormaps.opacities(0.5, None))
    assert grows["contrast 0"] == pytest.approx(1) and before["contrast 0"] < 0.6
    assert grows["peak"] > 1.4 * before["peak"] and grows["step"] > 5
