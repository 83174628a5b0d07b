"""JPEG and WebP files of colour pictures, encoded by OpenCV at quality 90."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import OutputError
from onnxcam.image import png
from onnxcam.image.opencv import import_cv2

QUALITY = 90
_LARGEST = {"jpeg": 65500, "webp": 16383}  # pixels a side


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
    # colours of heatmaps change from pixel to pixel, so they are not averaged over 2 x 2
    settings = {
        "jpeg": [
            cv2.IMWRITE_JPEG_QUALITY,
            QUALITY,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, QUALITY],
    }[form]
    done, data = cv2.imencode(f".{form}", cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR), settings)
    if not done:
        raise OutputError(f"OpenCV cannot encode a {form} file; write png")
    return bytes(data)
