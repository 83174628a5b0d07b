"""Integrity of an encoded picture: decoders silently fill the missing part of a cut-off file with grey."""

from __future__ import annotations

import io
import re
import zlib

from onnxcam.image.deflate import deflate
from onnxcam.image.header import Header, HeaderError, read_tags

# within entropy-coded data 0xFF is followed by 0x00, a restart marker, or another fill byte
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# the decoder visits the whole picture for each scan: 220 KB of empty ones took 84 s; encoders write about ten
_SCANS = 100
_STEP = 1 << 20
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG, by its colour type


def check_whole(data: bytes, header: Header) -> None:
    """Refuse an encoded picture that is cut off, or damaged in a way that decoders do not report.

    Raises:
        HeaderError: what is missing; the message lacks its subject, the file's name.
    """
    {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "WebP": _webp, "BMP": _bmp, "TIFF": _tiff}[header.format](data, header)


def _cut_off(format: str, size: int, missing: str) -> HeaderError:
    return HeaderError(
        f"is a {format} that is cut off after {size:,} bytes ({missing}); copy or download the whole file again"
    )


def _jpeg(data: bytes, header: Header) -> None:
    at = 2
    scans = 0
    while at + 2 <= len(data):
        marker = data[at + 1] if data[at] == 0xFF else None
        if marker == 0xD9:
            return
        if marker is None or marker == 0x00:
            # every decoder skips bytes between segments
            at = end_of_scan(data, at)
        elif marker == 0xFF:
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            at += 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
            if marker == 0xDA:
                at = end_of_scan(data, at)
                scans += 1
                if scans > _SCANS:
                    raise HeaderError(
                        f"is a JPEG of more than {_SCANS} scans, possibly a decompression bomb; save it again"
                    )
    raise _cut_off("JPEG", len(data), "no end-of-image marker")


def end_of_scan(data: bytes, at: int) -> int:
    """Return where the next marker of a JPEG begins after `at`, in its entropy-coded data; its length without one."""
    match = _NEXT_MARKER.search(data, at)
    return match.start() if match else len(data)


def _png(data: bytes, header: Header) -> None:
    at = 8
    view = memoryview(data)
    crc32 = deflate().crc32
    parts: list[memoryview] = []
    while at + 12 <= len(data):
        length = int.from_bytes(view[at : at + 4], "big")
        kind = bytes(view[at + 4 : at + 8])
        end = at + 12 + length
        if end > len(data):
            break
        # a capital first letter: the pixels depend on this chunk
        if kind[:1].isupper() and crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            name = kind.decode("ascii", "replace")
            raise HeaderError(f"is a PNG whose {name} chunk is damaged (wrong checksum); copy or download it again")
        if kind == b"IEND":
            _png_pixels(data, header, parts)
            return
        if kind == b"IDAT":
            parts.append(view[at + 8 : end - 4])
        at = end
    raise _cut_off("PNG", len(data), "no IEND chunk")


def _png_pixels(data: bytes, header: Header, parts: list[memoryview]) -> None:
    """Refuse compressed data that continues after the last pixel: decoders inflate all of it, a thousandfold."""
    depth, color = data[24], data[25]
    row = (header.width * depth * _CHANNELS.get(color, 4) + 7) // 8 + 1
    # an interlaced picture has more and shorter rows, at most twice the bytes
    most = 2 * row * header.height + _STEP
    if sum(map(len, parts)) * 1032 <= most:
        return
    inflate = zlib.decompressobj()
    total = 0
    try:
        for part in parts:
            left: bytes | memoryview = part
            while left and not inflate.eof:
                total += len(inflate.decompress(left, _STEP))
                left = inflate.unconsumed_tail
                if total > most:
                    raise HeaderError(
                        f"is a PNG whose data continues after its {header.width}x{header.height} pixels, possibly a "
                        "decompression bomb; save it again"
                    )
    except zlib.error:
        return  # the decoder reports what is wrong


def _gif(data: bytes, header: Header) -> None:
    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    def blocks(at: int) -> int:
        while at < len(data) and data[at]:
            at += data[at] + 1
        return at + 1

    at = 13 + table(data[10] if len(data) > 10 else 0)
    while at < len(data):
        if data[at] == 0x2C:
            if at + 10 > len(data):
                break
            # only the first frame is read, so the rest may be missing
            if blocks(at + 11 + table(data[at + 9])) <= len(data):
                return
            break
        if data[at] == 0x21:
            at = blocks(at + 2)
        elif data[at] == 0x3B:
            raise HeaderError("is a GIF without a single frame; give one with a picture in it")
        else:
            at += 1
    raise _cut_off("GIF", len(data), "its first frame has no end")


def _webp(data: bytes, header: Header) -> None:
    expected = int.from_bytes(data[4:8], "little") + 8
    if len(data) < expected:
        raise _cut_off("WebP", len(data), f"its header declares {expected:,}")


def _bmp(data: bytes, header: Header) -> None:
    offset, size = int.from_bytes(data[10:14], "little"), int.from_bytes(data[14:18], "little")
    core = size == 12
    depth = int.from_bytes(data[24:26] if core else data[28:30], "little")
    compression = 0 if core else int.from_bytes(data[30:34], "little")
    if compression in (0, 3):
        needed = offset + (header.width * depth + 31) // 32 * 4 * header.height
        if len(data) < needed:
            raise _cut_off("BMP", len(data), f"its pixels need {needed:,}")


def _tiff(data: bytes, header: Header) -> None:
    tags = read_tags(io.BytesIO(data))
    for offsets, counts in ((273, 279), (324, 325)):
        for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
            if offset + count > len(data):
                raise _cut_off("TIFF", len(data), f"its pixels reach to byte {offset + count:,}")
