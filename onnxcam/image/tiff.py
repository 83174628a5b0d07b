"""TIFF files of any number of bands and any sample type, which OpenCV does not read.

Strips and tiles; samples of 8, 16, 32 and 64 bits, whole or floating-point; interleaved or plane by plane; several
pages of one band each; uncompressed, Deflate, LZW and PackBits, with either predictor. TIFF 6.0 and Adobe's Technical
Note 3 (floating-point predictor).
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcam.image.header import LARGEST, HeaderError, byte_order, read_directories

Tags = dict[int, tuple[int, ...]]

_PAGES = 256
_KINDS = {1: "u", 2: "i", 3: "f"}
_RGB, _PALETTE = 2, 3
_GREY = (0, 1)
_ALPHA = (1, 2)  # values of the tag ExtraSamples
_STEP = 1 << 20  # decompressed at once at most beyond what is expected


@dataclass(frozen=True)
class _Form:
    """The form of one page's samples."""

    height: int
    width: int
    samples: int
    dtype: np.dtype[Any]
    planar: bool
    compression: int
    predictor: int

    @classmethod
    def of(cls, tags: Tags, order: str) -> _Form:
        bits, kinds = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
        if len(bits) != 1 or len(kinds) != 1 or not kinds <= _KINDS.keys():
            raise HeaderError("is a TIFF whose bands have different types; save them as one type")
        size, kind = bits.pop(), _KINDS[kinds.pop()]
        if size not in (8, 16, 32, 64) or (kind == "f" and size == 8):
            raise HeaderError(
                f"is a TIFF of {size} bits per sample packed together; expected 8, 16 or 32: save it as 16 bits"
            )
        return cls(
            tags[257][0],
            tags[256][0],
            tags.get(277, (1,))[0],
            np.dtype(f"{order}{kind}{size // 8}"),
            tags.get(284, (1,))[0] == 2,
            tags.get(259, (1,))[0],
            tags.get(317, (1,))[0],
        )


def is_plain(data: bytes, channels: int | None) -> bool:
    """Whether a TIFF is a picture that OpenCV reads as it is: 1, 3 or 4 samples of at most 16 bits.

    Arguments:
        channels: of the model; None or 1 or 3 for pictures in the usual sense.
    """
    directories = read_directories(io.BytesIO(data), _PAGES)
    tags = directories[0]
    samples, photometric = tags.get(277, (1,))[0], tags.get(262, (1,))[0]
    whole = set(tags.get(339, (1,))) == {1} and max(tags.get(258, (1,))) <= 16
    alpha = bool(set(tags.get(338, ())) & set(_ALPHA))
    usual = samples == 1 or (samples == 2 and alpha) or (samples in (3, 4) and photometric not in _GREY)
    as_bands = channels not in (None, 1, 3) and photometric != _PALETTE
    return whole and usual and not as_bands and not (samples == 4 and photometric == _RGB and not alpha)


def has_alpha(data: bytes) -> bool:
    """Whether the last band is declared to be opacity."""
    return bool(set(read_directories(io.BytesIO(data), 1)[0].get(338, ())) & set(_ALPHA))


def read(data: bytes) -> NDArray[Any]:
    """Read the bands of a TIFF, `[H, W, C]` in their own type; pages of one band each and of one form are its bands.

    Raises:
        HeaderError: cut off, damaged, too large, or of a form that is not read; the message lacks its subject.
    """
    order = byte_order(data)
    pages = [tags for tags in read_directories(io.BytesIO(data), _PAGES) if not tags.get(254, (0,))[0] & 1]
    if not pages or not {256, 257} <= pages[0].keys():
        raise HeaderError("is a TIFF without a width and a height; give a whole picture file")
    first = _Form.of(pages[0], order)
    alike = [pages[0]]
    if first.samples == 1:
        for tags in pages[1:]:
            if not {256, 257} <= tags.keys() or _Form.of(tags, order) != first:
                alike = pages[:1]
                break
            alike.append(tags)
    if first.height * first.width * first.samples * len(alike) > LARGEST:
        raise HeaderError(f"is a TIFF of more than {LARGEST:,} values; cut it into parts")
    planes = [_page(data, tags, first) for tags in alike]
    return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)


