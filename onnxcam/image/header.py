"""The header of a picture file: its format and size, read before anything is decoded.

A 48 KB PNG can declare 20000 x 20000 pixels and take 2.3 GiB to decode, so the size is checked first. The parsers read
headers only, from any seekable stream, and visit a bounded number of blocks.
"""

from __future__ import annotations

import ast
import io
import math
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from onnxcam.errors import PictureError

NUMPY = "NumPy"
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WebP", "TIFF")
LARGEST = 1 << 27  # values of an array: half a GiB in float32
_BLOCKS = 1_000_000
_ARRAY_HEADER = 10_000  # bytes of a header in which only type and shape stand
_ARRAY_TYPES = "?bBhHiIlLqQefd"
_FARTHEST = 1 << 40  # bytes: an offset beyond this is damage
_EXIF_ORIENTATION = 0x0112


class Header(NamedTuple):
    """Format name, and the height and width in pixels as stored (before any EXIF orientation)."""

    format: str
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width


class HeaderError(PictureError):
    """The header is cut off, contradictory or of an unknown format; the message lacks its subject, the file's name."""


def read_header(stream: BinaryIO) -> Header:
    """Read the format and size of the picture in a stream.

    Raises:
        HeaderError: an unknown format, or a header that is broken or cut off.
    """
    stream.seek(0)
    start = stream.read(32)
    if not start:
        raise HeaderError("is empty (0 bytes); give a whole picture file")
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        header = _png(stream)
    elif start.startswith(b"\xff\xd8\xff"):
        header = _jpeg(stream)
    elif start.startswith(b"BM"):
        header = _bmp(stream)
    elif start.startswith((b"GIF87a", b"GIF89a")):
        width, height = _unpack("<HH", start[6:10], "GIF")
        header = Header("GIF", height, width)
    elif start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        header = _webp(start)
    elif start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        header = _tiff(stream)
    elif start.startswith(b"\x93NUMPY"):
        header = _npy(stream)
    else:
        raise HeaderError(_unreadable(start))
    if header.height < 1 or header.width < 1:
        raise HeaderError(f"is a {header.format} of {header.width}x{header.height} pixels; give one with pixels in it")
    return header


def _unreadable(start: bytes) -> str:
    """The message for data that cannot be read, with the name of its format if it is recognised."""
    formats = {
        b"%PDF": "a PDF document",
        b"\xff\x0a": "a JPEG XL picture",
        b"\0\0\0\x0cJXL ": "a JPEG XL picture",
        b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
        b"\xff\x4f\xff\x51": "a JPEG 2000 picture",
        b"8BPS": "a Photoshop document",
        b"v/1\x01": "an OpenEXR picture",
        b"\0\0\x01\0": "an icon (ICO)",
        b"PK\x03\x04": "a ZIP archive (of an .npz give one array, saved by np.save)",
        b"\x1f\x8b": "a gzip archive",
        b"<svg": "an SVG drawing",
        b"<?xml": "an XML or SVG document",
        b"<!DOCTYPE": "an HTML page",
        b"<html": "an HTML page",
    }
    name = next((format_name for magic, format_name in formats.items() if start.startswith(magic)), None)
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        name = "a video (MP4 or QuickTime)"
        if brand in (b"avif", b"avis"):
            name = "an AVIF picture"
        elif brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
            name = "a HEIC/HEIF picture"
    expected = "expected " + ", ".join(FORMATS[:-1]) + f" or {FORMATS[-1]}"
    if name is None:
        # without the bytes themselves: messages are logged, and the bytes may be private pixels
        return f"is not a picture in a known format ({expected}); is it raw pixels, or text such as base64?"
    return f"is {name}, which is not supported ({expected}); convert it to PNG or JPEG first"


def _unpack(layout: str, data: bytes, format: str) -> tuple[int, ...]:
    try:
        values: tuple[int, ...] = struct.unpack(layout, data)
    except struct.error as error:
        raise HeaderError(f"is a {format} that is cut off within its header; give a whole picture file") from error
    return values


def _png(stream: BinaryIO) -> Header:
    stream.seek(8)
    head = stream.read(16)
    _, kind, width, height = struct.unpack(">I4sII", head) if len(head) == 16 else (0, b"", 0, 0)
    if kind != b"IHDR":
        raise HeaderError("is a PNG that is cut off within its header; give a whole picture file")
    return Header("PNG", height, width)


