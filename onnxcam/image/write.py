"""Writing files atomically."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxcam.errors import OutputError
from onnxcam.image import png


def write_bytes(path: str | os.PathLike[str], *data: bytes | memoryview) -> None:
    """Write a file atomically, see `write_pieces`."""
    write_pieces(path, data)


def write_pieces(path: str | os.PathLike[str], pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file atomically: its pieces to a temporary file in the same folder, which is renamed to `path`.

    Writes are not buffered, so pieces should be few or large.

    Raises:
        OutputError: the file could not be written; the message gives the reason, and an existing file is unchanged.
    """
    path = Path(path)
    # a short name, so that a temporary name never exceeds the length limit where `path` does not
    temporary = path.parent / f".{os.urandom(8).hex()}.part"
    try:
        with temporary.open("xb", buffering=0) as file:
            for piece in pieces:
                left = memoryview(piece)
                while left:
                    left = left[file.write(left) :]
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(f"{str(path)!r} could not be written ({_reason(error, path)})") from error
        raise


def write_png(path: str | os.PathLike[str], pixels: NDArray[np.uint8], compress: bool = True) -> None:
    """Write uint8 [H, W, 3] RGB or [H, W] grey as a PNG, atomically; uncompressed colours take a tenth of the time.

    Raises:
        OutputError: an array of a different shape or dtype, or the file could not be written.
    """
    write_pieces(path, _png(pixels, compress))


def encode_png(pixels: NDArray[np.uint8], compress: bool = True) -> bytes:
    """Encode uint8 [H, W, 3] RGB or [H, W] grey as the bytes of a PNG.

    Raises:
        OutputError: an array of a different shape or dtype.
    """
    return b"".join(_png(pixels, compress))


def _png(pixels: NDArray[np.uint8], compress: bool) -> Iterable[bytes | memoryview]:
    if pixels.ndim == 2:
        return [png.shades(png.pack(pixels))]
    png.check(pixels)
    height, width = pixels.shape[:2]
    return png.colors(height, width, (pixels[rows] for rows in png.bands(height, width)), compress)


def _reason(error: OSError, path: Path) -> str:
    text = error.strerror or str(error)
    if error.errno == errno.ENOENT and not path.parent.exists():
        return f"the folder {str(path.parent)!r} does not exist; create it first"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{text}; choose a folder that you may write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}; free some space or choose another disk"
    return text
