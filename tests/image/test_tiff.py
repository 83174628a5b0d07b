"""TIFF files of any number of bands and any type, against tifffile, Pillow and arithmetic."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxcam import image
from onnxcam.errors import PictureError
from onnxcam.image import tiff

tifffile = pytest.importorskip("tifffile")


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=shape) * 30 + 100
    return np.round(drawn * 100).astype(dtype) if np.dtype(dtype).itemsize > 1 else drawn.astype(dtype)


def written(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "contig", "photometric": "minisblack"},
        {"planarconfig": "contig", "photometric": "minisblack", "rowsperstrip": 7, "byteorder": ">"},
        {"planarconfig": "contig", "photometric": "minisblack", "tile": (16, 32)},
        {"planarconfig": "contig", "photometric": "minisblack", "compression": "zlib", "bigtiff": True},
    ],
    ids=["whole", "strips, big-endian", "tiles", "Deflate, BigTIFF"],
)
def test_bands_are_those_of_tifffile(dtype: str, options: dict[str, Any]) -> None:
    array = values(dtype, (37, 45, 5))
    np.testing.assert_array_equal(tiff.read(written(array, **options)), array)


def test_planes_and_pages_are_bands_too() -> None:
    array = values("uint16", (37, 45, 6))
    planes = np.ascontiguousarray(np.moveaxis(array, 2, 0))
    for data in (
        written(planes, planarconfig="separate", photometric="minisblack"),
        written(planes, planarconfig="separate", photometric="minisblack", tile=(16, 16), compression="zlib"),
        written(planes, photometric="minisblack"),  # a page for each
    ):
        np.testing.assert_array_equal(tiff.read(data), array)


def grey(array: np.ndarray, compression: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "TIFF", compression=compression)
    return stream.getvalue()


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate"])
def test_compressions_as_libtiff_writes_them(compression: str) -> None:
    rng = np.random.default_rng(3)
    for array in (
        np.repeat(rng.normal(size=(40, 50)).astype(np.float32), 3, axis=1),
        np.round(np.cumsum(rng.normal(size=(90, 160)), axis=0)).astype(np.float32),  # tables of every width
        rng.integers(0, 4, (64, 70)).astype(np.int32),
    ):
        np.testing.assert_array_equal(tiff.read(grey(array, compression))[..., 0], array)


def with_predictor(array: np.ndarray, predictor: int) -> bytes:
    """A TIFF of one strip, written here: tifffile needs a further package to do so."""
    height, width, bands = array.shape
    if predictor == 2:
        coded = array.copy()
        coded[:, 1:] -= array[:, :-1]
        body = coded.tobytes()
    else:  # Technical Note 3
        size = array.dtype.itemsize
        raw = array.astype(f">f{size}").view(np.uint8).reshape(height, width * bands, size).swapaxes(1, 2)
        flat = np.ascontiguousarray(raw).reshape(height, width * size, bands)
        coded = flat.copy()
        coded[:, 1:] -= flat[:, :-1]
        body = coded.tobytes()
    body = zlib.compress(body)
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    bits, start = array.dtype.itemsize * 8, 8 + len(body)
    lists = struct.pack(f"<{2 * bands}H", *[bits] * bands, *[kind] * bands)
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, start), (259, 3, 1, 8), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, height), (279, 4, 1, len(body)), (284, 3, 1, 1),
        (317, 3, 1, predictor), (339, 3, bands, start + 2 * bands),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    directory = struct.pack("<H", len(entries)) + table + bytes(4)
    return struct.pack("<2sHI", b"II", 42, start + len(lists)) + body + lists + directory


@pytest.mark.parametrize(("dtype", "predictor"), [("uint8", 2), ("uint16", 2), ("float32", 3), ("float64", 3)])
def test_predictors(dtype: str, predictor: int) -> None:
    array = values(dtype, (20, 31, 5))
    data = with_predictor(array, predictor)
    np.testing.assert_array_equal(tiff.read(data), array)
    if predictor == 2:  # tifffile undoes this one by itself
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), array)


def test_photographs_are_read_as_before() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert tiff.is_plain(written(rgb, photometric="rgb"), 3)
    np.testing.assert_array_equal(image.load(written(rgb, photometric="rgb")).pixels, rgb)
    assert tiff.is_plain(written(rgb[..., 0]), 1)
    assert not tiff.is_plain(written(values("float32", (20, 30))), 1)


def test_a_fourth_band_that_is_no_opacity_is_left_out_and_said() -> None:
    array = values("uint8", (20, 30, 4))
    data = written(array, photometric="rgb", extrasamples=["unspecified"])
    picture = image.load(data, channels=3)
    np.testing.assert_array_equal(picture.pixels, array[..., :3])
    assert picture.values is not None
    np.testing.assert_allclose(picture.values, array[..., :3], atol=1e-4)
    assert "fourth band" in picture.doubts[0]
    bands = image.load(data, channels=4)
    assert bands.values is not None
    np.testing.assert_allclose(bands.values, array, atol=1e-4)


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
def test_what_is_cut_off_is_refused(cut: float, tmp_path: Path) -> None:
    array = values("uint16", (64, 64, 5))
    for options in ({}, {"compression": "zlib"}, {"tile": (16, 16)}):
        data = written(array, planarconfig="contig", photometric="minisblack", **options)
        path = tmp_path / "a.tif"
        path.write_bytes(data[: int(len(data) * cut)])
        with pytest.raises(PictureError, match=r"a\.tif"):
            image.load(path, channels=5, value_range=(0, 1))


def test_random_damage_is_refused_or_read() -> None:
    data = bytearray(written(values("uint16", (24, 24, 5)), planarconfig="contig", photometric="minisblack"))
    rng = np.random.default_rng(7)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 400), 3):
            damaged[place] = rng.integers(0, 256)
        try:
            image.load(bytes(damaged), channels=5, value_range=(0, 20000), max_pixels=10_000)
        except PictureError as error:
            assert "\n" not in str(error)
