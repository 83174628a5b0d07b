"""A PNG encoder, faster than OpenCV's; heatmaps as a grey map with a palette.

A compressed row is stored as differences (https://www.w3.org/TR/png-3/#9Filters), which numpy computes in one pass: of
a colour picture from the row above (filter 2, "Up"), of a smooth map from the pixel before (filter 1, "Sub"), which
makes maps a sixth smaller. Colour pictures are encoded a few rows at a time, each part in its own chunk (the standard
allows any split of the data), so a picture need not exist as a whole, and its rows are still in the core's cache when
they are written.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import OutputError
from onnxcam.files import write_pieces
from onnxcam.image.deflate import deflate

Pixels = NDArray[np.uint8]
Piece = bytes | memoryview

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE = 0, 2, 3
_SUB, _UP = 1, 2
_LARGEST_SIDE = 2**31 - 1
_STORED = 2**16 - 1  # bytes in a stored block at most
_BLOCKS = 4  # in a chunk
_BAND = 1 << 18  # bytes of a grey picture compressed at a time
_END = struct.pack(">I4sI", 0, b"IEND", 0xAE426082)


def write_png(path: str | os.PathLike[str], pixels: Pixels, compress: bool = True) -> None:
    """Write uint8 [H, W, 3] RGB or [H, W] grey as a PNG, atomically; uncompressed colours take a tenth of the time.

    Raises:
        OutputError: an array of a different shape or dtype, or the file could not be written.
    """
    write_pieces(path, pieces(pixels, compress))


def encode_png(pixels: Pixels, compress: bool = True) -> bytes:
    """Encode uint8 [H, W, 3] RGB or [H, W] grey as the bytes of a PNG.

    Raises:
        OutputError: an array of a different shape or dtype.
    """
    return b"".join(pieces(pixels, compress))


def pieces(pixels: Pixels, compress: bool = True) -> Iterable[Piece]:
    """The bytes of a PNG in order, see `encode_png`."""
    if pixels.ndim == 2:
        return [shades(pack(pixels))]
    check(pixels)
    height, width = pixels.shape[:2]
    return colors(height, width, (pixels[rows] for rows in bands(height, width)), compress)


class Packed(NamedTuple):
    """The compressed pixels of a grey picture [H, W], for files with or without a palette."""

    height: int
    width: int
    data: bytes


def pack(gray: Pixels) -> Packed:
    """Compress uint8 [H, W].

    Raises:
        OutputError: an array of a different shape or dtype.
    """
    check(gray, colors=False)
    packer = deflate().runs()
    height, width = gray.shape
    step = max(_BAND // width, 1)
    filtered = np.empty((min(step, height), width + 1), np.uint8)  # of all rows they are as much memory as the picture
    filtered[:, 0] = _SUB
    data = []
    for start in range(0, height, step):
        rows = gray[start : start + step]
        some = filtered[: len(rows)]
        some[:, 1] = rows[:, 0]
        np.subtract(rows[:, 1:], rows[:, :-1], out=some[:, 2:])
        data.append(packer.compress(some.data))
    return Packed(height, width, b"".join([*data, packer.flush()]))


def shades(packed: Packed, palette: Pixels | None = None) -> bytes:
    """Encode a grey picture as a PNG; with a palette, uint8 [256, 3] RGB, grey levels are shown in its colours."""
    start = _start(packed.height, packed.width, _GRAY if palette is None else _PALETTE)
    table = b"" if palette is None else _chunk(b"PLTE", palette.tobytes())
    return b"".join((start, table, _chunk(b"IDAT", packed.data), _END))


def bands(height: int, width: int) -> Iterator[slice]:
    """Split the rows of a picture of this size into the parts that `colors` encodes fastest."""
    step = max(_STORED // (3 * width + 1), 1) * _BLOCKS
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def colors(height: int, width: int, parts: Iterable[Pixels], compress: bool = True) -> Iterator[Piece]:
    """Encode a colour picture as a PNG, part by part.

    Args:
        height, width: the picture's size.
        parts: uint8 [n, width, 3] RGB, from the first rows to the last.
        compress: False stores the pixels uncompressed, more than ten times faster and about twice as large.

    Yields:
        The bytes of the file, in order.
    """
    yield _start(height, width, _RGB)
    # an uncompressed block holds whole rows, so wider pictures are compressed
    yield from _compressed(parts) if compress or 3 * width + 1 > _STORED else _stored(parts, height)
    yield _END


def check(pixels: Pixels, colors: bool = True) -> None:
    """Refuse an array that is not a picture: uint8 [H, W, 3], or [H, W] without colours.

    Raises:
        OutputError: a different shape or dtype, or no pixels.
    """
    good = pixels.ndim == 3 and pixels.shape[2] == 3 if colors else pixels.ndim == 2
    if pixels.dtype != np.uint8 or pixels.size == 0 or not good or max(pixels.shape[:2]) > _LARGEST_SIDE:
        raise OutputError(
            f"{pixels.dtype} {list(pixels.shape)} is not a picture, expected uint8 [H, W, 3] RGB or [H, W]"
        )


def _compressed(parts: Iterable[Pixels]) -> Iterator[Piece]:
    packer = deflate().noise()
    above: Pixels | None = None
    for part in parts:
        rows = part.reshape(len(part), -1)
        data = packer.compress(_differences(rows, above).data)
        above = rows[-1]
        if data:
            yield _chunk(b"IDAT", data)
    yield _chunk(b"IDAT", packer.flush())


def _differences(rows: Pixels, above: Pixels | None) -> Pixels:
    """Subtract from each of the rows [h, n] the row above it, and prepend the filter's number."""
    filtered = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0] if above is None else rows[0] - above
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _stored(parts: Iterable[Pixels], height: int) -> Iterator[Piece]:
    """Encode rows without a filter as a zlib stream of stored blocks of whole rows (RFC 1950, RFC 1951 3.2.4).

    Blocks of one length are filled by one assignment, as each assignment in numpy releases the interpreter's lock and
    waits for it again.
    """
    fast = deflate()
    check, row = 1, 0
    for part in parts:
        count, line = len(part), 3 * part.shape[1] + 1
        each = _STORED // line
        first, last = row == 0, row + count == height
        size = 2 * first + 5 * -(-count // each) + count * line + 4 * last
        chunk = np.empty(size + 12, np.uint8)
        struct.pack_into(">I4s", chunk.data, 0, size, b"IDAT")
        if first:
            chunk[8:10] = 0x78, 0x01
        at, done = 8 + 2 * first, 0
        for rows, number in ((each, count // each), (count % each, 1)):
            if not rows or not number:
                continue
            length = rows * line
            blocks = chunk[at : at + number * (5 + length)].reshape(number, 5 + length)
            blocks[:, :5] = np.frombuffer(struct.pack("<BHH", 0, length, length ^ 0xFFFF), np.uint8)
            lines = blocks[:, 5:].reshape(number, rows, line)
            lines[..., 0] = 0
            lines[..., 1:] = part[done : done + number * rows].reshape(number, rows, -1)
            for block in blocks:
                check = fast.adler32(block[5:], check)
            at, done = at + blocks.size, done + number * rows
            blocks[-1, 0] = last and done == count
        if last:
            struct.pack_into(">I", chunk.data, at, check)
        struct.pack_into(">I", chunk.data, size + 8, fast.crc32(chunk.data[4:-4]))
        row += count
        yield chunk.data


def _start(height: int, width: int, kind: int) -> bytes:
    return _SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))


def _chunk(name: bytes, data: bytes) -> bytes:
    crc32 = deflate().crc32
    return b"".join((struct.pack(">I", len(data)), name, data, struct.pack(">I", crc32(data, crc32(name)))))
