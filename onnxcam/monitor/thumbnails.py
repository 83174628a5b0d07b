"""Pictures that records name, at the size at which a page shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxcam.errors import DependencyError, PictureError
from onnxcam.files import real_path
from onnxcam.monitor.segments import open_regular

_LARGEST = 64 << 20  # bytes of a file
_AS_IT_IS = 1 << 18  # bytes of a picture that goes into a page where it cannot be made smaller
_QUALITY = 85


def read(folder: Path, name: str) -> bytes | None:
    """Read a picture that a record names: only PNG, only a regular file inside the folder, and of limited size."""
    try:
        path = real_path(folder / name)
        if not path.is_relative_to(real_path(folder)):
            return None
        file = open_regular(path)
        if file is None:
            return None
        with file:
            data = file.read(_LARGEST + 1)
    except (OSError, ValueError):
        return None
    return data if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) <= _LARGEST else None


def thumbnail(data: bytes, side: int) -> bytes | None:
    """Return a picture of at most `side` pixels per side, as it is if it is no larger; None for one that is damaged."""
    from onnxcam.image.opencv import import_cv2
    from onnxcam.image.picture import load
    from onnxcam.image.resample import resize

    try:
        pixels = load(data).pixels
        height, width = pixels.shape[:2]
        if max(height, width) <= side:
            return data
        scale = side / max(height, width)
        small = resize(pixels, (max(1, round(height * scale)), max(1, round(width * scale))), "area")
        cv2 = import_cv2()
        options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
        done, encoded = cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), options)
    except PictureError:
        return None
    except DependencyError:
        return data if len(data) <= _AS_IT_IS else None
    return encoded.tobytes() if done else None
