"""The page's JavaScript reads PNG files as Python does."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxcam import image
from onnxcam.errors import PictureError
from tests.page.test_preprocess import rough
from tests.support.javascript import Node, array


def encoded(picture: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def by_hand(
    values: np.ndarray, depth: int, kind: int, interlaced: bool = False, filters: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG of samples `[H, W, C]`, in forms that Pillow does not write."""
    height, width = values.shape[:2]
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    data = b""
    for x, y, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        part = values[y::dy, x::dx]
        if not part.size:
            continue
        lines = []
        for row in part:
            bits = "".join(f"{int(value):0{depth}b}" for value in row.ravel())
            bits += "0" * (-len(bits) % 8)
            lines.append(bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)))
        step = max(values.shape[2] * depth // 8, 1)
        before = bytes(len(lines[0]))
        for number, line in enumerate(lines):
            name = (number + filters) % 5 if filters else 0
            data += bytes([name]) + filtered(name, line, before, step)
            before = line
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


def filtered(name: int, line: bytes, before: bytes, step: int) -> bytes:
    result = bytearray()
    for at, value in enumerate(line):
        left = line[at - step] if at >= step else 0
        corner = before[at - step] if at >= step else 0
        up = before[at]
        p = left + up - corner
        nearest = min((left, up, corner), key=lambda c: abs(p - c))
        guess = (0, left, up, (left + up) // 2, nearest)[name]
        result.append((value - guess) % 256)
    return bytes(result)


def files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    pixels = rough(37, 53)
    photo = Image.fromarray(pixels)
    clear = Image.fromarray(np.dstack([pixels, rng.integers(0, 256, (37, 53)).astype(np.uint8)]))
    grey = photo.convert("L")
    bright = rng.integers(0, 65536, (11, 13, 3))
    colors = chunk(b"PLTE", rng.integers(0, 256, 48).astype(np.uint8).tobytes())
    listed = {
        "RGB": encoded(photo),
        "RGBA": encoded(clear),
        "grey": encoded(grey),
        "grey and alpha": encoded(clear.convert("LA")),
        "palette": encoded(photo.convert("P")),
        "palette with a clear colour": encoded(photo.convert("P"), transparency=3),
        "two levels": encoded(grey.convert("1")),
        "16 bits grey": encoded(Image.fromarray(rng.integers(0, 65536, (20, 21)).astype(np.uint16))),
        "16 bits": by_hand(bright, 16, 2),
        "16 bits with alpha": by_hand(rng.integers(0, 65536, (11, 13, 4)), 16, 6, filters=1),
        "4 bits of palette": by_hand(rng.integers(0, 16, (9, 7, 1)), 4, 3, extra=colors),
        "2 bits of grey": by_hand(rng.integers(0, 4, (9, 7, 1)), 2, 0),
        "all filters": by_hand(pixels, 8, 2, filters=1),
        "all filters, grey": by_hand(pixels[..., :1], 8, 0, filters=3),
        "interlaced": by_hand(pixels, 8, 2, interlaced=True),
        "interlaced, filters": by_hand(pixels, 8, 2, interlaced=True, filters=2),
        "interlaced, 1 bit": by_hand(rng.integers(0, 2, (5, 3, 1)), 1, 0, interlaced=True),
        "one pixel": encoded(Image.fromarray(pixels[:1, :1])),
        "a clear colour": encoded(photo, transparency=tuple(int(value) for value in pixels[0, 0])),
    }
    return listed | {f"orientation {turn}": encoded(photo, exif=exif(turn)) for turn in range(1, 9)}


def test_png_files_are_read_as_python_reads_them(node: Node) -> None:
    listed = files()
    cases = [{"action": "read", "file": base64.b64encode(data).decode()} for data in listed.values()]
    differing = {}
    for (name, data), actual in zip(listed.items(), node.run(cases), strict=True):
        want = image.load(data).pixels
        if "error" in actual:
            differing[name] = actual["error"]
            continue
        pixels = array(actual["pixels"]).reshape(actual["height"], actual["width"], actual["channels"])
        if pixels.shape != want.shape or (pixels != want).any():
            differing[name] = f"{pixels.shape} for {want.shape}"
    assert not differing


def test_damaged_files_are_refused_in_a_sentence(node: Node) -> None:
    whole = encoded(Image.fromarray(rough(37, 53)))
    large = whole[:16] + struct.pack(">II", 20_000, 20_000) + whole[24:]
    narrow = by_hand(np.zeros((4, 4, 1), int), 8, 0)
    bad = {
        "cut off": [whole[:-30], whole[: len(whole) // 2], whole[:40], whole[:20], narrow[:24] + b"\3" + narrow[25:]],
        "more than the limit": [large],
    }
    cases = [(message, data) for message, some in bad.items() for data in some]
    results = node.run([{"action": "read", "file": base64.b64encode(data).decode()} for _, data in cases])
    for (message, data), result in zip(cases, results, strict=True):
        assert result.get("kind") == "PictureError" and message in result["error"], (len(data), result)


@pytest.mark.parametrize("top", [4095, 255])
def test_dark_files_of_16_bits_are_refused_as_in_python(node: Node, top: int) -> None:
    data = encoded(Image.fromarray(np.full((4, 4), top, np.uint16)))
    with pytest.raises(PictureError, match="no value above"):
        image.load(data)
    (result,) = node.run([{"action": "read", "file": base64.b64encode(data).decode()}])
    assert "no value above" in result["error"]
