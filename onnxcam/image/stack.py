"""Stacks of float maps as TIFF files: a page for each, as ImageJ, tifffile and OpenCV read them."""

from __future__ import annotations

import struct

import numpy as np

from onnxcam.errors import OutputError

_SHORT, _LONG = 3, 4
_ENTRIES = 10
_DIRECTORY = 2 + 12 * _ENTRIES + 4
_LARGEST = (1 << 32) - 1


def encode_stack(maps: np.ndarray) -> bytes:
    """Encode float32 `[N, h, w]` as an uncompressed TIFF of N pages.

    Raises:
        OutputError: more than 4 GiB, which a TIFF cannot hold.
    """
    count, height, width = maps.shape
    each = height * width * 4
    step = _DIRECTORY + _DIRECTORY % 2 + each
    if 8 + count * step > _LARGEST:
        raise OutputError(f"{count} maps of {height} x {width} are more than the 4 GiB of a TIFF; write npy instead")
    pieces = [struct.pack("<2sHI", b"II", 42, 8)]
    for page in range(count):
        start = 8 + page * step
        after = start + step if page + 1 < count else 0
        entries = [
            (256, _LONG, width),
            (257, _LONG, height),
            (258, _SHORT, 32),  # bits per sample
            (259, _SHORT, 1),  # no compression
            (262, _SHORT, 1),  # 0 is black
            (273, _LONG, start + step - each),
            (277, _SHORT, 1),
            (278, _LONG, height),
            (279, _LONG, each),
            (339, _SHORT, 3),  # floating point
        ]
        directory = struct.pack("<H", len(entries))
        directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
        pieces.append((directory + struct.pack("<I", after)).ljust(step - each, b"\0"))
        pieces.append(np.ascontiguousarray(maps[page], "<f4").tobytes())
    return b"".join(pieces)
