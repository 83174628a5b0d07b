"""JPEG files: a picture's own data without its metadata."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from onnxcam import image
from onnxcam.image import lossy

CANARY = b"CANARY-5521"


def photograph(seed: int, size: tuple[int, int] = (61, 83)) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))


def jpeg(pixels: np.ndarray, mode: str = "RGB", **settings: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **settings)
    return stream.getvalue()


def exif(orientation: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = CANARY.decode()
    return tags


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"subsampling": 0},
        {"progressive": True, "quality": 95},
        {"restart_marker_blocks": 3},
        {"optimize": True, "subsampling": 1},
        {"exif": exif(), "comment": CANARY, "icc_profile": CANARY * 9000, "dpi": (72, 72)},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_copy_has_the_same_pixels_and_no_metadata(settings: dict[str, Any], mode: str) -> None:
    for seed in range(4):
        data = jpeg(photograph(seed, (61 + seed, 83 - seed)), mode, **settings)
        data = data[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + CANARY) + data[2:]
        data += CANARY + jpeg(photograph(seed + 100))  # as phones add a film, or a second picture
        copied = lossy.copy(data)
        assert copied is not None and CANARY not in copied and b"Exif" not in copied and b"ICC" not in copied
        assert np.array_equal(image.load(copied).pixels, image.load(data).pixels)
        with Image.open(io.BytesIO(copied)) as one, Image.open(io.BytesIO(data)) as other:
            assert np.array_equal(np.asarray(one), np.asarray(other))
            assert not one.getexif() and {*one.info} <= {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi"} | {
                "progressive", "progression",
            }  # fmt: skip
        assert lossy.copy(copied) == copied


def test_what_decides_on_the_colours_stays_and_a_thumbnail_goes() -> None:
    pixels = photograph(3)
    plain = jpeg(pixels, subsampling=0)
    at = 4 + int.from_bytes(plain[4:6], "big")  # after the JFIF segment
    colors = segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")  # the components are red, green and blue
    data = plain[:2] + colors + plain[at:]
    copied = lossy.copy(data)
    assert copied is not None and colors in copied
    assert np.array_equal(image.load(copied).pixels, image.load(data).pixels)
    assert not np.array_equal(image.load(copied).pixels, image.load(plain).pixels)
    thumbnail = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1" + bytes((2, 2)) + CANARY + b"\0")
    copied = lossy.copy(plain[:2] + thumbnail + plain[at:])
    assert copied is not None and CANARY not in copied
    assert np.array_equal(image.load(copied).pixels, image.load(plain).pixels)


def test_a_header_that_is_too_short_is_left_out() -> None:
    plain = jpeg(photograph(2))
    short = plain[:2] + segment(0xE0, b"JFIF\0\1\1") + plain[20:]
    copied = lossy.copy(short)
    assert copied is not None and copied == plain[:2] + plain[20:]
    np.testing.assert_array_equal(image.load(copied).pixels, image.load(short).pixels)
    Image.open(io.BytesIO(copied)).load()


def test_what_is_not_ordinary_is_encoded_anew() -> None:
    pixels = photograph(1)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert lossy.copy(jpeg(pixels)) is not None
    assert lossy.copy(jpeg(pixels, exif=exif(6))) is None  # turned
    assert lossy.copy(jpeg(pixels, "CMYK")) is None
    assert lossy.copy(jpeg(noise, quality=100, subsampling=0)) is None  # larger than pixels need
    assert lossy.copy(jpeg(pixels)[:-2]) is None
    assert lossy.copy(image.encode_png(pixels)) is None
    data = jpeg(pixels)
    for place in range(2, 200):  # damaged headers: never an error, and never a copy with other pixels
        damaged = data[:place] + bytes((data[place] ^ 0x40,)) + data[place + 1 :]
        copied = lossy.copy(damaged)
        if copied is not None:
            one, other = (cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR) for raw in (copied, damaged))
            assert (one is None) == (other is None) and (one is None or np.array_equal(one, other))
