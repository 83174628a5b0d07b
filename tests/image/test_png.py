"""PNG files hold exactly the pixels given, as Pillow and OpenCV read them."""

from __future__ import annotations

import importlib.abc
import io
import sys
import warnings
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from PIL import Image

from onnxcam import image
from onnxcam.errors import OutputError
from onnxcam.image import png
from onnxcam.image.deflate import deflate
from tests.image.pictures import noise, smooth


@pytest.fixture(autouse=True, params=["isal", "zlib"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every test runs with the optional package and without it."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal", reason="isal has no wheel here")
    deflate.cache_clear()
    yield request.param
    deflate.cache_clear()


def test_the_fastest_that_is_installed_is_used(codec: str) -> None:
    assert deflate().crc32.__module__ == {"isal": "isal.isal_zlib", "zlib": "zlib"}[codec]


def test_a_broken_package_costs_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: object, target: object = None) -> None:
            if fullname.split(".")[0] == "isal":
                raise OSError("wrong ELF class")

    for name in [name for name in sys.modules if name.split(".")[0] == "isal"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    pixels = noise(5, 7)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.encode_png(pixels)))), pixels)
    assert deflate().crc32 is zlib.crc32


def test_checksums_and_streams_are_those_of_zlib() -> None:
    data = noise(97, 113).tobytes()
    stream = deflate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for cut in (0, 1, 5552, len(data)):
            assert stream.crc32(data[cut:], stream.crc32(data[:cut])) == zlib.crc32(data)
            assert stream.adler32(data[cut:], stream.adler32(data[:cut], 1)) == zlib.adler32(data)
            for make in (stream.runs, stream.noise):
                packer = make()
                packed = packer.compress(data[:cut]) + packer.compress(data[cut:]) + packer.flush()
                assert zlib.decompress(packed) == data


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    "pixels", [noise(31, 17), smooth(40, 60), noise(1, 1), noise(1, 9), noise(9, 1), noise(205, 333), noise(2, 21845)]
)
def test_colours_come_back(pixels: np.ndarray, compress: bool) -> None:
    for form in (pixels, np.asfortranarray(pixels), pixels[::-1, ::-1]):
        data = image.encode_png(form, compress)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), form)
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], form)


def test_grey_comes_back_small() -> None:
    gray = image.grayscale(image.resize_map(np.eye(7, dtype=np.float32), (480, 640)))
    data = png.shades(png.pack(gray))
    read = Image.open(io.BytesIO(data))
    assert read.mode == "L"
    np.testing.assert_array_equal(np.asarray(read), gray)
    assert len(data) < gray.size / 4, "maps are smooth, so their differences shrink"
    assert image.encode_png(gray, compress=False) == data


@pytest.mark.parametrize("colormap", image.COLORMAPS)
def test_a_palette_shows_what_painting_shows(colormap: str) -> None:
    heatmap = image.resize_map(np.random.default_rng(0).random((7, 5), np.float32), (60, 80))
    gray = image.grayscale(heatmap)
    data = png.shades(png.pack(gray), image.palette(colormap))
    read = Image.open(io.BytesIO(data))
    assert read.mode == "P"
    np.testing.assert_array_equal(np.asarray(read.convert("RGB")), image.colorize(heatmap, colormap))
    np.testing.assert_array_equal(image.paint(gray, colormap), image.palette(colormap)[gray])


@pytest.mark.parametrize("pixels", [np.zeros((2, 2)), np.zeros((0, 2), np.uint8), np.zeros((2, 2, 4), np.uint8)])
def test_what_is_no_picture_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(OutputError, match="is not a picture"):
        image.encode_png(pixels)
