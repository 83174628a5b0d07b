"""PNG files, written faster than OpenCV writes them; heatmaps as a palette over the grey map they are made of.

A row is stored as its difference from the row above (filter 2, "Up", https://www.w3.org/TR/png-3/#9Filters): numpy
takes it in one pass, and photographs and smooth maps both shrink by it.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import OutputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE = 0, 2, 3
_UP = 2
_LARGEST_SIDE = 2**31 - 1
_STORED = 2**16 - 1  # bytes in a stored block at most


class Packed(NamedTuple):
    """The compressed pixels of a picture, from which its file is made: [H, W] also with a palette."""

    height: int
    width: int
    kind: int
    data: bytes | memoryview


def pack(pixels: NDArray[np.uint8], compress: bool = True) -> Packed:
    """Compress uint8 [H, W, 3] RGB or [H, W] grey.

    Args:
        pixels: the picture.
        compress: False stores an RGB picture as it is, more than ten times faster and about twice as large. Grey maps
            are always compressed, as they become tiny.

    Raises:
        OutputError: not such an array.
    """
    good = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or pixels.size == 0 or not good or max(pixels.shape[:2]) > _LARGEST_SIDE:
        raise OutputError(
            f"{pixels.dtype} {list(pixels.shape)} is not a picture, expected uint8 [H, W, 3] RGB or [H, W]"
        )
    height, width = pixels.shape[:2]
    gray = pixels.ndim == 2
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    if not (gray or compress) and rows.shape[1] < _STORED:
        return Packed(height, width, _RGB, _stored(rows))
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    # a photograph's differences hardly ever repeat, so searching for repetitions would be time spent in vain
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE if gray else zlib.Z_HUFFMAN_ONLY)
    data = packer.compress(filtered.data) + packer.flush()
    return Packed(height, width, _GRAY if gray else _RGB, data)


def _stored(rows: NDArray[np.uint8]) -> memoryview:
    """Rows [h, n] without a filter as a zlib stream of stored blocks of whole rows (RFC 1950, RFC 1951 3.2.4)."""
    height, line = rows.shape[0], rows.shape[1] + 1
    each = _STORED // line
    whole, left = divmod(height, each)
    stream = np.empty(2 + height * line + 5 * (whole + (left > 0)) + 4, np.uint8)
    stream[:2] = 0x78, 0x01
    check, at, row = 1, 2, 0
    for count in [each] * whole + [left] * (left > 0):
        length = count * line
        last = row + count == height
        stream[at : at + 5] = np.frombuffer(struct.pack("<BHH", last, length, length ^ 0xFFFF), np.uint8)
        block = stream[at + 5 : at + 5 + length]
        lines = block.reshape(count, line)
        lines[:, 0] = 0
        lines[:, 1:] = rows[row : row + count]
        check = zlib.adler32(block.data, check)
        at, row = at + 5 + length, row + count
    stream[at:] = np.frombuffer(struct.pack(">I", check), np.uint8)
    return stream.data


def file(packed: Packed, palette: NDArray[np.uint8] | None = None) -> bytes:
    """The bytes of the PNG file; with a palette, uint8 [256, 3] RGB, grey levels are shown in its colours."""
    return b"".join(pieces(packed, palette))


def pieces(packed: Packed, palette: NDArray[np.uint8] | None = None) -> list[bytes | memoryview]:
    """The same one after the other, the large one not copied."""
    kind = packed.kind if palette is None else _PALETTE
    header = struct.pack(">IIBBBBB", packed.width, packed.height, 8, kind, 0, 0, 0)
    found: list[bytes | memoryview] = [_SIGNATURE, *_chunk(b"IHDR", header)]
    if palette is not None:
        found += _chunk(b"PLTE", palette.tobytes())
    return [*found, *_chunk(b"IDAT", packed.data), *_chunk(b"IEND", b"")]


def _chunk(name: bytes, data: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    check = zlib.crc32(data, zlib.crc32(name))
    return struct.pack(">I", len(data)), name, data, struct.pack(">I", check)
