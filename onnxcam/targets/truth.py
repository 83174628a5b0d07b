"""The true classes of pictures: from the names of their folders, or from a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np

from onnxcam.errors import LabelsError, TargetError, listing
from onnxcam.targets import classes as targets

_PICTURE_COLUMNS = (
    "picture",
    "image",
    "file",
    "filename",
    "file_name",
    "filepath",
    "path",
    "image_path",
    "name",
    "img",
)
_CLASS_COLUMNS = ("class", "label", "truth", "target", "category", "class_name", "class_index", "index", "y")
_LARGEST = 8 << 20  # bytes of a table
_LONGEST = 1 << 16  # bytes of its first line, as far as it is looked at for the separator
_MOST = 200_000  # rows


def by_folder(paths: Sequence[Path], root: Path, labels: Sequence[str] | None, classes: int) -> list[int]:
    """Read the class of each picture from its folder's name: an index, a label, or the rank among sorted folders.

    The rank is how Keras' and torchvision's folder readers number classes; it is used where there are no labels and as
    many folders as classes.

    Arguments:
        paths: of the pictures, all below `root`.
        root: the folder with a folder per class.
        labels: class names, by index.
        classes: number of classes.

    Raises:
        LabelsError: a picture is not in a folder, or a folder does not name a class of the model.
    """
    relative = [path.relative_to(root) for path in paths]
    loose = [str(path) for path in relative if len(path.parts) < 2]
    if loose:
        raise LabelsError(
            f"{len(loose)} pictures lie in {str(root)!r} itself ({listing(loose, 3)}); with --by-folder each lies in "
            "the folder of its class"
        )
    folders = sorted({path.parts[0] for path in relative})
    numbers = {name: number for name in folders if (number := _class(name, labels, classes)) is not None}
    wrong = [name for name in folders if name not in numbers]
    if wrong and labels is None and len(folders) == classes:
        numbers = {name: number for number, name in enumerate(folders)}
    elif wrong:
        hint = "name them by label or index" if labels is not None else "give --labels, or name the folders by index"
        raise LabelsError(
            f"{listing(wrong, 5)} in {str(root)!r} name no class of the model ({classes} classes); {hint}"
        )
    return [numbers[path.parts[0]] for path in relative]


class Table:
    """A table of pictures and their classes: CSV, or separated by tabs or semicolons, as spreadsheets write it.

    With a header, its columns are called as in `picture,class` (file, path, image …; label, truth, index …); without
    one, the first two columns are the picture and its class. A picture is found by its path, from the table's folder
    or the current one, or by the end of it: `cats/1.jpg` is the picture `photos/cats/1.jpg`. A row is of one picture:
    where it fits several, they are refused.

    Arguments:
        path: of the table.
        labels: class names, by index.
        classes: number of classes.
        several: whether a picture may have several classes, each in a row of its own.

    Raises:
        LabelsError: the table cannot be read, a row names no class of the model, or two rows contradict each other.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        labels: Sequence[str] | None,
        classes: int,
        *,
        several: bool = False,
    ) -> None:
        self._path = Path(path)
        self._size = classes
        self._classes: dict[tuple[str, ...], list[int]] = {}
        wrong: list[str] = []
        indices: dict[str, int | None] = {}
        for number, name, text in rows(self._path):
            if text not in indices:
                indices[text] = _class(text, labels, classes)
            index = indices[text]
            if index is None:
                wrong.append(f"{text[:60]} (line {number})")
                continue
            key = _parts(name)
            of_picture = self._classes.setdefault(key, [])
            if index in of_picture:
                continue
            if of_picture and not several:
                raise LabelsError(
                    f"the table {str(self._path)!r} has two classes for {name!r} (the second in line {number}); "
                    "keep one"
                )
            of_picture.append(index)
        if wrong:
            hint = "write labels or indices" if labels is not None else "give --labels, or write indices"
            raise LabelsError(
                f"{listing(wrong, 5)} in the table {str(self._path)!r} name no class of the model ({classes} classes); "
                f"{hint}"
            )

    def __len__(self) -> int:
        """The number of pictures in the table."""
        return len(self._classes)

    def find(self, path: Path) -> int | None:
        """The class of a picture, None if it is not in the table."""
        return next(iter(self._find(path)), None)

    def _find(self, path: Path) -> list[int]:
        """The classes of a picture, none if it is not in the table."""
        key = self._row(path, Path(os.path.normpath(path.absolute())))
        return [] if key is None else self._classes[key]

    def _row(self, path: Path, absolute: Path) -> tuple[str, ...] | None:
        """The row of a picture, the one that names most of its path."""
        here = self._path.absolute().parent
        candidates = [_parts(str(path)), absolute.parts]
        if absolute.is_relative_to(here):
            candidates.append(absolute.relative_to(here).parts)
        candidates += [absolute.parts[start:] for start in range(1, len(absolute.parts))]
        return next((parts for parts in candidates if parts in self._classes), None)

    def count_missing(self, paths: Iterable[Path]) -> tuple[int, int]:
        """Count pictures, and those of them that are not in the table, in memory for its rows only.

        Raises:
            LabelsError: a row fits several pictures.
        """
        pictures: dict[tuple[str, ...], Path] = {}
        count = missing = 0
        for path in paths:
            count += 1
            absolute = Path(os.path.normpath(path.absolute()))
            key = self._row(path, absolute)
            if key is None:
                missing += 1
            elif pictures.setdefault(key, absolute) != absolute:
                raise LabelsError(
                    f"the row {str(PurePath(*key))!r} of the table {str(self._path)!r} fits several pictures, such as "
                    f"{str(pictures[key])!r} and {str(absolute)!r}; write their folders into the table, as in "
                    f"{str(PurePath(*absolute.parts[-len(key) - 1 :]))!r}"
                )
        return count, missing

    def find_all(self, paths: Iterable[Path]) -> list[int]:
        """The class of each picture.

        Raises:
            LabelsError: some are not in the table, or a row fits several.
        """
        paths = list(paths)
        self.count_missing(paths)
        pairs = [(path, self.find(path)) for path in paths]
        missing = [str(path) for path, index in pairs if index is None]
        if missing:
            raise LabelsError(
                f"{len(missing)} of {len(pairs)} pictures are not in the table {str(self._path)!r} "
                f"({listing(missing, 3)}); add them, or name the pictures that are in it"
            )
        return [index for _, index in pairs if index is not None]

    def find_several(self, paths: Sequence[Path]) -> np.ndarray:
        """Whether each picture has each class, bool `[N, classes]`, of a table read with `several`.

        Raises:
            LabelsError: as of `find_all`.
        """
        self.find_all(paths)
        present = np.zeros((len(paths), self._size), bool)
        for row, path in enumerate(paths):
            present[row, self._find(path)] = True
        return present


