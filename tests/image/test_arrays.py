"""Pictures of more than 8 bits, of floating point and of many bands, against NumPy, Pillow and arithmetic."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxcam import image
from onnxcam.errors import PictureError, PreprocessError
from onnxcam.image import Preprocess
from onnxcam.image.resample import resize_values
from tests.image.pictures import encode


def saved(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def drawn(shape: tuple[int, ...], low: float = 0, high: float = 4095) -> np.ndarray:
    return np.random.default_rng(1).uniform(low, high, shape)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", ">u2", "float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("first", [False, True])
def test_npy_is_the_array_that_was_saved(dtype: str, order: Any, first: bool, tmp_path: Path) -> None:
    array = drawn((20, 30, 5), 0, 250).astype(dtype)
    stored = np.asarray(np.moveaxis(array, 2, 0) if first else array, order=order)
    path = tmp_path / "bands.npy"
    np.save(path, stored)
    for source in (path, saved(stored), np.asarray(stored)):
        picture = image.load(source, channels=5, value_range=(0, 255))
        assert picture.values is not None and picture.values.dtype == np.float32
        np.testing.assert_allclose(picture.values, array.astype(np.float64), rtol=1e-6)
        assert picture.pixels.shape == (20, 30, 3) and picture.pixels.dtype == np.uint8


def test_8_bit_arrays_are_plain_pictures(tmp_path: Path) -> None:
    pixels = drawn((20, 30, 3), 0, 256).astype(np.uint8)
    for stored in (pixels, np.moveaxis(pixels, 2, 0)):
        np.save(tmp_path / "a.npy", stored)
        picture = image.load(tmp_path / "a.npy")
        assert picture.values is None and picture.name == "a.npy"
        np.testing.assert_array_equal(picture.pixels, pixels)
    grey = image.load(saved(pixels[..., 0]))
    np.testing.assert_array_equal(grey.pixels, np.repeat(pixels[..., :1], 3, axis=2))


def test_an_array_under_another_name_is_an_array(tmp_path: Path) -> None:
    pixels = drawn((20, 30, 3), 0, 256).astype(np.uint8)
    path = tmp_path / "picture.bin"
    path.write_bytes(saved(pixels))
    np.testing.assert_array_equal(image.load(path).pixels, pixels)
    np.testing.assert_array_equal(image.load(path, header=image.peek(path)).pixels, pixels)


def test_a_range_keeps_all_levels_of_12_bits() -> None:
    levels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for source in (encode(Image.fromarray(levels), "PNG"), encode(Image.fromarray(levels), "TIFF"), saved(levels)):
        with pytest.raises(PictureError, match=r"no value above 4,095, as data of 12 bits.*--range 0,4095"):
            image.load(source)
        picture = image.load(source, value_range=(0, 4095))
        assert picture.values is not None
        np.testing.assert_allclose(picture.values[..., 0], levels * (255 / 4095), rtol=1e-6)
        tensor, _ = Preprocess(color="L", scale=1 / 255, mean=(0.0,), std=(1.0,)).apply(picture)
        np.testing.assert_allclose(tensor[0, 0], levels / 4095, atol=1e-6)
        assert len(np.unique(tensor)) == 4096


def test_16_bits_that_fill_their_range_need_no_range() -> None:
    levels = (np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64)
    png = encode(Image.fromarray(levels), "PNG")
    np.testing.assert_array_equal(image.load(png).pixels[..., 0], levels >> 8)
    np.testing.assert_array_equal(image.load(np.zeros((4, 4), np.uint8)).pixels, 0)
    assert image.load(encode(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG")).pixels.max() == 0
    stated = image.load(png, value_range=(0, 65535))
    assert stated.values is not None
    np.testing.assert_allclose(stated.values[..., 0], levels / 257, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (drawn((9, 9, 4)).astype(np.float32), {"channels": 4}, ["float32 values from", "--range LO,HI"]),
        (drawn((9, 9)).astype(np.int16), {}, ["int16 values from", "--range"]),
        (drawn((9, 9, 7)).astype(np.uint8), {"channels": 4}, ["7 channels", "takes 4", "array[..., [3, 2, 1, 7]]"]),
        (drawn((4, 9, 4)).astype(np.uint8), {"channels": 4}, ["first or last"]),
        (drawn((2, 9, 9, 4)).astype(np.uint8), {"channels": 4}, ["not one picture"]),
        (np.where(drawn((9, 9, 4)) > 2000, np.nan, 1.0), {"channels": 4, "value_range": (0, 1)}, ["finite", "of 324"]),
        (np.full((9, 9), np.inf), {"value_range": (0, 1)}, ["81 of 81", "not finite"]),
        (np.zeros((9, 9, 4), np.complex64), {}, ["complex64", "expected numbers"]),
        (np.array([{"a": 1}] * 4, object).reshape(2, 2), {}, ["object", "expected numbers"]),
        (np.zeros((9,), np.uint8), {}, ["shape [9]"]),
        (np.zeros((0, 9, 3), np.uint8), {}, ["with pixels in it"]),
        (drawn((9, 9, 5)), {"channels": 5, "value_range": (0, 1), "bands": (1, 2, 7)}, ["0 to 4", "7"]),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused(
    array: np.ndarray, options: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(PictureError) as caught:
        image.load(path, **options)
    message = str(caught.value)
    assert "a.npy" in message and "\n" not in message and all(word in message for word in words), message


class Payload:
    """Unpickling this would run code."""

    def __reduce__(self) -> Any:
        return exec, ("import sys; sys.stolen = True",)


def test_nothing_is_unpickled_and_sizes_are_checked_before_reading() -> None:
    with pytest.raises(PictureError, match="expected numbers"):
        image.load(saved(np.array([Payload()] * 4, object).reshape(2, 2), allow_pickle=True))
    whole = saved(np.zeros((8, 8), np.uint8))
    for damaged in (
        whole[:40],
        whole[:-1],
        whole.replace(b"(8, 8)", b"(8,10**9)"[:6]),
        whole.replace(b"(8, 8), ", b"(8, -8),"),
        whole[:10] + pickle.dumps(Payload()),
        b"\x93NUMPY" + bytes(100),
    ):
        with pytest.raises(PictureError):
            image.load(damaged)
    huge = whole.replace(b"(8, 8), }", b"(9**5,9**5), }"[:9])
    with pytest.raises(PictureError):
        image.load(huge)
    header = whole[:10] + b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 99999), }".ljust(117) + b"\n"
    with pytest.raises(PictureError, match="more than the limit"):
        image.load(header)


def test_the_bands_shown_are_those_named_and_stretched() -> None:
    array = drawn((40, 50, 6), 0, 900).astype(np.uint16)
    picture = image.load(array, channels=6, value_range=(0, 10000), bands=(4, 2, 0))
    bands = array[..., [4, 2, 0]].astype(np.float64)
    low, high = np.percentile(bands, (2, 98))
    expected = np.clip(np.rint((bands - low) / (high - low) * 255), 0, 255)
    np.testing.assert_array_equal(picture.pixels, expected)
    one = image.load(array, channels=6, value_range=(0, 10000), bands=(5,)).pixels
    assert (one[..., 0] == one[..., 1]).all() and (one[..., 0] == one[..., 2]).all()
    default = image.load(array, channels=6, value_range=(0, 10000)).pixels
    first = image.load(array, channels=6, value_range=(0, 10000), bands=(0, 1, 2)).pixels
    np.testing.assert_array_equal(default, first)
    two = drawn((9, 9, 2), 0, 256).astype(np.uint8)
    np.testing.assert_array_equal(image.load(two, channels=2).pixels, np.repeat(two[..., :1], 3, axis=2))


def test_values_beyond_the_range_are_kept_and_said() -> None:
    array = np.array([[-1.0, 0.5], [1.0, 3.0]], np.float32)
    picture = image.load(array, value_range=(0, 1))
    assert picture.values is not None
    np.testing.assert_allclose(picture.values[..., 0], array * 255)
    assert picture.doubts == ("its values go from -1 to 3, beyond the stated range 0 to 1",)
    assert image.load(array, value_range=(3, -1)).doubts == ()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "area", "nearest"])
@pytest.mark.parametrize("size", [(20, 31), (90, 40), (37, 77)])
def test_values_are_resized_as_pillow_resizes_floats(interpolation: str, size: tuple[int, int]) -> None:
    values = drawn((37, 53, 5), -3, 900).astype(np.float32)
    filters = {"area": "BOX", "lanczos": "LANCZOS"}
    how = Image.Resampling[filters.get(interpolation, interpolation.upper())]
    planes = [Image.fromarray(values[..., k]).resize(size[::-1], how) for k in range(5)]
    expected = np.stack([np.asarray(plane) for plane in planes], axis=2)
    actual = resize_values(values, size, interpolation)
    np.testing.assert_allclose(actual, expected, atol=2e-3)
    window = (slice(3, 15), slice(2, 20))
    np.testing.assert_allclose(resize_values(values, size, interpolation, True, window), actual[window], atol=1e-4)


def test_8_bit_values_give_the_tensor_of_8_bit_pixels() -> None:
    """The values' way through the preprocessing, against the exact one of pixels; they differ by its rounding."""
    pixels = drawn((50, 70, 3), 0, 256).astype(np.uint8)
    spec = {"color": "BGR", "scale": 1 / 255, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
            "resize": {"mode": "shortest", "size": 32}, "crop": {"size": [28, 28]}}  # fmt: skip
    preprocess = Preprocess.from_dict(spec)
    for layout in ("NCHW", "NHWC"):
        exact, geometry = preprocess.apply(pixels, layout=layout)
        values, same = preprocess.apply(image.load(pixels, value_range=(0, 255)), layout=layout)
        assert geometry == same and values.shape == exact.shape and values.dtype == exact.dtype
        np.testing.assert_allclose(values, exact, atol=1.1 / 255 / 0.2)
    unresized = Preprocess.from_dict(spec | {"resize": None, "crop": None})
    stated = image.load(pixels, value_range=(0, 255))
    np.testing.assert_allclose(unresized.apply(stated)[0], unresized.apply(pixels)[0], atol=1e-6)
    grey = Preprocess.from_dict({"color": "L", "resize": None})
    np.testing.assert_allclose(grey.apply(stated)[0], grey.apply(pixels)[0], atol=0.51)