def _jpeg(stream: BinaryIO) -> Header:
    stream.seek(2)
    for _ in range(_BLOCKS):
        marker = _marker(stream)
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:
            continue
        if marker in (0xD9, 0xDA):
            break
        (length,) = _unpack(">H", stream.read(2), "JPEG")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width = _unpack(">BHH", stream.read(5), "JPEG")
            return Header("JPEG", height, width)
        stream.seek(max(length - 2, 0), io.SEEK_CUR)
    raise HeaderError("is a JPEG without a frame header, so its size is unknown; give a whole picture file")


def _marker(stream: BinaryIO) -> int:
    byte = stream.read(1)
    if byte != b"\xff":
        raise HeaderError("is a JPEG that is cut off or damaged within its header; give a whole picture file")
    while byte == b"\xff":
        byte = stream.read(1)
    return _unpack("B", byte, "JPEG")[0]


def _bmp(stream: BinaryIO) -> Header:
    stream.seek(14)
    (size,) = _unpack("<I", stream.read(4), "BMP")
    if size == 12:
        width, height = _unpack("<HH", stream.read(4), "BMP")
    else:
        width, height = _unpack("<ii", stream.read(8), "BMP")
    # a negative height: rows from top to bottom
    return Header("BMP", abs(height), width)


def _webp(start: bytes) -> Header:
    kind, body = start[12:16], start[20:]
    if kind == b"VP8X":
        _unpack("6s", body[4:10], "WebP")
        return Header("WebP", int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1)
    if kind == b"VP8L":
        _, bits = _unpack("<BI", body[:5], "WebP")
        return Header("WebP", (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = _unpack("<HH", body[6:10], "WebP")
        return Header("WebP", height & 0x3FFF, width & 0x3FFF)
    raise HeaderError("is a WebP with an unknown first chunk; give a whole picture file")


def _tiff(stream: BinaryIO) -> Header:
    tags = read_tags(stream)
    if 256 not in tags or 257 not in tags:
        raise HeaderError("is a TIFF without a width and a height; give a whole picture file")
    # a tile is decoded whole, so a tile larger than the picture counts as the picture's size
    width = max(*tags[256], *tags.get(322, (0,)))
    height = max(*tags[257], *tags.get(323, (0,)))
    return Header("TIFF", height, width)


def _npy(stream: BinaryIO) -> Header:
    _, shape, _ = read_array_header(stream)
    sides = list(shape[-3:])
    if len(sides) == 3:  # of the first and the last axis the smaller one is the channels
        sides.remove(min(sides[0], sides[2]))
    return Header(NUMPY, sides[0], sides[1])


def read_array_header(
    stream: BinaryIO, ranks: Sequence[int] = (2, 3, 4)
) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Read type, shape and order of a `.npy` file; the stream is then at its data.

    Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

    Raises:
        HeaderError: damaged, cut off, of objects or another type than numbers, or too large.
    """
    stream.seek(6)
    version = stream.read(2)
    length = int.from_bytes(stream.read(2 if version[:1] == b"\1" else 4), "little")
    try:
        if length > _ARRAY_HEADER:
            raise ValueError
        fields = ast.literal_eval(stream.read(length).decode("latin-1").strip())
        kind, fortran, shape = fields["descr"], fields["fortran_order"], tuple(fields["shape"])
        dtype = np.dtype(kind if isinstance(kind, str) else object)
        if not all(type(side) is int and side >= 0 for side in shape) or not isinstance(fortran, bool):
            raise ValueError
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise HeaderError("is a NumPy array that is cut off or damaged within its header; save it again") from error
    if dtype.char not in _ARRAY_TYPES:
        raise HeaderError(f"is a NumPy array of {dtype}; expected numbers, such as uint8, uint16 or float32")
    if len(shape) not in ranks or math.prod(shape) < 1:
        expected = "[H, W] or [H, W, C] with pixels in it" if 3 in ranks else "a vector [D] with numbers in it"
        raise HeaderError(f"is a NumPy array of shape {list(shape)[:8]}; expected {expected}")
    if math.prod(shape) > LARGEST:
        raise HeaderError(f"is a NumPy array of {math.prod(shape):,} numbers, more than the limit of {LARGEST:,}")
    return dtype, shape, fortran


def read_tags(stream: BinaryIO, limit: int = 100_000) -> dict[int, tuple[int, ...]]:
    """Read the integer tags of the first directory of a TIFF or EXIF block; a repeated tag has all its values.

    Raises:
        HeaderError: the block is cut off, or one tag has more than `limit` values.
    """
    return read_directories(stream, 1, limit)[0]


def read_directories(stream: BinaryIO, most: int, limit: int = 100_000) -> list[dict[int, tuple[int, ...]]]:
    """Read the integer tags of the first directories of a TIFF, one for each page, at most `most`.

    Raises:
        HeaderError: as of `read_tags`.
    """
    stream.seek(0)
    start = stream.read(16)
    order = byte_order(start)
    big = start[2:4] in (b"+\0", b"\0+")
    (offset,) = _unpack(order + "Q", start[8:16], "TIFF") if big else _unpack(order + "I", start[4:8], "TIFF")
    directories: list[dict[int, tuple[int, ...]]] = []
    visited: set[int] = set()
    while not directories or (offset and offset not in visited and len(directories) < most):
        visited.add(offset)
        tags, offset = _read_directory(stream, order, big, offset, limit, follow=most > 1)
        directories.append(tags)
    return directories


def byte_order(start: bytes) -> str:
    """The byte order of a TIFF as `struct` calls it."""
    return "<" if start[:1] == b"I" else ">"


def _read_directory(
    stream: BinaryIO, order: str, big: bool, offset: int, limit: int, follow: bool
) -> tuple[dict[int, tuple[int, ...]], int]:
    """The tags of a directory, and the offset of the next one, 0 after the last."""
    _seek(stream, offset)
    (count,) = _unpack(order + "Q", stream.read(8), "TIFF") if big else _unpack(order + "H", stream.read(2), "TIFF")
    size, inline = (20, 8) if big else (12, 4)
    codes = {1: "B", 3: "H", 4: "I", 16: "Q"}
    tags: dict[int, tuple[int, ...]] = {}
    first = offset + (8 if big else 2)
    # most files have under 100 entries; a much larger count is damage or an attack
    for index in range(min(count, 4096)):
        _seek(stream, first + index * size)
        entry = stream.read(size)
        tag, kind, number = _unpack(order + ("HHQ" if big else "HHI"), entry[: size - inline], "TIFF")
        if kind not in codes or tag not in _TAGS or number < 1:
            continue
        layout = f"{order}{number}{codes[kind]}"
        if number > limit:
            raise HeaderError(f"is a damaged TIFF ({number:,} values in tag {tag}); save or copy it again")
        width = struct.calcsize(layout)
        if width > inline:
            (at,) = _unpack(order + ("Q" if big else "I"), entry[-inline:], "TIFF")
            _seek(stream, at)
            data = stream.read(width)
        else:
            data = entry[size - inline : size - inline + width]
        tags[tag] = tags.get(tag, ()) + _unpack(layout, data, "TIFF")
    if not follow:
        return tags, 0
    _seek(stream, first + min(count, 4096) * size)
    end = stream.read(8 if big else 4)
    return tags, int.from_bytes(end, "little" if order == "<" else "big") if len(end) in (4, 8) else 0


def _seek(stream: BinaryIO, at: int) -> None:
    if at > _FARTHEST:
        raise HeaderError("is a damaged TIFF (an offset far beyond its end); save or copy it again")
    stream.seek(at)


_TAGS = {
    *(254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 338, 339),
    _EXIF_ORIENTATION,
}


def orientation(data: bytes, format: str) -> int:
    """Read the EXIF orientation of an encoded picture, 1 (upright) to 8; 1 if it is missing or damaged."""
    try:
        block = data if format == "TIFF" else _exif(data, format)
        if block is None:
            return 1
        value = read_tags(io.BytesIO(block.removeprefix(b"Exif\0\0"))).get(_EXIF_ORIENTATION, (1,))[0]
    except HeaderError:
        return 1
    return value if 1 <= value <= 8 else 1


def _exif(data: bytes, format: str) -> bytes | None:
    """Find the EXIF block of a JPEG, PNG or WebP; None if there is none."""
    if format == "JPEG":
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
            if data[at + 1] == 0xFF:
                at += 1
                continue
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
                return data[at + 4 : at + 2 + length]
            at += 2 + max(length, 2)
    elif format == "PNG":
        at = 8
        while at + 8 <= len(data):
            length = int.from_bytes(data[at : at + 4], "big")
            if data[at + 4 : at + 8] == b"eXIf":
                return data[at + 8 : at + 8 + length]
            at += 12 + length
    elif format == "WebP":
        at = 12
        while at + 8 <= len(data):
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            if data[at : at + 4] == b"EXIF":
                return data[at + 8 : at + 8 + length]
            at += 8 + length + (length & 1)
    return None
