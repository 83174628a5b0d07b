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
from onnxcam.explain.sorted_names import SortedNames
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

    @property
    def short_name(self) -> str:
        """The name below the folder that all pictures lie in; the whole name where there is none."""
        name = PurePath(self.name)
        short = self.folder.parent / name.name
        same = self.folder.name == name.stem and name.parts[-len(short.parts) :] == short.parts
        return short.as_posix() if same else self.name


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
class Matches:
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


def _expand(text: str, skip: Path) -> Matches:
    """What one argument stands for."""
    matches = Matches()
    matches.paths.extend(map(Path, expand(text, skip, matches)))
    return matches


def expand(text: str, skip: Path, matches: Matches) -> Iterator[str]:
    """Yield the pictures that a file, a folder or a glob stands for, one by one.

    Arguments:
        skip: a folder that is passed over.
        matches: gets the folder that they lie below, and is told of names that stand for no picture.
    """
    path = Path(text)
    if path.is_dir():
        matches.base = path
        count, failures = 0, len(matches.failures)
        for picture in walk(path, skip, matches):
            count += 1
            yield picture
        if not count and len(matches.failures) == failures:
            if matches.results:
                matches.fail(text, _only_results(path, skip))
            else:
                matches.fail(text, f"has no pictures in it ({', '.join(EXTENSIONS)}); name another folder")
        return
    if not os.path.lexists(path):
        import glob  # seldom needed, as shells expand patterns

        if glob.has_magic(text):
            matches.base = Path(*_before_magic(path))
            yield from _matching(text, skip, matches)
            return
    matches.base = path.parent  # a missing file is reported when it is read
    yield text


def _matching(pattern: str, skip: Path, matches: Matches) -> Iterator[str]:
    """Yield the pictures that match a glob, and those in folders that do."""
    import glob

    names, count, failures = SortedNames(), 0, len(matches.failures)
    for name in glob.iglob(pattern, recursive=True):  # noqa: PTH207 - ** and absolute patterns
        names.add(name, False)
    for name, _ in names:
        match = Path(name)
        if skip == files.real_path(match) or skip in files.real_path(match).parents:
            matches.results = True
            continue
        for picture in walk(match, skip, matches) if match.is_dir() else [name] if _is_regular(match, matches) else []:
            count += 1
            yield picture
    if not count and len(matches.failures) == failures:
        if matches.results:
            matches.fail(pattern, _only_results(None, skip))
        else:
            error = PictureError(f"no picture matches {pattern!r}; check the pattern (the current folder is {_here()})")
            matches.failures.append((pattern, error))


def _only_results(folder: Path | None, skip: Path) -> str:
    """Why there is no picture where all files are in the output folder."""
    if folder is not None and files.real_path(folder) == skip:
        what = "is the output folder, whose files are passed over as results of earlier runs"
    else:
        what = f"has pictures in the output folder {str(skip)!r} only, which are passed over as results of earlier runs"
    return f"{what}; choose another output folder"


def _is_regular(path: Path, matches: Matches) -> bool:
    """Whether a path can be a picture's; `matches` is told of what is neither a regular file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:  # reported when it is read
        return True
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        matches.fail(path, f"is {files.kind(mode)}: only regular files of a folder are read; name it alone to read it")
    return stat.S_ISREG(mode)


def walk(folder: Path, skip: Path, matches: Matches) -> Iterator[str]:
    """Yield the picture files below a folder, sorted, without what is hidden or below `skip`; memory stays small.

    Arrays are yielded where there is no other picture: next to pictures they are masks or labels.

    Arguments:
        matches: is told what is no picture.
    """
    encoded = arrays = False
    for here, names in _folders(folder, skip, matches):
        arrays = arrays or names.arrays
        for path in _pictures(here, names.pictures, matches):
            encoded = True
            yield path
    if arrays and not encoded:
        for here, names in _folders(folder, skip, Matches()):
            yield from _pictures(here, names.list_arrays(), matches)


@dataclass
class _Names:
    """The pictures of one folder: names in order, and whether each is known to be a regular file."""

    here: Path
    pictures: Iterable[tuple[str, bool]]
    arrays: bool

    def list_arrays(self) -> list[tuple[str, bool]]:
        with os.scandir(self.here) as listed:
            return sorted((entry.name, False) for entry in listed if _visible(entry.name, ARRAYS))


def _visible(name: str, endings: str | tuple[str, ...]) -> bool:
    return not name.startswith(".") and name.lower().endswith(endings)


def _folders(folder: Path, skip: Path, matches: Matches) -> Iterator[tuple[Path, _Names]]:
    """Each folder at or below one that is not hidden, with the names of its pictures."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if files.real_path(here) == skip:
            matches.results = True
            continue
        names, folders, arrays = SortedNames(), [], False
        try:
            with os.scandir(here) as listed:
                for entry in listed:
                    if _visible(entry.name, EXTENSIONS):
                        names.add(entry.name, entry.is_file(follow_symlinks=False))
                    arrays = arrays or _visible(entry.name, ARRAYS)
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
        except OSError as error:
            matches.fail(here, f"cannot be searched ({error.strerror or error}), so its pictures are left out")
            continue
        yield here, _Names(here, names, arrays)
        waiting += [here / name for name in sorted(folders, reverse=True)]


def _pictures(here: Path, names: Iterable[tuple[str, bool]], matches: Matches) -> Iterator[str]:
    """The paths of names of one folder that are regular files; `matches` is told of the others."""
    for name, regular in names:
        path = os.path.join(here, name)  # noqa: PTH118 - a Path a name takes longer than all else
        if regular or _is_regular(Path(path), matches):
            yield path


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
