"""The pictures of a run, written down once: a run that goes on later has the same rows, in flat memory however many."""

from __future__ import annotations

import hashlib
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxcam import files
from onnxcam.errors import InputError, PictureError
from onnxcam.explain.pictures import STDIN, Matches, expand, standard_input
from onnxcam.files import FileError

NAME = "_listing"  # of the file: readers of tables pass over names that begin with "_"
_BLOCK = 1 << 20
_LONGEST = 1 << 16  # bytes of a path
_FAILURES = 1000  # names that are remembered of those that stand for no picture


class Scan:
    """The search for pictures: yields their absolute paths in order, each once by name.

    Attributes:
        root: the folder below which all of them lie.
        count: pictures so far.
        failures: sentences about names that stand for no picture, the first of them; `failed` counts all.
    """

    def __init__(self, named: Iterable[str], skip: Path) -> None:
        self.root = ""
        self.count = 0
        self.failed = 0
        self.failures: list[str] = []
        self.several = False
        self._named = named
        self._skip = files.real_path(skip)
        self._hash = hashlib.sha256()
        self._keys = array("Q")

    def __iter__(self) -> Iterator[str]:
        for text in self._named:
            matches = Matches()
            self.several = self.several or bool(self.root)
            for path in expand(text, self._skip, matches):
                if matches.base is not None:
                    self._widen(_absolute(str(matches.base)))
                    matches.base = None
                name = _absolute(path)
                self._add(name)
                yield name
            self.failed += len(matches.failures)
            room = max(0, _FAILURES - len(self.failures))
            self.failures += [str(error) for _, error in matches.failures[:room]]

    @property
    def digest(self) -> str:
        """SHA-256 of the paths."""
        return self._hash.hexdigest()

    @property
    def keys(self) -> np.ndarray:
        """uint64 `[count]`: a hash of each path."""
        return np.frombuffer(self._keys, np.uint64) if self._keys else np.zeros(0, np.uint64)

    def _add(self, name: str) -> None:
        data = os.fsencode(name)
        self.count += 1
        self._hash.update(data + b"\0")
        self._keys.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little"))

    def _widen(self, base: str) -> None:
        if not self.root:
            self.root = base
        elif base != self.root and not base.startswith(os.path.join(self.root, "")):  # noqa: PTH118 - a prefix
            try:
                self.root = os.path.commonpath([self.root, base])
            except ValueError:  # on different drives
                self.root = ""


class Listing:
    """The paths in a listing's file.

    Arguments:
        folder: of the table.
        root: the folder below which the pictures lie; empty if there is none.
        count: number of pictures.
    """

    def __init__(self, folder: Path, root: str, count: int) -> None:
        self._path = folder / NAME
        self.root = root
        self.count = count

    def paths(self, first: int = 0, last: int | None = None) -> Iterator[str]:
        """Yield absolute paths from row `first` to before row `last`.

        Raises:
            InputError: the file is damaged, or has fewer.
        """
        last = self.count if last is None else last
        row = 0
        for name in _names(self._path):
            if row >= last:
                return
            if row >= first:
                yield os.fsdecode(name)
            row += 1
        if row < last:
            raise InputError(f"{str(self._path)!r} has {row:,} paths, expected {self.count:,}; begin anew elsewhere")

    def relative(self, path: str) -> str:
        """A path relative to the root, with slashes; what is not UTF-8 in it is escaped, as a table has text only."""
        prefix = os.path.join(self.root, "") if self.root else ""  # noqa: PTH118 - a prefix
        name = path[len(prefix) :] if prefix and path.startswith(prefix) else path
        return os.fsencode(name.replace(os.sep, "/")).decode("utf-8", "backslashreplace")


def pieces(paths: Iterable[str]) -> Iterator[bytes]:
    """The content of a listing's file, piece by piece."""
    packer, block = zlib.compressobj(1), bytearray()
    for path in paths:
        block += os.fsencode(path) + b"\0"
        if len(block) >= _BLOCK:
            yield packer.compress(bytes(block))
            block.clear()
    yield packer.compress(bytes(block)) + packer.flush()


