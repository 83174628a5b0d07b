"""JPEG and WebP files of colour pictures: encoded by OpenCV, or a JPEG's own data without its metadata.

JPEG at quality 85 with colours averaged over 2 x 2 pixels takes two thirds of the time and of the space of quality 90
with all colours, and its error is 1.2 to 1.5 times as large (of overlays 3.7 instead of 2.9 levels, root mean square).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import OutputError
from onnxcam.image import png
from onnxcam.image.header import orientation
from onnxcam.image.integrity import end_of_scan
from onnxcam.image.opencv import import_cv2

QUALITY = {"jpeg": 85, "webp": 90}
_LARGEST = {"jpeg": 65500, "webp": 16383}  # pixels a side
_JFIF, _ADOBE, _COMMENT = 0xE0, 0xEE, 0xFE  # segments of a JPEG, by the second byte of their marker
_COMMON = (0xC0, 0xC1, 0xC2)  # frames that every decoder reads: baseline, extended, progressive
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
_SCAN, _END = 0xDA, b"\xff\xd9"
_LARGEST_COPY = 0.75  # bytes per pixel: five times those of an ordinary photograph


def encode(pixels: NDArray[np.uint8], form: str) -> bytes:
    """Encode uint8 [H, W, 3] RGB as `jpeg` or `webp`.

    Raises:
        OutputError: an array of a different shape or dtype, or more pixels a side than the format can have.
    """
    png.check(pixels)
    height, width = pixels.shape[:2]
    if max(height, width) > _LARGEST[form]:
        raise OutputError(
            f"a picture of {width}x{height} pixels cannot be a {form} file, which has at most {_LARGEST[form]:,} "
            "pixels a side; write png"
        )
    cv2 = import_cv2()
    settings = {
        "jpeg": [
            cv2.IMWRITE_JPEG_QUALITY,
            QUALITY["jpeg"],
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        ],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, QUALITY["webp"]],
    }[form]
    done, data = cv2.imencode(f".{form}", cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR), settings)
    if not done:
        raise OutputError(f"OpenCV cannot encode a {form} file; write png")
    return bytes(data)


def copy(data: bytes) -> bytes | None:
    """Return a JPEG file's own data without its metadata, which decodes to the same pixels.

    Only what a decoder needs is left: no Exif or XMP (place, camera, thumbnail), colour profile, comment, or anything
    after the end of the picture.

    Returns:
        None of a picture that is turned by its Exif orientation, has other than one or three components of 8 bits, is
        larger than an encoded picture would be, or has anything unusual in it.
    """
    if data[:2] != b"\xff\xd8" or orientation(data, "JPEG") != 1:
        return None
    parts, at, pixels = [data[:2]], 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xD9 or end < at + 4:
            return None
        if marker in _FRAMES:
            if pixels or marker not in _COMMON or data[at + 4] != 8 or data[at + 9] not in (1, 3):
                return None
            pixels = int.from_bytes(data[at + 5 : at + 7], "big") * int.from_bytes(data[at + 7 : at + 9], "big")
        elif marker == _SCAN:
            end = end_of_scan(data, end)
        parts.append(_without_metadata(marker, data[at:end]))
        at = end
        if data[at : at + 2] == _END:
            copied = b"".join([*parts, _END])
            return copied if len(copied) <= _LARGEST_COPY * pixels else None
    return None


def _without_metadata(marker: int, segment: bytes) -> bytes:
    """A segment as far as the pixels depend on it."""
    if marker == _JFIF and segment[4:9] == b"JFIF\0" and len(segment) >= 18:  # a shorter one is none to decoders
        return segment[:2] + b"\0\x10" + segment[4:16] + b"\0\0"  # without a thumbnail
    if marker == _ADOBE and segment[4:9] == b"Adobe":  # how components become colours
        return segment
    return b"" if _JFIF <= marker <= 0xEF or marker == _COMMENT else segment
