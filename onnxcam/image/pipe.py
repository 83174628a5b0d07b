"""Pictures from files, pipes and standard input: of a stream as many bytes are read as such a picture can have."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from onnxcam import files
from onnxcam.files import FileError
from onnxcam.image.header import NUMPY, HeaderError, read_header

# of files that are pictures; a TIFF's header can be anywhere in it
_MAGIC = (b"\x89PNG", b"\xff\xd8", b"BM", b"RIFF", b"II", b"MM", b"\x93NUMPY", b"GIF8")
_FIRST, _CHUNK = 1 << 16, 1 << 18
_LARGEST = 512 << 20
_PIXELS = 56_000_000
_METADATA = 64 << 20  # can be arbitrarily large
_IN_MEMORY = 16 << 20  # more is stored in a temporary file until it is known to be a picture


def open_picture(path: Path) -> BinaryIO:
    """Open a picture file as a seekable stream; what a pipe delivers is read, see `read`.

    Raises:
        HeaderError: it cannot be opened, or is neither a file nor a pipe; the message lacks its subject.
    """
    try:
        if path.is_dir():
            raise HeaderError("is a directory; give one picture file, or the files in it")
        file = files.open_file(path)
        if stat.S_ISREG(files.mode(file)):
            return io.BufferedReader(file)  # type: ignore[type-var]
        if stat.S_ISCHR(files.mode(file)):
            file.close()
            raise HeaderError("is neither a file nor a pipe; give a picture file")
        with file:
            return io.BytesIO(read(file))
    except OSError as error:
        raise HeaderError(f"cannot be read ({error.strerror or error}); check its name and permissions") from error
    except FileError as error:
        if not isinstance(error.__cause__, FileNotFoundError) or os.path.lexists(path):
            raise HeaderError(str(error)) from error
        hint = "download it first" if "://" in str(path) or str(path).startswith(("http:", "https:")) else _hint()
        raise HeaderError(f"does not exist; {hint}") from error


def _hint() -> str:
    return f"check the name (the current folder is {str(Path.cwd())!r})"


def read(stream: BinaryIO) -> bytes:
    """Read one encoded picture to the end of a stream.

    Raises:
        HeaderError: it is not a picture, or larger than one of its kind and size can be; the message lacks its subject.
        OSError: it cannot be read.
    """
    import tempfile  # here, as pictures in files do not need it

    limit = _LARGEST
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        size = 0
        while block := _block(stream, _FIRST if size < _FIRST else _CHUNK):
            size += spool.write(block)
            if size == len(block):  # the beginning
                limit = _limit(spool)  # type: ignore[arg-type]
                spool.seek(0, os.SEEK_END)
            if size > limit:
                raise HeaderError(f"has more than {limit >> 20} MiB; pipe one encoded picture")
        spool.seek(0)
        read_header(spool)  # type: ignore[arg-type]
        spool.seek(0)
        return spool.read()


def _block(stream: BinaryIO, size: int) -> bytes:
    """The next bytes of a stream, `size` of them but at its end."""
    data = bytearray()
    while len(data) < size:
        part: bytes | None = stream.read(size - len(data))
        if part is None:  # a descriptor that does not block, and is empty
            import select

            select.select([stream], [], [])
        elif not part:
            break
        else:
            data += part
    return bytes(data)


def _limit(stream: BinaryIO) -> int:
    """The most bytes that a picture with this beginning can have.

    Raises:
        HeaderError: it is not a picture.
    """
    stream.seek(0)
    start = stream.read(8)
    stream.seek(0)
    try:
        header = read_header(stream)
    except HeaderError:
        if not start.startswith(_MAGIC):
            raise
        return _LARGEST if start[:2] in (b"II", b"MM") else _METADATA
    if header.format in ("TIFF", NUMPY):
        return _LARGEST
    # more pixels than are decoded anyway need no room
    return _METADATA + (8 * header.pixels if header.pixels <= _PIXELS else 0)
