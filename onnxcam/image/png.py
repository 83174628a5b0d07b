"""PNG files, written faster than OpenCV writes them; heatmaps as a palette over the grey map they are made of.

A compressed row is stored as its difference from the row above (filter 2, "Up",
https://www.w3.org/TR/png-3/#9Filters): numpy takes it in one pass, and photographs and smooth maps both shrink by it.
Colours go into the file a few rows at a time, in a chunk of their own (the standard lets the data be cut anywhere), so
that a picture need not exist as a whole, and what is drawn is still in the core's cache when it is written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import OutputError
from onnxcam.image.deflate import deflate

Pixels = NDArray[np.uint8]
Piece = bytes | memoryview

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE = 0, 2, 3
_UP = 2
_LARGEST_SIDE = 2**31 - 1
_STORED = 2**16 - 1  # bytes in a stored block at most
_BLOCKS = 4  # in a chunk
_END = struct.pack(">I4sI", 0, b"IEND", 0xAE426082)


class Packed(NamedTuple):
    """The compressed pixels of a grey picture [H, W], from which its file is made, with or without a palette."""

    height: int
    width: int
    data: bytes


def pack(gray: Pixels) -> Packed:
    """Compress uint8 [H, W].

    Raises:
        OutputError: not such an array.
    """
    check(gray, colors=False)
    packer = deflate().runs()
    data = packer.compress(_differences(gray, None).data) + packer.flush()
    return Packed(gray.shape[0], gray.shape[1], data)


def shades(packed: Packed, palette: Pixels | None = None) -> bytes:
    """The PNG file; with a palette, uint8 [256, 3] RGB, grey levels are shown in its colours."""
    start = _start(packed.height, packed.width, _GRAY if palette is None else _PALETTE)
    table = b"" if palette is None else _chunk(b"PLTE", palette.tobytes())
    return b"".join((start, table, _chunk(b"IDAT", packed.data), _END))


def bands(height: int, width: int) -> Iterator[slice]:
    """The rows of a picture of this size, a few at a time, as `colors` takes them best."""
    step = max(_STORED // (3 * width + 1), 1) * _BLOCKS
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def colors(height: int, width: int, parts: Iterable[Pixels], compress: bool = True) -> Iterator[Piece]:
    """The parts of the PNG file of a picture [height, width], made of its rows as they come.

    Args:
        height, width: the picture's size.
        parts: uint8 [n, width, 3] RGB, from the first rows to the last.
        compress: False stores the pixels as they are, more than ten times faster and about twice as large.
    """
    yield _start(height, width, _RGB)
    # a block of a stored row or more: what is wider is compressed
    yield from _compressed(parts) if compress or 3 * width + 1 > _STORED else _stored(parts, height)
    yield _END


def check(pixels: Pixels, colors: bool = True) -> None:
    """Refuse what is no picture: uint8 [H, W, 3], or [H, W] where it isn't coloured.

    Raises:
        OutputError: it is none.
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
    """Rows [h, n], each without the row above it and with the filter's number before it."""
    filtered = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0] if above is None else rows[0] - above
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _stored(parts: Iterable[Pixels], height: int) -> Iterator[Piece]:
    """Rows without a filter as a zlib stream of stored blocks of whole rows (RFC 1950, RFC 1951 3.2.4).

    Blocks of one length are filled by one assignment: each that numpy makes gives the interpreter's lock to other
    threads and waits to have it back.
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
