"""The pictures that names on a command line stand for, and the folder of each one's explanation."""

from __future__ import annotations

import errno
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO

from onnxcam.errors import PictureError, listing

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
ARRAYS = ".npy"
STDIN = "-"
_LARGEST_STDIN = 512 << 20
_LARGEST_LIST = 256 << 20


@dataclass(frozen=True)
class Item:
    """One picture to explain.

    Attributes:
        source: its path, or its encoded bytes.
        name: as the user wrote it.
        folder: where its explanation goes, relative to the output folder; empty for a single picture.
    """

    source: Path | bytes
    name: str
    folder: PurePath = field(default_factory=PurePath)


@dataclass
class Collection:
    """The pictures in order, and the names that stand for none, each with the reason."""

    items: list[Item] = field(default_factory=list)
    failures: list[tuple[str, PictureError]] = field(default_factory=list)


def collect(named: Sequence[str], output: Path, stdin: BinaryIO | None = None) -> Collection:
    """The pictures that files, folders, globs and `-` stand for, each once, with a folder of its own.

    Folders are searched with their subfolders for picture files; hidden ones and the output folder are passed over.
    A glob is expanded here where the shell has not done it. Explanations lie below the output folder as the pictures
    lie below what was named; where two would share a folder (a.jpg and a.png) both keep their extension.
    """
    collection = Collection()
    bases: list[Path] = []
    paths: list[tuple[Path, str]] = []
    visited: set[Path] = set()
    piped: bytes | None = None
    skip = output.resolve()
    for text in named:
        if text == STDIN:
            if piped is None:
                piped = _read_stdin(stdin)
            continue
        matches, base, failure = _expand(text, skip)
        if failure is not None:
            collection.failures.append((text, failure))
        elif base is not None:
            bases.append(base)
        for path in matches:
            real = path.absolute()
            if real not in visited:
                visited.add(real)
                paths.append((path, str(path)))
    stems = _stems([path for path, _ in paths], _common(bases))
    if piped is not None:
        collection.items.append(Item(piped, "stdin", PurePath("stdin")))
    collection.items += [
        Item(path, name, folder) for (path, name), folder in zip(paths, distinct(stems, piped is not None), strict=True)
    ]
    if len(collection.items) == 1:
        only = collection.items[0]
        collection.items = [Item(only.source, only.name)]
    return collection


def read_list(source: str, stdin: BinaryIO | None = None) -> list[str]:
    """The paths in a list file: one per line, or separated by NUL as `find -print0` writes them; `-` is stdin.

    Raises:
        PictureError: the list cannot be read.
    """
    try:
        if source == STDIN:
            data = (stdin or standard_input()).read(_LARGEST_LIST)
        else:
            with Path(source).open("rb") as file:
                data = file.read(_LARGEST_LIST)
    except OSError as error:
        raise PictureError(
            f"the list of pictures {source!r} cannot be read ({error.strerror}); check its name"
        ) from error
    text = os.fsdecode(data.removeprefix(b"\xef\xbb\xbf"))
    lines = text.split("\0") if "\0" in text else text.splitlines()
    return [line for line in (line.strip("\r\n") for line in lines) if line.strip()]


def standard_input() -> BinaryIO:
    """The bytes of standard input.

    Raises:
        OSError: it is closed.
    """
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return sys.stdin.buffer


def distinct(relative: Sequence[PurePath], stdin: bool = False) -> list[PurePath]:
    """A folder per picture from its path below the common folder: without the extension where that is unique.

    Compared without case, as some file systems do. A stem that ends like a result file keeps its extension, so that
    no folder ever takes the place of a file.
    """
    stems = [path.with_suffix("") if path.stem else path for path in relative]
    keys = [str(stem).casefold() for stem in stems]
    counts: dict[str, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    names = {"stdin"} if stdin else set()
    folders = []
    for path, stem, key in zip(relative, stems, keys, strict=True):
        plain = counts[key] == 1 and not key.endswith((".png", ".json"))
        choice, number = (stem if plain else path), 1
        while str(choice).casefold() in names:
            number += 1
            choice = path if plain and number == 2 else path.with_name(f"{path.name}-{number}")
        names.add(str(choice).casefold())
        folders.append(choice)
    return folders


def _expand(text: str, skip: Path) -> tuple[list[Path], Path | None, PictureError | None]:
    """The paths that one argument stands for and the folder they lie below, or why there are none."""
    path = Path(text)
    if path.is_dir():
        inside = list(_walk(path, skip))
        if inside:
            return inside, path, None
        return [], None, PictureError(f"{text!r} has no pictures in it ({', '.join(EXTENSIONS)}); name another folder")
    if os.path.lexists(path) or not glob.has_magic(text):
        return [path], path.parent, None  # a missing file is reported when it is read
    matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - ** and absolute patterns
    files: list[Path] = []
    for match in matches:
        if skip == match.resolve() or skip in match.resolve().parents:
            continue
        files += _walk(match, skip) if match.is_dir() else [match]
    if not files:
        return (
            [],
            None,
            PictureError(f"no picture matches {text!r}; check the pattern (the current folder is {_here()})"),
        )
    fixed = Path(*_before_magic(path))
    return files, fixed, None


def _walk(folder: Path, skip: Path) -> Iterator[Path]:
    """The picture files below a folder, sorted, without what is hidden or below `skip`; arrays if there are no others.

    Arrays next to pictures are masks or labels rather than pictures.
    """
    arrays: list[Path] = []
    encoded = False
    for where, folders, files in os.walk(folder):
        here = Path(where)
        if here.resolve() == skip:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(EXTENSIONS):
                encoded = True
                yield here / name
            elif name.lower().endswith(ARRAYS):
                arrays.append(here / name)
    if not encoded:
        yield from arrays


def _before_magic(path: Path) -> Iterator[str]:
    for part in path.parent.parts:
        if glob.has_magic(part):
            return
        yield part


def _common(bases: Iterable[Path]) -> Path | None:
    absolute = [str(base.absolute()) for base in bases]
    try:
        return Path(os.path.commonpath(absolute)) if absolute else None
    except ValueError:  # on different drives
        return None


def _stems(paths: Sequence[Path], base: Path | None) -> list[PurePath]:
    relative = []
    for path in paths:
        normal = Path(os.path.normpath(path.absolute()))
        below = base is not None and normal.is_relative_to(os.path.normpath(base))
        inside = normal.relative_to(os.path.normpath(base)) if base is not None and below else PurePath(normal.name)
        relative.append(PurePath(inside))
    return relative


def _read_stdin(stdin: BinaryIO | None) -> bytes:
    try:
        data = (stdin or standard_input()).read(_LARGEST_STDIN + 1)
    except OSError as error:
        raise PictureError(
            f"the picture on standard input (-) cannot be read ({error.strerror}); pass one with `< FILE`"
        ) from error
    if len(data) > _LARGEST_STDIN:
        raise PictureError(f"standard input has more than {_LARGEST_STDIN >> 20} MiB; pipe one encoded picture")
    return data


def _here() -> str:
    return listing([str(Path.cwd())])