def without_repetitions(folder: Path, scan: Scan) -> Iterator[str]:
    """The paths of a listing's file without those that occurred before: several names may stand for one picture."""
    repeated = _repeated(scan.keys)
    before: set[bytes] = set()
    for row, name in enumerate(_names(folder / NAME)):
        if row not in repeated:
            yield os.fsdecode(name)
        elif name not in before:
            before.add(name)
            yield os.fsdecode(name)


def repeats(scan: Scan) -> bool:
    """Whether a path may have occurred twice."""
    return scan.several and bool(_repeated(scan.keys))


def _repeated(keys: np.ndarray) -> set[int]:
    """The rows whose keys are not theirs alone."""
    _, first, count = np.unique(keys, return_inverse=True, return_counts=True)
    return set(np.flatnonzero(count[first] > 1).tolist())


def changes(folder: Path, scan: Scan) -> tuple[int, int]:
    """How many pictures were added to, and removed from, those in a listing's file."""
    listed = array("Q")
    for name in _names(folder / NAME):
        listed.append(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))
    before = np.unique(np.frombuffer(listed, np.uint64)) if listed else np.zeros(0, np.uint64)
    now = np.unique(scan.keys)
    common = len(np.intersect1d(before, now, assume_unique=True))
    return len(now) - common, len(before) - common


def read_list(source: str, stdin: BinaryIO | None = None) -> Iterator[str]:
    """Yield the paths in a list file of any length: one per line, or separated by NUL; `-` is standard input.

    Raises:
        PictureError: the list cannot be read, or a line is longer than a path can be.
    """
    try:
        file = (stdin or standard_input()) if source == STDIN else files.open_file(source)
    except (FileError, OSError) as error:
        reason = error if isinstance(error, FileError) else f"cannot be read ({error.strerror or error})"
        raise PictureError(f"the list of pictures {source!r} {reason}") from error
    try:
        block = file.read(_BLOCK).removeprefix(b"\xef\xbb\xbf")
        separator, rest = b"\0" if b"\0" in block else b"\n", b""
        while block:
            *lines, rest = (rest + block).split(separator)
            for line in lines:
                yield from _line(line, source)
            _line_length(rest, source)
            block = file.read(_BLOCK)
        yield from _line(rest, source)
    except OSError as error:
        raise PictureError(f"the list of pictures {source!r} cannot be read ({error.strerror or error})") from error
    finally:
        if source != STDIN:
            file.close()


def _line(line: bytes, source: str) -> Iterator[str]:
    _line_length(line, source)
    for part in line.split(b"\r"):
        if part.strip():
            yield os.fsdecode(part)


def _line_length(line: bytes, source: str) -> None:
    if len(line) > _LONGEST:
        raise PictureError(
            f"the list of pictures {source!r} has a line of more than {_LONGEST:,} bytes, longer than a path; give one "
            "path per line"
        )


def _names(path: Path) -> Iterator[bytes]:
    """The names in a listing's file, decompressed a piece at a time."""
    try:
        with files.open_file(path, "a file") as file:
            unpacker, rest = zlib.decompressobj(), b""
            while block := file.read(_BLOCK):
                while block:
                    *names, rest = (rest + unpacker.decompress(block, _BLOCK)).split(b"\0")
                    block = unpacker.unconsumed_tail
                    yield from names
                    if len(rest) > _LONGEST:
                        raise zlib.error("a name without an end")
            *names, rest = (rest + unpacker.flush()).split(b"\0")
            yield from names
            if not unpacker.eof or rest:
                raise zlib.error("it ends early")
    except FileError as error:
        raise InputError(f"{str(path)!r} {error}") from error
    except (OSError, zlib.error) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}); begin anew in another folder") from error


def _absolute(path: str) -> str:
    """A path from the root of the file system; links are followed only where `..` comes after one."""
    return os.path.realpath(path) if ".." in Path(path).parts else os.path.abspath(path)  # noqa: PTH100
