"""Masks as drawing programs and annotation tools save them: opacity, palettes, 16 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcam.diagnose.shift import regions
from onnxcam.errors import SettingError

INSIDE = np.zeros((12, 20), bool)
INSIDE[2:9, 5:11] = True


def mask_of(folder: Path) -> np.ndarray:
    (region,) = regions.read(folder).of("photos/1.jpg")
    (mask,) = regions.masks([region], INSIDE.shape).values()
    return mask


def indexed(palette: list[int], **options: object) -> Image.Image:
    picture = Image.fromarray(INSIDE.astype(np.uint8))
    picture.putpalette(palette)
    picture.info.update(options)
    return picture


def pictures() -> dict[str, Image.Image]:
    """By name a mask of `INSIDE`."""
    grey = INSIDE.astype(np.uint8) * 255
    white = np.dstack([np.full((*INSIDE.shape, 3), 255, np.uint8), grey])
    return {
        "grey.png": Image.fromarray(grey),
        "labels.png": Image.fromarray(INSIDE.astype(np.uint8)),
        "sixteen.png": Image.fromarray(INSIDE.astype(np.uint16)),
        "opacity.png": Image.fromarray(white),
        "grey opacity.png": Image.fromarray(white).convert("LA"),
        "opacity.webp": Image.fromarray(white),
        "palette.png": indexed([0, 0, 0, 128, 0, 0]),
        "palette.gif": indexed([0, 0, 0, 255, 255, 255]),
        "palette.bmp": indexed([0, 0, 0, 255, 255, 255]),
        "transparent palette.png": indexed([255, 255, 255, 128, 0, 0], transparency=0),
        "bits.png": Image.fromarray(grey).convert("1"),
    }


@pytest.mark.parametrize("name", pictures())
def test_a_mask_is_inside_where_it_is_drawn(tmp_path: Path, name: str) -> None:
    options = {"transparency": 0} if "transparent palette" in name else {}
    if name.endswith(".webp"):
        options = {"lossless": True}
    pictures()[name].save(tmp_path / f"1{Path(name).suffix}", **options)
    np.testing.assert_array_equal(mask_of(tmp_path), INSIDE)


@pytest.mark.parametrize("ending", ["png", "gif", "bmp"])
def test_a_mask_whose_outside_cannot_be_told_is_refused(tmp_path: Path, ending: str) -> None:
    indexed([255, 255, 255, 0, 0, 0]).save(tmp_path / f"1.{ending}")
    with pytest.raises(SettingError, match=r"palette whose first colour is \(255, 255, 255\).*save it as grey"):
        mask_of(tmp_path)


def test_a_mask_drawn_in_black_on_transparent_is_refused(tmp_path: Path) -> None:
    black = np.zeros((*INSIDE.shape, 4), np.uint8)
    Image.fromarray(black).save(tmp_path / "1.png")
    (region,) = regions.read(tmp_path).of("1.jpg")
    assert regions.masks([region], INSIDE.shape) == {}  # nothing is drawn
    black[INSIDE, 3] = 255
    Image.fromarray(black).save(tmp_path / "1.png")
    with pytest.raises(SettingError, match="black on transparent"):
        mask_of(tmp_path)