def rows(path: Path, names: Sequence[str] = _PICTURE_COLUMNS) -> Iterator[tuple[int, str, str]]:
    """Line number, picture and class of each row of a table.

    Arguments:
        names: of the first column, in a header.

    Raises:
        LabelsError: it cannot be read.
    """
    import csv

    from onnxcam.documents import lines_of
    from onnxcam.files import FileError, read_bytes

    table = f"the table of classes {str(path)!r}"
    try:
        data = read_bytes(path, _LARGEST)
    except FileError as error:
        raise LabelsError(
            f"{table} {error}; give a CSV file `picture,class`, or 'by-folder' for classes by folder"
        ) from error
    first = data[:_LONGEST].decode("utf-8-sig", "replace").partition("\n")[0]
    separator = max(",;\t", key=first.count)
    columns, count = None, 0
    try:
        for number, row in enumerate(csv.reader(lines_of(data), delimiter=separator), 1):
            if not row:
                continue
            if columns is None:
                columns = _header(row, names) or (0, 1)
                if columns == _header(row, names):
                    continue
            if len(row) <= max(columns):
                raise LabelsError(f"{table} is not `{names[0]},class`: line {number} has one column")
            count += 1
            if count > _MOST:
                raise LabelsError(f"{table} has more than {_MOST:,} rows; divide it")
            yield number, row[columns[0]].strip(), row[columns[1]].strip()
    except FileError as error:
        raise LabelsError(f"{table} {error}") from error
    except csv.Error as error:
        raise LabelsError(f"{table} is not CSV ({error}); check it") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"{table} is not UTF-8 text; save it as UTF-8") from error
    if not count:
        raise LabelsError(f"{table} is not `{names[0]},class`: it has no rows")


def _header(row: Sequence[str], pictures: Sequence[str]) -> tuple[int, int] | None:
    """The columns of the picture and of its class, None where the first row is not a header."""
    names = [cell.strip().casefold().replace(" ", "_") for cell in row]
    picture = next((names.index(name) for name in pictures if name in names), None)
    of_class = next((names.index(name) for name in _CLASS_COLUMNS if name in names), None)
    return None if picture is None or of_class is None or picture == of_class else (picture, of_class)


def _class(text: str, labels: Sequence[str] | None, classes: int) -> int | None:
    """The class that a folder or a cell names; underscores may stand for spaces."""
    for spelling in (text, text.replace("_", " ")):
        try:
            index = int(targets.resolve(targets.by_text(spelling, labels), 1, classes, labels)[0])
        except TargetError:
            continue
        if index >= 0:
            return index
    return None


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path that may be written as on Windows."""
    path = PurePath(name if os.sep in name else name.replace("\\", "/"))
    return PurePath(os.path.normpath(path)).parts
