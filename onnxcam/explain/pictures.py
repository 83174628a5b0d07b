"""The pictures that names on a command line stand for, and the folder of each one's explanation."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO

from onnxcam import files
from onnxcam.errors import PictureError, listing
from onnxcam.files import FileError
from onnxcam.image.header import HeaderError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
ARRAYS = ".npy"
STDIN = "-"
_RESULTS = (".png", ".jpeg", ".webp", ".json")  # endings of what is written
_LARGEST_LIST = 32 << 20  # bytes
_MOST_PATHS = 500_000


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

    Folders are searched with their subfolders for picture files; hidden ones and the output folder are passed over. Of
    files that nobody named directly only regular ones are taken: opening a pipe could wait for ever.
    A glob is expanded here where the shell has not done it. Explanations lie below the output folder as the pictures
    lie below what was named; where two would share a folder (a.jpg and a.png) both keep their extension.
    """
    collection = Collection()
    bases: list[Path] = []
    paths: list[tuple[Path, str]] = []
    visited: set[Path] = set()
    piped: bytes | None = None
    skip = files.real_path(output)
    for text in named:
        if text == STDIN:
            if piped is None:
                try:
                    piped = _read_stdin(stdin)
                except PictureError as error:
                    collection.failures.append(("stdin", error))
            continue
        matches = _expand(text, skip)
        collection.failures += matches.failures
        if matches.base is not None and matches.paths:
            bases.append(matches.base)
        for path in matches.paths:
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
            data = files.read_stream(stdin or standard_input(), _LARGEST_LIST)
        else:
            data = files.read_bytes(source, _LARGEST_LIST)
    except (FileError, OSError) as error:
        reason = error if isinstance(error, FileError) else f"cannot be read ({error.strerror or error})"
        raise PictureError(f"the list of pictures {source!r} {reason}") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    separators = [b"\0"] if b"\0" in data else [b"\n", b"\r"]
    if max(map(data.count, separators)) > _MOST_PATHS:
        raise PictureError(f"the list of pictures {source!r} has more than {_MOST_PATHS:,} paths; divide it")
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    return [os.fsdecode(line) for line in (line.strip(b"\r\n") for line in lines) if line.strip()]


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
        plain = counts[key] == 1 and not key.endswith(_RESULTS)
        choice, number = (stem if plain else path), 1
        while str(choice).casefold() in names:
            number += 1
            choice = path if plain and number == 2 else path.with_name(f"{path.name}-{number}")
        names.add(str(choice).casefold())
        folders.append(choice)
    return folders


@dataclass
class _Matches:
    """What one argument stands for.

    Attributes:
        paths: the pictures.
        base: the folder they lie below.
        failures: names, and why they stand for no picture.
        results: whether files were passed over because they are in the output folder.
    """

    paths: list[Path] = field(default_factory=list)
    base: Path | None = None
    failures: list[tuple[str, PictureError]] = field(default_factory=list)
    results: bool = False

    def fail(self, name: Path | str, reason: str) -> None:
        """Record why a name stands for no picture."""
        self.failures.append((str(name), PictureError(f"{str(name)!r} {reason}")))


def _expand(text: str, skip: Path) -> _Matches:
    """What one argument stands for."""
    path = Path(text)
    if path.is_dir():
        matches = _Matches(base=path)
        _walk(path, skip, matches)
        if not matches.paths and not matches.failures:
            if matches.results:
                matches.fail(text, _only_results(path, skip))
            else:
                matches.fail(text, f"has no pictures in it ({', '.join(EXTENSIONS)}); name another folder")
        return matches
    if os.path.lexists(path):
        return _Matches([path], path.parent)
    import glob  # seldom needed, as shells expand patterns

    if not glob.has_magic(text):
        return _Matches([path], path.parent)  # a missing file is reported when it is read
    matches = _Matches(base=Path(*_before_magic(path)))
    for match in map(Path, sorted(glob.glob(text, recursive=True))):  # noqa: PTH207 - ** and absolute patterns
        if skip == files.real_path(match) or skip in files.real_path(match).parents:
            matches.results = True
        elif match.is_dir():
            _walk(match, skip, matches)
        else:
            _add(match, matches)
    if not matches.paths and not matches.failures:
        if matches.results:
            matches.fail(text, _only_results(None, skip))
        else:
            error = PictureError(f"no picture matches {text!r}; check the pattern (the current folder is {_here()})")
            matches.failures.append((text, error))
    return matches


def _only_results(folder: Path | None, skip: Path) -> str:
    """Why there is no picture where all files are in the output folder."""
    if folder is not None and files.real_path(folder) == skip:
        what = "is the output folder, whose files are passed over as results of earlier runs"
    else:
        what = f"has pictures in the output folder {str(skip)!r} only, which are passed over as results of earlier runs"
    return f"{what}; choose another output folder"


def _add(path: Path, matches: _Matches) -> None:
    """Add a picture that nobody named directly: only a regular file, or a link to one, is opened then."""
    try:
        mode = path.stat().st_mode
    except OSError:  # reported when it is read
        mode = stat.S_IFREG
    if stat.S_ISREG(mode):
        matches.paths.append(path)
    elif not stat.S_ISDIR(mode):
        matches.fail(path, f"is {files.kind(mode)}: only regular files of a folder are read; name it alone to read it")


def _walk(folder: Path, skip: Path, matches: _Matches) -> None:
    """Add the picture files below a folder, sorted, without what is hidden or below `skip`.

    Arrays are added where there is no other picture: next to pictures they are masks or labels.
    """
    arrays: list[Path] = []
    encoded = False
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if files.real_path(here) == skip:
            matches.results = True
            continue
        try:
            with os.scandir(here) as listed:
                entries = sorted((entry for entry in listed if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            matches.fail(here, f"cannot be searched ({error.strerror or error}), so its pictures are left out")
            continue
        for entry in entries:
            picture = entry.name.lower().endswith(EXTENSIONS)
            if not picture and not entry.name.lower().endswith(ARRAYS):
                continue
            path = here / entry.name
            if picture:
                encoded = True
            if not picture:
                arrays.append(path)
            elif entry.is_file(follow_symlinks=False):
                matches.paths.append(path)
            else:
                _add(path, matches)
        waiting += [here / entry.name for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]
    for path in [] if encoded else arrays:
        _add(path, matches)


def _before_magic(path: Path) -> Iterator[str]:
    import glob

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
    from onnxcam.image import pipe

    try:
        return pipe.read(stdin or standard_input())
    except HeaderError as error:
        raise PictureError(f"'stdin' {error}") from error
    except OSError as error:
        raise PictureError(
            f"the picture on standard input (-) cannot be read ({error.strerror}); pass one with `< FILE`"
        ) from error


def _here() -> str:
    return listing([str(Path.cwd())])