def test_opacity_of_16_bits_is_laid_on_the_background() -> None:
    rgba = drawn((9, 9, 4), 0, 65536).astype(np.uint16)
    picture = image.load(rgba, value_range=(0, 65535))
    share = rgba[..., 3:] / 65535
    assert picture.values is not None
    np.testing.assert_allclose(picture.values, rgba[..., :3] / 257 * share + 255 * (1 - share), rtol=1e-5)


@pytest.mark.parametrize("name", ["0..1", "-1..1", "raw"])
def test_presets_of_any_number_of_channels(name: str) -> None:
    preprocess = image.preset(name, (16, 20), 7)
    assert preprocess.channels == 7 and Preprocess.from_dict(preprocess.to_dict()) == preprocess
    array = drawn((16, 20, 7), 0, 256).astype(np.uint8)
    tensor, _ = preprocess.apply(array)
    scaled = {"0..1": array / 255, "-1..1": array / 127.5 - 1, "raw": array.astype(float)}[name]
    np.testing.assert_allclose(tensor, np.moveaxis(scaled, 2, 0)[None], atol=1e-4)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"color": "bands"}, "channels is None"),
        ({"color": "RGB", "channels": 4}, "color 'bands'"),
        ({"color": "bands", "channels": 0}, "channels is 0"),
        ({"color": "L", "range": [1, 1]}, "range is"),
        ({"color": "L", "range": "0,1"}, "range is"),
        ({"color": "bands", "channels": 4, "mean": [1, 2, 3]}, "expected 4"),
    ],
)
def test_specifications_that_cannot_be(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(PreprocessError, match=words):
        Preprocess.from_dict(spec)


def test_a_specification_states_the_range() -> None:
    spec = {"color": "bands", "channels": 4, "scale": 1 / 255, "range": [0, 10000], "resize": None}
    preprocess = Preprocess.from_dict(spec)
    assert preprocess.to_dict()["range"] == [0, 10000] and Preprocess.from_dict(preprocess.to_dict()) == preprocess
    array = drawn((16, 20, 4), 0, 9000).astype(np.uint16)
    np.testing.assert_allclose(preprocess.apply(array)[0][0], np.moveaxis(array / 10000, 2, 0), atol=1e-6)