def _page(data: bytes, tags: Tags, form: _Form) -> NDArray[Any]:
    tiled = 324 in tags
    offsets, counts = (tags.get(324, ()), tags.get(325, ())) if tiled else (tags.get(273, ()), tags.get(279, ()))
    if tiled:
        rows, columns = tags.get(323, (0,))[0], tags.get(322, (0,))[0]
    else:
        rows, columns = min(tags.get(278, (form.height,))[0], form.height), form.width
    if rows < 1 or columns < 1 or rows * columns * form.samples > LARGEST:
        raise HeaderError("is a damaged TIFF (the size of its parts); save or copy it again")
    depth = 1 if form.planar else form.samples
    down, across = -(-form.height // rows), -(-form.width // columns)
    planes = form.samples if form.planar else 1
    if len(offsets) != down * across * planes or len(counts) != len(offsets):
        raise HeaderError("is a damaged TIFF (the number of its parts); save or copy it again")
    values = np.zeros((form.height, form.width, form.samples), form.dtype.newbyteorder("="))
    for place, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        plane, rest = divmod(place, down * across)
        top, left = rest // across * rows, rest % across * columns
        # the last strip may be shorter, tiles are always whole
        height = rows if tiled else min(rows, form.height - top)
        part = _part(data[offset : offset + count], form, (height, columns, depth))
        bands = slice(plane, plane + 1) if form.planar else slice(None)
        window = values[top : top + height, left : left + columns, bands]
        window[:] = part[: window.shape[0], : window.shape[1]]
    return values


def _part(data: bytes, form: _Form, shape: tuple[int, int, int]) -> NDArray[Any]:
    """The values of one strip or tile."""
    expected = int(np.prod(shape)) * form.dtype.itemsize
    plain = _decompress(data, form.compression, expected)
    if len(plain) < expected:
        raise HeaderError("is a TIFF that is cut off or damaged within its pixels; copy or save it again")
    if form.predictor == 3:
        return _floating(np.frombuffer(plain, np.uint8, expected), form, shape)
    values = np.frombuffer(plain, form.dtype, int(np.prod(shape))).reshape(shape)
    if form.predictor == 2:
        native = values.astype(form.dtype.newbyteorder("="))
        return np.cumsum(native, axis=1, dtype=native.dtype)
    if form.predictor != 1:
        raise HeaderError(f"is a TIFF with the predictor {form.predictor}, which is not read; save it uncompressed")
    return values


def _floating(data: NDArray[np.uint8], form: _Form, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Undo the floating-point predictor: differences of bytes, all most significant bytes of a row first."""
    rows, columns, depth = shape
    size = form.dtype.itemsize
    differences = data.reshape(rows, columns * size, depth)
    planes = np.cumsum(differences, axis=1, dtype=np.uint8).reshape(rows, size, columns * depth)
    whole = np.ascontiguousarray(planes.swapaxes(1, 2))
    return whole.view(np.dtype(f">f{size}")).reshape(shape)


def _decompress(data: bytes, compression: int, expected: int) -> bytes:
    if compression == 1:
        return data
    if compression in (8, 32946):
        try:
            return zlib.decompressobj().decompress(data, expected + _STEP)
        except zlib.error as error:
            raise HeaderError("is a TIFF whose pixels are damaged (Deflate); copy or save it again") from error
    if compression == 5:
        return _lzw(data, expected)
    if compression == 32773:
        return _packbits(data, expected)
    raise HeaderError(
        f"is a TIFF with more or other bands than a photograph and the compression {compression}, which is not read; "
        "save it uncompressed, or with Deflate or LZW"
    )


def _packbits(data: bytes, expected: int) -> bytes:
    """Runs of literal and of repeated bytes."""
    plain = bytearray()
    at = 0
    while at < len(data) and len(plain) < expected:
        count = data[at]
        if count < 128:
            plain += data[at + 1 : at + 2 + count]
            at += 2 + count
        else:
            if count > 128:
                plain += data[at + 1 : at + 2] * (257 - count)
            at += 2 if count > 128 else 1
    return bytes(plain)


def _lzw(data: bytes, expected: int) -> bytes:
    """Codes of 9 to 12 bits, the most significant first; 256 clears the table, 257 ends."""
    singles = [bytes((value,)) for value in range(256)] + [b"", b""]
    table = list(singles)
    plain = bytearray()
    previous = b""
    width, bits, filled, at = 9, 0, 0, 0
    while len(plain) < expected:
        while filled < width and at < len(data):
            bits = (bits << 8 | data[at]) & 0xFFFFFF
            filled += 8
            at += 1
        if filled < width:
            break
        filled -= width
        code = bits >> filled & (1 << width) - 1
        if code == 257:
            break
        if code == 256:
            table, width, previous = list(singles), 9, b""
            continue
        if code < len(table):
            entry = table[code]
        elif code == len(table) and previous:
            entry = previous + previous[:1]
        else:
            break  # what is missing is reported by the length
        plain += entry
        if previous and len(table) < 4096:
            table.append(previous + entry[:1])
        previous = entry
        # the width grows one code early
        width = 9 if len(table) < 511 else 10 if len(table) < 1023 else 11 if len(table) < 2047 else 12
    return bytes(plain)
